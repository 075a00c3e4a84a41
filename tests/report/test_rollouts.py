"""Runs compared by closed-loop results: on the same scenes, made alike, or not compared."""

import json
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from report_factory import CONTENT, closed_loop, metrics, write_run

Main = Callable[[Sequence[str]], int]
GOOD, POOR = "1" * 30 + "c" * 10, "1" * 18 + "d" * 22


@pytest.fixture
def main(repository: Path) -> Main:
    return runpy.run_path(str(repository / "scripts" / "compare_runs.py"))["main"]


def run_of(folder: Path, outcomes: str = "", f1: float = 0.9, **about: Any) -> Path:
    """A run whose best checkpoint had these outcomes."""
    lines = [{**line, "val_gripper_f1": f1} if "val_gripper_f1" in line else line for line in metrics()]
    run = write_run(folder, lines)
    (run / "checkpoints" / "best.ckpt").write_bytes(CONTENT)
    if outcomes:
        closed_loop(run / "closed_loop.json", outcomes, **about)
    return run


def told_of(main: Main, *words: Path | str) -> dict[str, Any]:
    out = Path(words[0]).parent / "out.json"
    page = out.with_suffix(".html")
    main([*map(str, words), "--json", str(out), "--html", str(page)])
    return {**json.loads(out.read_text()), "page": page.read_text()}


def test_success_of_the_same_scenes_decides(tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    poor, good = run_of(tmp_path / "run_poor", POOR, 0.95), run_of(tmp_path / "run_good", GOOD, 0.6)
    report = told_of(main, poor, good)
    assert report["deploy"] == str(good / "checkpoints" / "best.ckpt")
    reason = (
        "it does the task most often (30 of 40 (60-86 %), next 18 of 40 (31-60 %); McNemar's exact test: p = 0.00049)"
    )
    assert f"{reason}, clearly." in report["advice"]
    (pair,) = report["paired"]
    assert (pair["first"], pair["second"], pair["only_first"], pair["only_second"]) == ("run_good", "run_poor", 12, 0)
    assert pair["p_value"] == pytest.approx(2 * 0.5**12)
    assert report["runs"][1]["closed_loop"]["count"] == 30
    assert "In the same scenes run_poor does 12 fewer of 40 than run_good" in report["page"]
    assert "<td>30 of 40 (60-86 %)</td>" in report["page"]
    assert "success during training" not in report["page"], "a column that no run has"
    assert "30 of 40" in capsys.readouterr().out


def test_a_small_difference_is_called_chance(tmp_path: Path, main: Main) -> None:
    report = told_of(
        main, run_of(tmp_path / "first_run", "1" * 20 + "c" * 20), run_of(tmp_path / "second_run", "1" * 22 + "c" * 18)
    )
    assert "p = 0.5), though this may be chance" in report["advice"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"simulator": {"env": {"_target_": "a.TabletopEnv", "referee": "kinematic"}}}, "another simulator"),
        ({"seed": 7}, "another seed"),
    ],
    ids=["referee", "seed"],
)
def test_other_scenes_are_never_compared(other: dict[str, Any], message: str, tmp_path: Path, main: Main) -> None:
    """F1, which both have, decides; by it the run that succeeds less often is better."""
    report = told_of(
        main, run_of(tmp_path / "first_run", POOR, 0.95), run_of(tmp_path / "second_run", GOOD, 0.6, **other)
    )
    assert "first_run/checkpoints/best.ckpt: it finds the gripper's events best" in report["advice"]
    assert report["paired"][0]["p_value"] is None
    assert (
        f"Second_run and first_run were not rolled out in the same scenes ({message}): they are not compared."
        in report["page"]
    )


@pytest.mark.parametrize(
    "other", [{"n_action_steps": 8}, {"latency_injected_ms": 200.0}, {"through_server": True}], ids=str
)
def test_other_conditions_are_shown_and_do_not_rank(other: dict[str, Any], tmp_path: Path, main: Main) -> None:
    report = told_of(
        main, run_of(tmp_path / "first_run", POOR, 0.95), run_of(tmp_path / "second_run", GOOD, 0.6, **other)
    )
    assert "first_run/checkpoints/best.ckpt: it finds the gripper's events best" in report["advice"]
    assert report["paired"][0]["differ"] == list(other)
    assert f"not made alike (another {next(iter(other))})" in report["page"]


