"""The command for the page."""

import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from log_factory import write_log

GRASP = [1.0] * 20 + [0.02] * 15 + [0.97] * 10


@pytest.fixture
def main(repository: Path) -> Callable[[Sequence[str]], int]:
    return runpy.run_path(str(repository / "scripts" / "report.py"))["main"]


def test_exit_status_follows_the_verdict(
    tmp_path: Path, main: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(write_log(tmp_path / "good.json", GRASP))
    bad = str(write_log(tmp_path / "bad.json", [0.99] * 30))
    out = tmp_path / "pages" / "report.html"
    assert main(["--log", good, "--out", str(out)]) == 0
    assert out.read_text().startswith("<!doctype html>")
    assert main(["--log", good, bad, "--out", str(out)]) == 1
    assert "Do not deploy it: bad.json: never closes" in capsys.readouterr().out


def test_a_folder_of_logs_names_all_of_them(tmp_path: Path, main: Callable[[Sequence[str]], int]) -> None:
    for name in ("inference_log_1.json", "inference_log_2.json"):
        write_log(tmp_path / name, GRASP)
    out = tmp_path / "report.html"
    assert main(["--log", str(tmp_path), "--out", str(out)]) == 0
    assert "opens and closes in 2 of 2 logs" in out.read_text()


def test_bad_input_is_refused(
    tmp_path: Path, main: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "report.html")]) == 2
    assert "nothing to report on" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
