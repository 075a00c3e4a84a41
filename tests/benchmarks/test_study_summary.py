"""What is made of a study's numbers: tables, how soon scratch is reached, the guide's claims, thresholds."""

import itertools
from typing import Any

import numpy as np
import pytest
from calibration_fit import Figure, area, errors, fit_threshold, left_out, rank_correlation
from study_summary import FALSE, NOT_MEASURABLE, TRUE, difference, summarize, within_a_third
from verdict_calibration import calibrate

SMALLER, LARGER = Figure("error", "error", larger=False), Figure("f1", "F1", larger=True)


def training(arm: str, seed: int, losses: list[float], f1: list[float], start: float = 1.0) -> dict[str, Any]:
    curves: list[dict[str, Any]] = [{"global_step": 0, "val_loss_before_first_update": start}]
    for number, (loss, score) in enumerate(zip(losses, f1, strict=True), start=1):
        figures = {"val_loss": loss, "val_position_error_mm": 100 * loss, "val_gripper_f1": score}
        curves.append({"global_step": 100 * number, "train_loss": loss, **figures})
    about = {"arm": arm, "demonstrations": 10, "seed": seed, "labels": "recorded"}
    return {**about, "curves": curves, "updates_an_epoch": 50, "seconds": 60.0, "core_seconds": 60.0}


def record(arm: str, seed: int, update: int, scenes: list[int], **changes: Any) -> dict[str, Any]:
    share = sum(scenes) / len(scenes)
    opens = {"verdict": "opens and closes", "firmness": 1.0, "changes": 2, "ahead": 2}
    return {
        "arm": arm, "start": arm, "labels": "recorded", "seed": seed, "demonstrations": 10, "update": update,
        "last": update == 300, "broken": None, "validation": {"val_loss": 0.1},
        "open_loop": {
            "position_mm": 100 - 90 * share, "rotation_deg": 1.0, "gripper_at_transitions": 0.1, "gripper_f1": 1.0,
            "position_mm_by_step": [50 - 40 * share] * 8, "position_mm_by_phase": {"grasp": 30.0}, "shortcomings": 0,
        },
        "logs": [opens, opens],
        "closed_loop": {
            "success": sum(scenes), "of": len(scenes), "scenes": scenes, "reasons": {"dropped": scenes.count(0)},
        },
    } | changes  # fmt: skip


def study(grow_f1: float = 1.0, grow_losses: tuple[float, ...] = (0.2, 0.1, 0.1), old: float = 0.5) -> dict[str, Any]:
    trainings, records = [], []
    for seed in (0, 1):
        trainings.append(training("scratch", seed, [0.9, 0.5, 0.3], [0.0, 0.0, 0.5], start=1.2))
        trainings.append(training("grow", seed, list(grow_losses), [grow_f1] * 3, start=0.6))
        for update in (100, 300):
            records.append(record("scratch", seed, update, [0, 0, 0, 1] if update == 300 else [0, 0]))
            records.append(record("grow", seed, update, [1, 1, 1, 0] if update == 300 else [0, 1]))
    return {"trainings": trainings, "records": records, "source_loss": {"0": old, "1": old}}


def test_finals_are_over_all_seeds() -> None:
    rows = {row["arm"]: row for row in summarize(study())["finals"]}
    assert rows["grow"]["success"]["count"] == 6
    assert rows["grow"]["success"]["of"] == 8
    assert rows["grow"]["minus_scratch"]["mean"] == pytest.approx(0.5)
    assert rows["grow"]["success_by_seed"] == [0.75, 0.75]
    assert rows["scratch"]["reasons"] == {"dropped": 6}
    assert rows["scratch"]["val_loss"] == {"mean": 0.1, "low": 0.1, "high": 0.1}


def test_differences_pair_scenes_of_the_same_seed() -> None:
    first = [record("a", 0, 300, [1, 0, 0, 0]), record("a", 1, 300, [1, 1, 0, 0])]
    second = [record("b", 1, 300, [1, 1, 1, 0]), record("b", 2, 300, [0, 0, 0, 0])]
    found = difference(first, second)
    assert found is not None
    assert (found["mean"], found["scenes"], found["seeds"]) == (0.25, 4, 1)
    assert difference(first, second[1:]) is None


