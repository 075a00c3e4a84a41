"""The door of comparisons."""

import json
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from report_factory import metrics, write_run

Main = Callable[[Sequence[str]], int]


@pytest.fixture
def main(repository: Path) -> Main:
    return runpy.run_path(str(repository / "scripts" / "compare_runs.py"))["main"]


def scored(found: int, f1: float, position: float = 9.0) -> list[dict[str, Any]]:
    changes = {"val_gripper_events_found": found, "val_gripper_f1": f1, "val_position_error_mm": position}
    return [{**line, **changes} if "val_gripper_f1" in line else line for line in metrics()]


def test_the_run_that_finds_the_events_is_recommended(
    tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    poor = write_run(tmp_path / "run_poor", scored(3, 0.2), "policy:\n  n_layer: 4\n")
    good = write_run(tmp_path / "run_good", scored(19, 0.95), "policy:\n  n_layer: 8\n")
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    assert main([str(poor), str(good), "--json", str(out), "--html", str(page)]) == 0
    told = json.loads(out.read_text())
    assert told["differences"] == {"policy.n_layer": [4, 8]}
    assert told["deploy"] == str(good / "checkpoints" / "best.ckpt")
    assert told["advice"].endswith("it finds the gripper's events best (F1 0.95, next 0.2), clearly.")
    low, high = told["runs"][1]["interval"]
    assert 0.7 < low < 0.95 < high
    assert page.read_text().count("<section") == 4
    assert 'class="verdict good"' in page.read_text()
    assert "share of recorded gripper events found at the end: run_poor 0.90" in page.read_text()
    assert "policy.n_layer" in capsys.readouterr().out


def test_a_small_difference_may_be_chance(tmp_path: Path, main: Main) -> None:
    runs = [write_run(tmp_path / f"run_of_{n}", scored(n, n / 20)) for n in (17, 18)]
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    assert main([*map(str, runs), "--json", str(out), "--html", str(page)]) == 0
    assert "though the intervals overlap: this may be chance" in json.loads(out.read_text())["advice"]
    assert 'class="verdict doubt"' in page.read_text()


def test_position_breaks_a_tie(tmp_path: Path, main: Main) -> None:
    runs = [write_run(tmp_path / f"run_at_{mm}", scored(18, 0.9, mm)) for mm in (12.0, 7.0)]
    out = tmp_path / "out.json"
    assert main([*map(str, runs), "--json", str(out)]) == 0
    assert "its positions are nearest (7 mm, next 12)" in json.loads(out.read_text())["advice"]


def test_runs_on_other_episodes_are_not_ranked(tmp_path: Path, main: Main) -> None:
    first = write_run(tmp_path / "first_run")
    second = write_run(tmp_path / "second_run")
    config = second / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("nowhere.zarr", "elsewhere.zarr"))
    out = tmp_path / "out.json"
    assert main([str(first), str(second), "--json", str(out)]) == 1
    assert json.loads(out.read_text())["deploy"] is None
    assert "measured on different episodes (task.dataset.zarr_path differ)" in json.loads(out.read_text())["advice"]


def test_trouble_of_the_best_run_is_named(tmp_path: Path, main: Main) -> None:
    stale = [{**line, "lr": 1e-6} for line in scored(19, 0.95)]
    runs = [write_run(tmp_path / "first_run", stale), write_run(tmp_path / "second_run", scored(2, 0.1))]
    out = tmp_path / "out.json"
    assert main([*map(str, runs), "--json", str(out)]) == 0
    assert "but first look at this: the learning rate only reached" in json.loads(out.read_text())["advice"]


def test_bad_input_is_refused(tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(write_run(tmp_path / "only_run"))
    assert main([run]) == 2
    assert main([run, run]) == 2
    assert "expected two or more different ones" in capsys.readouterr().err
    assert main([run, str(tmp_path)]) == 2
    assert "no run there" in capsys.readouterr().err


def test_no_run_was_measured(tmp_path: Path, main: Main) -> None:
    lines = [line for line in metrics() if "val_gripper_f1" not in line]
    runs = [write_run(tmp_path / name, lines) for name in ("first_run", "second_run")]
    out = tmp_path / "out.json"
    assert main([*map(str, runs), "--json", str(out)]) == 1
    assert "None can be chosen" in json.loads(out.read_text())["advice"]
