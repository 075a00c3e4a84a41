"""The command for comparisons."""

import json
import re
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
    report = json.loads(out.read_text())
    assert report["differences"] == {"policy.n_layer": [4, 8]}
    assert report["deploy"] == str(good / "checkpoints" / "best.ckpt")
    assert report["advice"].endswith("it finds the gripper's events best (F1 0.95, next 0.2), clearly.")
    low, high = report["runs"][1]["interval"]
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
    assert "its position error is lowest (7 mm, next 12)" in json.loads(out.read_text())["advice"]


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
    assert "not a run;" in capsys.readouterr().err


def test_no_run_was_measured(tmp_path: Path, main: Main) -> None:
    lines = [line for line in metrics() if "val_gripper_f1" not in line]
    runs = [write_run(tmp_path / name, lines) for name in ("first_run", "second_run")]
    out = tmp_path / "out.json"
    assert main([*map(str, runs), "--json", str(out)]) == 1
    assert "None can be chosen" in json.loads(out.read_text())["advice"]


def changed(lines: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    """Returns the lines with changed figures where something was measured; None removes a figure."""
    merged = [{**line, **changes} if "val_loss" in line else line for line in lines]
    return [{key: value for key, value in line.items() if value is not None} for line in merged]


def compared(main: Main, tmp_path: Path, *runs: list[dict[str, Any]]) -> dict[str, Any]:
    folders = [write_run(tmp_path / f"run_{number}", lines) for number, lines in enumerate(runs)]
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    main([*map(str, folders), "--json", str(out), "--html", str(page)])
    assert not re.search(r">\s*(nan|none|null)\b", page.read_text(), re.IGNORECASE)
    return json.loads(out.read_text())


def test_what_is_not_defined_ranks_no_run(tmp_path: Path, main: Main) -> None:
    """A run without an F1 is neither better nor worse for it; the next common figure decides."""
    nothing = {"val_gripper_f1": None, "val_gripper_recall": None, "val_position_error_mm": 5.0}
    report = compared(main, tmp_path, scored(19, 0.95, 9.0), changed(metrics(), **nothing))
    assert "run_1/checkpoints/best.ckpt: its position error is lowest (5 mm, next 9)" in report["advice"]
    assert report["runs"][1]["gripper_f1"] is None


def test_an_f1_of_one_without_an_event_does_not_count(tmp_path: Path, main: Main) -> None:
    """Older programs wrote it; an interval without events is not defined either."""
    empty = {"val_gripper_events_recorded": 0, "val_gripper_events_found": 0, "val_gripper_false_flips": 0}
    report = compared(
        main,
        tmp_path,
        *(changed(metrics(), val_gripper_f1=1.0, val_position_error_mm=mm, **empty) for mm in (7.0, 6.0)),
    )
    assert [run["gripper_f1"] for run in report["runs"]] == [None, None]
    assert [run["interval"] for run in report["runs"]] == [None, None]
    assert "run_1/checkpoints/best.ckpt: its position error is lowest (6 mm, next 7)" in report["advice"]
    assert "no gripper event was measured that could tell them apart" in report["advice"]


@pytest.mark.parametrize("missing", ["val_gripper_f1", "val_position_error_mm", "val_loss"])
def test_nan_and_null_are_not_figures(tmp_path: Path, main: Main, missing: str) -> None:
    lines = [{**line, missing: None} if missing in line else line for line in scored(18, 0.9)]
    report = compared(main, tmp_path, lines, scored(18, 0.9))
    key = {"val_gripper_f1": "gripper_f1", "val_position_error_mm": "position_error_mm"}.get(missing, "val_loss")
    assert report["runs"][0][key] is None
    assert report["deploy"] is not None


def test_runs_of_other_tolerances_are_not_compared_by_f1(tmp_path: Path, main: Main) -> None:
    wide = changed(scored(20, 1.0, 9.0), val_gripper_tolerance_s=2.0)
    report = compared(main, tmp_path, wide, changed(scored(15, 0.7, 5.0), val_gripper_tolerance_s=1.0))
    assert [run["gripper_tolerance"] for run in report["runs"]] == ["2 s", "1 s"]
    assert "its position error is lowest (5 mm, next 9)" in report["advice"]
    assert "their gripper F1 scores have different tolerances and were not compared" in report["advice"]
    assert "clearly" not in report["advice"]


def test_a_run_whose_tolerance_was_changed_is_scored_with_the_last_one(tmp_path: Path, main: Main) -> None:
    lines = changed(scored(20, 1.0), val_gripper_tolerance_s=2.0)
    lines[-1] |= {"val_gripper_f1": 0.5, "val_gripper_tolerance_s": 1.0}
    report = compared(main, tmp_path, lines, scored(15, 0.7))
    assert (report["runs"][0]["gripper_f1"], report["runs"][0]["gripper_tolerance"]) == (0.5, "1 s")


@pytest.mark.parametrize(("digests", "comparable"), [(("a", "a"), True), (("a", "b"), False)])
def test_episodes_are_the_same_by_content_wherever_they_lie(
    tmp_path: Path, main: Main, digests: tuple[str, str], comparable: bool
) -> None:
    runs = []
    for number, digest in enumerate(digests):
        lines = scored(18, 0.9)
        lines[0] |= {"held_out_sha256": digest}
        runs.append(write_run(tmp_path / f"run_{number}", lines))
        config = runs[-1] / ".hydra" / "config.yaml"
        config.write_text(config.read_text().replace("nowhere.zarr", f"set_{number}.zarr"))
    out = tmp_path / "out.json"
    assert main([*map(str, runs), "--json", str(out)]) == (0 if comparable else 1)
    assert ("the held-out episodes differ" in json.loads(out.read_text())["advice"]) == (not comparable)


def test_equal_runs_are_called_equal(tmp_path: Path, main: Main) -> None:
    report = compared(main, tmp_path, scored(18, 0.9), scored(18, 0.9))
    assert "no figure that both have separates it from the next one." in report["advice"]


def test_success_in_closed_loop_comes_first_where_all_measured_it(tmp_path: Path, main: Main) -> None:
    rolled = {"test_success_low": 0.6, "test_success_high": 0.9}
    report = compared(
        main,
        tmp_path,
        changed(scored(19, 0.95, 5.0), test_success=0.2, test_success_low=0.1, test_success_high=0.3),
        changed(scored(15, 0.75, 9.0), test_success=0.8, **rolled),
    )
    assert (
        "run_1/checkpoints/best.ckpt: it succeeds most often in closed loop (80%, next 20%), clearly"
        in report["advice"]
    )
    assert report["runs"][1]["success_interval"] == [0.6, 0.9]
    other = compared(main, tmp_path / "other", scored(19, 0.95), changed(scored(15, 0.75), test_success=0.8, **rolled))
    assert "it finds the gripper's events best (F1 0.95, next 0.75)" in other["advice"]
