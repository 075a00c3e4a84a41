"""Events under a dead band, and how predicted ones match recorded ones."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_policy.gripper_events import (
    CLOSED,
    OPEN,
    UNDECIDED,
    WIDTH_BAND,
    DeadBand,
    control_period,
    count_bounces,
    gripper_events,
    gripper_states,
    order_of_events,
    score_gripper_events,
    tolerance_steps,
)


def square(n_steps: int, close: int, reopen: int) -> np.ndarray:
    values = np.ones(n_steps)
    values[close:reopen] = 0
    return values


def test_states_keep_the_last_decision_inside_the_band() -> None:
    states = gripper_states([0.5, 0.7, 0.31, 0.69, 0.3, 0.69, 1.0])
    assert states.tolist() == [UNDECIDED, OPEN, OPEN, OPEN, CLOSED, CLOSED, OPEN]
    assert gripper_states([]).tolist() == []


def test_the_first_state_is_not_an_event() -> None:
    assert gripper_events([1, 1, 0, 0, 1]) == [(2, "close"), (4, "open")]
    assert gripper_events([0.5, 0, 1]) == [(2, "open")]
    assert gripper_events([0.98, 0.99, 1.0, 0.977]) == []


def test_dwell_ignores_states_that_do_not_last() -> None:
    values = [1, 1, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1]
    assert gripper_events(values, min_dwell=3) == [(5, "close")]
    assert gripper_events(values, min_dwell=2) == [(5, "close")]
    assert len(gripper_events(values)) == 6


def test_thresholds_are_arguments() -> None:
    assert gripper_events([0.08, 0.03], WIDTH_BAND.open, WIDTH_BAND.closed) == [(1, "close")]
    assert gripper_events([0.6, 0.4]) == []
    assert gripper_events([0.6, 0.4], 0.5, 0.5) == [(1, "close")]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([[1.0]], {}, r"have shape \(1, 1\)"),
        ([1.0], {"min_dwell": 0}, "min_dwell is 0"),
        ([1.0], {"open_threshold": 0.2}, "closes at 0.3 and opens at 0.2"),
    ],
)
def test_refuses_what_is_not_a_command(values: list[float], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gripper_events(values, **options)


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(1, 5))
def test_kinds_alternate_and_dwell_only_removes(values: list[float], min_dwell: int) -> None:
    events = gripper_events(values, min_dwell=min_dwell)
    kinds = [kind for _, kind in events]
    assert all(first != second for first, second in pairwise(kinds))
    assert len(events) <= len(gripper_events(values))
    assert [step for step, _ in events] == sorted(step for step, _ in events)


@given(st.lists(st.floats(0, 1), max_size=40))
def test_equals_the_plain_loop(values: list[float]) -> None:
    expected, state = [], None
    for i, value in enumerate(values):
        new = "open" if value >= 0.7 else "close" if value <= 0.3 else state
        if state is not None and new != state:
            expected.append((i, new))
        state = new
    assert gripper_events(values) == expected


def test_bounces() -> None:
    assert count_bounces([(3, "close"), (4, "open"), (6, "close"), (9, "open")]) == 2
    assert count_bounces([]) == 0


def test_scores_timing() -> None:
    score = score_gripper_events(square(60, 23, 38), square(60, 20, 40), tolerance_steps=5, step_seconds=0.1)
    assert score.matched == ((20, 23, "close"), (40, 38, "open"))
    assert score.offsets.tolist() == [3, -2]
    assert (score.recall, score.precision, score.f1) == (1.0, 1.0, 1.0)
    found = score.to_json()
    assert (found["early"], found["late"], found["offsets_ms"]) == (1, 1, [300.0, -200.0])
    assert found["recall_interval"][0] < 1.0


def test_scores_missed_and_false() -> None:
    score = score_gripper_events(np.ones(60), square(60, 20, 40))
    assert score.missed == ((20, "close"), (40, "open"))
    assert (score.recall, score.f1) == (0.0, 0.0)
    assert np.isnan(score.precision)
    assert score.to_json()["precision"] is None
    score = score_gripper_events(square(60, 20, 40), np.ones(60))
    assert score.false == ((20, "close"), (40, "open"))
    score = score_gripper_events(square(60, 5, 50), square(60, 20, 40), tolerance_steps=5)
    assert (len(score.matched), len(score.missed), len(score.false)) == (0, 2, 2)


@pytest.mark.parametrize(
    ("predicted", "recorded", "f1", "recall", "precision"),
    [
        (np.ones(60), np.ones(60), None, None, None),  # changed: this was an F1 of 1
        (square(60, 20, 40), np.ones(60), None, None, 0.0),
        (np.ones(60), square(60, 20, 40), 0.0, 0.0, None),
        (square(60, 20, 40), square(60, 20, 40), 1.0, 1.0, 1.0),
    ],
    ids=["nothing on either side", "nothing recorded", "nothing predicted", "both"],
)
def test_what_was_not_measured_is_not_defined(predicted, recorded, f1, recall, precision) -> None:
    score = score_gripper_events(predicted, recorded)
    for value, expected in ((score.f1, f1), (score.recall, recall), (score.precision, precision)):
        assert np.isnan(value) if expected is None else value == expected
    found = json.loads(json.dumps(score.to_json(), allow_nan=False))
    assert (found["f1"], found["recall"], found["precision"]) == (f1, recall, precision)
    assert (found["recall_interval"] is None) == (recall is None)
    assert (found["precision_interval"] is None) == (precision is None)
    assert (found["median_offset_steps"] is None) == (f1 != 1.0)
    assert ("F1 and recall are undefined" in score.sentence()) == (f1 is None)


def test_matches_most_pairs_before_the_nearest() -> None:
    recorded, predicted = np.ones(40), np.ones(40)
    recorded[[10, 16]] = 0
    predicted[[12, 22]] = 0
    # The nearest pairing (16 with 12) would leave 10 and 22 alone.
    closes = [pair for pair in score_gripper_events(predicted, recorded, 6).matched if pair[2] == "close"]
    assert closes == [(10, 12, "close"), (16, 22, "close")]


def test_chatter_is_counted_and_dwell_debounces_only_the_prediction() -> None:
    predicted = square(60, 20, 40)
    predicted[30] = 1
    score = score_gripper_events(predicted, square(60, 20, 40))
    assert (score.bounces, len(score.false)) == (1, 2)
    score = score_gripper_events(predicted, square(60, 20, 40), min_dwell=3)
    assert (score.bounces, len(score.false)) == (1, 0)


def test_tolerance_is_a_time() -> None:
    assert [tolerance_steps(seconds) for seconds in (None, 0.1, 0.8, 3.0)] == [10, 10, 1, 1]
    assert [tolerance_steps(0.1, seconds) for seconds in (0.5, 2.0, 0.01)] == [5, 20, 1]
    for wrong in ((0.0, 1.0), (np.nan, 1.0), (0.1, 0.0), (0.1, np.inf)):
        with pytest.raises(ValueError, match="expected positive numbers"):
            tolerance_steps(*wrong)


@pytest.mark.parametrize(("step_seconds", "late", "found"), [(0.1, 10, 2), (0.1, 11, 0), (0.05, 20, 2), (0.8, 1, 2),
                                                             (0.8, 2, 0), (None, 10, 2), (None, 11, 0)])  # fmt: skip
def test_the_same_second_at_every_control_rate(step_seconds: float | None, late: int, found: int) -> None:
    score = score_gripper_events(square(90, 20 + late, 50 + late), square(90, 20, 50), step_seconds=step_seconds)
    assert len(score.matched) == found
    assert score.to_json()["tolerance_s"] == 1.0
    assert score.tolerance.startswith("1 s (")
    assert ("the data has no clock" in score.tolerance) == (step_seconds is None)


@pytest.mark.parametrize("times", [None, [], [3.0], [1.0, 1.0, 1.0], [2.0, 1.0], [0.0, np.nan, 1.0]])
def test_without_a_clock_there_is_no_control_rate(times: list[float] | None) -> None:
    assert control_period(times) is None
    assert control_period([0.0, 0.1, 0.2, 50.0]) == pytest.approx(0.1)


def test_scores_add_up() -> None:
    total = score_gripper_events(np.ones(60), square(60, 20, 40)) + score_gripper_events(
        square(60, 20, 40), square(60, 20, 40), step_seconds=0.1
    )
    assert (total.recall, total.step_seconds) == (0.5, None)  # the first has no clock, so there are no milliseconds
    assert total.to_json()["offsets_ms"] is None
    parts = [score_gripper_events(square(60, 20, 40), square(60, 20, 40), step_seconds=s) for s in (0.1, 0.101, 0.8)]
    assert ((parts[0] + parts[1]).step_seconds, (parts[0] + parts[1]).tolerance_steps) == (0.1, 10)
    mixed = parts[0] + parts[2]
    assert (mixed.step_seconds, mixed.tolerance_steps, mixed.tolerance) == (None, None, "1 s")
    with pytest.raises(ValueError, match="within 1 s and within 2 s cannot be added"):
        parts[0] + score_gripper_events(np.ones(9), np.ones(9), tolerance_s=2.0)


def test_refuses_different_lengths_and_bands() -> None:
    with pytest.raises(ValueError, match=r"predicted gripper has shape \(3,\), recorded \(4,\)"):
        score_gripper_events(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="expected closed <= open"):
        DeadBand(0.1, 0.2)


def test_the_order_of_command_and_measurement() -> None:
    measured = [1.0] * 4 + [0.0] * 4 + [1.0] * 2
    first = np.array([1.0] * 4 + [0.0] * 5 + [1.0])
    chunks = np.repeat(first[:, None], 3, axis=1)
    events = gripper_events(first)
    assert events == [(4, "close"), (9, "open")]
    assert order_of_events(events, chunks, measured) == ("behind", "behind")
    chunks[3, 2] = 0.1
    assert order_of_events(events, chunks, measured) == ("ahead", "behind")
    assert order_of_events(events, chunks, [1.0] * 10) == ("ahead", "back")
    chunks[2:4, 2] = [0.1, 1.0]  # reversed in the last chunk before the hand closed
    assert order_of_events(events, chunks, measured)[0] == "behind"
    with pytest.raises(ValueError, match=r"chunks have shape \(10,\)"):
        order_of_events(events, first, measured)
