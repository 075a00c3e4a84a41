"""The command for gripper verdicts."""

import json
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from log_factory import write_log

GRASP = [1.0] * 20 + [0.02] * 15 + [0.97] * 10


@pytest.fixture
def main(repository: Path) -> Callable[[Sequence[str]], int]:
    return runpy.run_path(str(repository / "scripts" / "validate_gripper.py"))["main"]


def test_exit_status_and_json(tmp_path: Path, main: Callable[[Sequence[str]], int]) -> None:
    good = str(write_log(tmp_path / "good.json", GRASP))
    bad = str(write_log(tmp_path / "bad.json", [0.99] * 30, 3))
    out = tmp_path / "out.json"
    assert main([good, "--json", str(out)]) == 0
    assert main([good, bad, "--json", str(out)]) == 1
    first, second = json.loads(out.read_text())
    assert (first["file"], first["verdict"]) == ("good.json", "opens and closes")
    assert first["events"] == [[20, "close"], [35, "open"]]
    assert (second["verdict"], second["generation"], second["images"]) == ("never closes", 3, 30)
    assert main([good, str(tmp_path / "absent.json"), "--json", str(out)]) == 2
    assert [entry["verdict"] for entry in json.loads(out.read_text())] == ["opens and closes", "unreadable"]


def test_prints_a_table(
    tmp_path: Path, main: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(write_log(tmp_path / "good.json", GRASP))
    assert main([good, "--before", good, "--html", str(tmp_path / "page.html")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "opens and closes: 1 of 1 logs with a gripper command" in shown
    assert "only a rollout shows" in shown
    assert "no difference can be claimed" in shown
    assert "good.json" in (tmp_path / "page.html").read_text()


def test_the_scale_is_a_flag(
    tmp_path: Path, main: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    percent = [100 * value for value in GRASP]
    log = str(write_log(tmp_path / "log.json", percent, measured=[100.0, 100.0, *percent[:-2]]))
    assert main([log]) == 1
    assert "unknown scale" in capsys.readouterr().out
    assert main([log, "--gripper-scale", "percent"]) == 0
    assert main([log, "--gripper-scale", "signed_open1"]) == 2
    capsys.readouterr()
    assert main([log, "--gripper-scale", "per cent"]) == 2
    assert "error: gripper scale 'per cent' is not known; expected one of open1" in capsys.readouterr().err


def test_errors_are_one_line(
    tmp_path: Path, main: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit):
        main([])