def test_results_made_under_equal_conditions_are_compared(tmp_path: Path, main: Main) -> None:
    both = run_of(tmp_path / "first_run", POOR)
    closed_loop(both / "closed_loop_slow.json", "1" * 40, latency_injected_ms=200.0)
    report = told_of(main, both, run_of(tmp_path / "second_run", GOOD))
    assert [run["closed_loop"]["count"] for run in report["runs"]] == [18, 30]


def test_only_scenes_that_all_met_count(tmp_path: Path, main: Main) -> None:
    """The longer result succeeds in scenes that the other never met."""
    report = told_of(
        main, run_of(tmp_path / "first_run", "c" * 20 + "1" * 80), run_of(tmp_path / "second_run", "1" * 12 + "c" * 8)
    )
    assert [(run["closed_loop"]["count"], run["closed_loop"]["of"]) for run in report["runs"]] == [(0, 20), (12, 20)]
    assert "second_run/checkpoints/best.ckpt" in report["deploy"]


def test_runs_of_other_episodes_are_compared_by_the_same_scenes(tmp_path: Path, main: Main) -> None:
    runs = [run_of(tmp_path / "first_run", POOR, 0.95), run_of(tmp_path / "second_run", GOOD, 0.6)]
    config = runs[1] / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("nowhere.zarr", "elsewhere.zarr"))
    assert "it does the task most often (30 of 40" in told_of(main, *runs)["advice"]
    (runs[1] / "closed_loop.json").unlink()
    assert "measured on different episodes" in told_of(main, *runs)["advice"]


def test_a_checkpoint_that_was_rolled_out_is_the_one_to_deploy(tmp_path: Path, main: Main) -> None:
    runs = [run_of(tmp_path / name) for name in ("first_run", "second_run")]
    for run, outcomes in zip(runs, (POOR, GOOD), strict=True):
        (run / "checkpoints" / "latest.ckpt").write_bytes(CONTENT)
        (run / "checkpoints" / "best.ckpt").write_bytes(b"not rolled out")
        closed_loop(run / "closed_loop.json", outcomes)
    report = told_of(main, *runs)
    assert report["deploy"] == str(runs[1] / "checkpoints" / "latest.ckpt")
    assert "30 of 40 (60-86 %), latest.ckpt" in report["page"]


def test_results_elsewhere_are_named_and_must_be_of_these_runs(
    tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [run_of(tmp_path / "first_run", POOR), run_of(tmp_path / "second_run")]
    (runs[1] / "checkpoints" / "best.ckpt").write_bytes(b"b")
    digest = "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d"
    named = closed_loop(tmp_path / "b.json", GOOD, checkpoint_sha256=digest)
    report = told_of(main, *runs, "--closed-loop", str(named))
    assert [run["closed_loop"]["count"] for run in report["runs"]] == [18, 30]
    stranger = closed_loop(tmp_path / "stranger.json", GOOD, checkpoint_sha256="0" * 64)
    assert main([*map(str, runs), "--closed-loop", str(stranger)]) == 2
    assert "stranger.json: it belongs to no checkpoint of these runs" in capsys.readouterr().err


def test_a_run_that_does_nothing_in_closed_loop_is_ruled_out(tmp_path: Path, main: Main) -> None:
    report = told_of(main, run_of(tmp_path / "first_run", "c" * 40, 0.95), run_of(tmp_path / "second_run", GOOD, 0.6))
    assert (
        "second_run/checkpoints/best.ckpt: it is the only one that may be; do not deploy first_run: closed loop"
        in report["advice"]
    )


def joints_only(folder: Path, error: float, unit: str = "rad") -> Path:
    """A run with a layout without pose or gripper."""
    lines = [{key: value for key, value in line.items() if not key.startswith("val_")} for line in metrics()]
    lines[-1] |= {f"val_joint_error_{unit}": error, "val_loss": 0.5 + error}
    return write_run(folder, lines)


def test_runs_without_a_pose_are_ranked_by_their_joints(tmp_path: Path, main: Main) -> None:
    far, near = joints_only(tmp_path / "far", 0.2), joints_only(tmp_path / "near", 0.1)
    report = told_of(main, far, near)
    assert report["deploy"] == str(near / "checkpoints" / "best.ckpt")
    assert "its joint error is lowest (0.1 rad (joints), next 0.2 rad (joints))" in report["advice"]
    assert [run["joint_error"] for run in report["runs"]] == [[0.2, "rad"], [0.1, "rad"]]
    other = joints_only(tmp_path / "other", 0.05, "deg")
    assert "validation loss is lowest" in told_of(main, near, other)["advice"], "units are not compared"