def test_how_soon_scratch_is_reached() -> None:
    grow = next(row for row in summarize(study(grow_losses=(0.4, 0.3, 0.1)))["reach"] if row["arm"] == "grow")
    assert grow["updates"] == {"val_loss": 200, "val_position_error_mm": 200, "val_gripper_f1": 100, "success": 100}
    assert grow["not_yet"] == {"val_loss": 100, "val_position_error_mm": 100, "val_gripper_f1": 0, "success": 0}
    assert grow["core_minutes"]["val_loss"] == pytest.approx(0.67)
    never = next(row for row in summarize(study(grow_f1=0.4))["reach"] if row["arm"] == "grow")
    assert never["updates"]["val_gripper_f1"] is None


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, [TRUE, TRUE, FALSE]),
        ({"grow_losses": (0.4, 0.3, 0.1)}, [FALSE, TRUE, FALSE]),
        ({"grow_losses": (0.4, 0.4, 0.4)}, [FALSE, TRUE, FALSE]),
        ({"old": 0.1}, [TRUE, FALSE, FALSE]),
        ({"grow_f1": 0.8}, [TRUE, TRUE, NOT_MEASURABLE]),
    ],
)
def test_claims(changes: dict[str, Any], verdicts: list[str]) -> None:
    assert [claim["verdict"] for claim in summarize(study(**changes))["claims"]] == verdicts


@pytest.mark.parametrize(
    ("update", "not_yet", "expected"), [(100, 0, True), (200, 100, False), (200, 50, None), (None, 50, False)]
)
def test_a_third_cannot_be_distinguished_between_two_measurements(
    update: int | None, not_yet: int, expected: bool | None
) -> None:
    row = {"updates": {"loss": update}, "not_yet": {"loss": not_yet}, "of_updates": 300}
    assert within_a_third(row, "loss") is expected


@pytest.mark.parametrize("figure", [SMALLER, LARGER])
def test_a_threshold_lies_between_those_that_fail_and_those_that_succeed(figure: Figure) -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0])
    good = np.array([False, False, True, True]) if figure.larger else np.array([True, True, False, False])
    assert fit_threshold(values, good, figure) == pytest.approx(3.0)
    assert area(values, good, larger=figure.larger) == 1.0
    assert area(values, ~good, larger=figure.larger) == 0.0
    assert fit_threshold(values, np.ones(4, dtype=bool), figure) is None


def test_the_strictest_of_equal_thresholds_is_taken() -> None:
    values, good = np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, True, False])
    assert fit_threshold(values, good, SMALLER) == pytest.approx(1.5)


def test_area_and_correlation_count_ties_as_half() -> None:
    values = np.array([1.0, 1.0, 1.0, 1.0])
    good = np.array([True, False, True, False])
    assert area(values, good, larger=True) == 0.5
    assert rank_correlation(values, np.arange(4.0)) is None
    assert rank_correlation(np.array([3.0, 2.0, 1.0]), np.array([10.0, 20.0, 40.0])) == pytest.approx(-1.0)


def test_a_run_is_judged_by_a_threshold_of_the_others() -> None:
    values = np.array([1.0, 2.0, 1.0, 2.0, 5.0, 6.0])
    good = np.array([True, False, True, False, True, False])  # run c has a different scale
    verdict = left_out(values, good, ["a", "a", "b", "b", "c", "c"], SMALLER)
    assert verdict is not None
    assert verdict.tolist() == [True, False, True, False, False, False]
    found = errors(verdict, good)
    assert (found["yes"], found["yes_that_fail"]["count"], found["no_that_succeed"]["count"]) == (2, 0, 1)


def test_calibration_counts_every_policy_and_what_the_verdict_misses() -> None:
    found = calibrate(study())
    assert (found["policies"], found["runs"], found["succeed"]) == (8, 4, 4)
    verdict = found["verdicts"]["all logs open and close"]
    assert (verdict["yes"], verdict["yes_that_fail"]["count"]) == (8, 4)
    assert verdict["mean_success_of_yes"] == pytest.approx(np.mean([0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]))
    assert found["figures"]["position_mm"]["area"] == 1.0
    shut = {"verdict": "never closes", "firmness": 1.0, "changes": 0, "ahead": 0}
    for changed in itertools.islice(study()["records"], 1):
        policy = calibrate({"records": [changed | {"logs": [shut]}]})["by_policy"][0]
        assert (policy["yes"], policy["ahead"], policy["open_and_close"]) == (False, 0.0, 0.0)
