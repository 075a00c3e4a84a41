"""Events of a gripper: when it opens and closes, under a dead band, and how two sequences of events agree.

A predicted gripper is a noisy number between 0 and 1. "It changes, so it learned" is wrong: values that wander between
0.977 and 1.000 change at every step and never close a finger. So an event is a change of *state*, and a state is left
only when the command crosses the far edge of a dead band.

Pure functions on arrays: validation during training, recorded episodes and logs of the robot all use these.
Gripper 1 = open, 0 = closed; a step is one command; N steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.intervals import wilson_interval

EventKind = Literal["open", "close"]
Event = tuple[int, EventKind]
Order = Literal["ahead", "behind", "back"]

UNDECIDED, CLOSED, OPEN = -1, 0, 1
# A state that is left again within this many steps was no decision.
BOUNCE_STEPS = 2
# Recorded and predicted events further apart than this are not the same event.
TOLERANCE_SECONDS = 1.0
TOLERANCE_STEPS = 10  # the same at the robot's 10 Hz, where no clock is known


@dataclass(frozen=True)
class DeadBand:
    """Commands >= ``open`` open the gripper, commands <= ``closed`` close it, those between leave it as it is."""

    open: float
    closed: float

    def __post_init__(self) -> None:
        if not self.closed <= self.open:
            raise ValueError(f"dead band closes at {self.closed} and opens at {self.open}; expected closed <= open")


# Of a command in 0..1, and of a width in metres: recordings call a gripper wider than 5 cm open.
GRIPPER_BAND = DeadBand(open=0.7, closed=0.3)
WIDTH_BAND = DeadBand(open=0.06, closed=0.04)


def gripper_states(values: ArrayLike, band: DeadBand = GRIPPER_BAND) -> NDArray[np.int8]:
    """State after each of N commands: OPEN, CLOSED, or UNDECIDED before the first that leaves the dead band."""
    commands = np.asarray(values, dtype=np.float64)
    if commands.ndim != 1:
        raise ValueError(f"gripper commands have shape {commands.shape}; expected one number a step, (N,)")
    decided = np.where(commands >= band.open, OPEN, np.where(commands <= band.closed, CLOSED, UNDECIDED))
    last = np.maximum.accumulate(np.where(decided != UNDECIDED, np.arange(len(commands)), -1))
    return np.where(last >= 0, decided[last], UNDECIDED).astype(np.int8) if len(commands) else decided.astype(np.int8)


def gripper_events(
    values: ArrayLike, open_threshold: float = 0.7, closed_threshold: float = 0.3, min_dwell: int = 1
) -> list[Event]:
    """Changes of the gripper's state.

    Args:
        values: (N,) commands.
        open_threshold: commands at or above it open.
        closed_threshold: commands at or below it close.
        min_dwell: a change counts only if the new state is seen to last this many steps; shorter ones are ignored as if
            the state had never been left.

    Returns:
        (step, "open" | "close") in order; kinds alternate. The first state is where the gripper starts, not an event.
    """
    if min_dwell < 1:
        raise ValueError(f"min_dwell is {min_dwell}; expected at least 1 step")
    states = gripper_states(values, DeadBand(open_threshold, closed_threshold))
    starts = np.flatnonzero(np.diff(states, prepend=UNDECIDED))
    lengths = np.diff(starts, append=len(states))
    events: list[Event] = []
    current = UNDECIDED
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        state = int(states[start])
        if state == current or (current != UNDECIDED and length < min_dwell):
            continue
        if current != UNDECIDED:
            events.append((start, "open" if state == OPEN else "close"))
        current = state
    return events


def count_bounces(events: Sequence[Event], within: int = BOUNCE_STEPS) -> int:
    """How many events are undone by the next one within that many steps."""
    return int(np.count_nonzero(np.diff([step for step, _ in events]) <= within))


def order_of_events(
    events: Sequence[Event], chunks: ArrayLike, measured: ArrayLike, band: DeadBand = GRIPPER_BAND
) -> tuple[Order, ...]:
    """Of each event, whether the policy commanded it before the measurement had made it.

    A chunk is executed before the next one is asked for, so the gripper may have moved by the time that a chunk begins
    with the new state. The decision is looked for where it was made: in the last chunk since the event before that was
    answered while the old state was still measured. If no command in it asks for the new state, the change came from
    elsewhere (a hand, a recording), and the policy only repeats what it measures.

    Args:
        events: of the first command of each chunk, as ``gripper_events`` gives them.
        chunks: (N, T) commands of each chunk.
        measured: (N,) gripper that was measured before each chunk.
        band: for commands and measurement alike.

    Returns:
        "ahead": commanded first; "behind": measured first; "back": the measurement was in the new state all along.
    """
    said, seen = np.asarray(chunks, dtype=np.float64), gripper_states(measured, band)
    if said.ndim != 2 or len(said) != len(seen):
        raise ValueError(f"chunks have shape {said.shape} for {len(seen)} measurements; expected (N, T)")
    opens, closes = np.max(said, axis=1) >= band.open, np.min(said, axis=1) <= band.closed
    found: list[Order] = []
    since = 0
    for step, kind in events:
        (old,) = np.nonzero(seen[since : step + 1] == (CLOSED if kind == "open" else OPEN))
        asks = opens if kind == "open" else closes
        found.append("back" if not old.size else "ahead" if asks[since + old[-1]] else "behind")
        since = step
    return tuple(found)


def tolerance_steps(step_seconds: float | None) -> int:
    """TOLERANCE_SECONDS in steps, at least one; TOLERANCE_STEPS where the length of a step is not known."""
    return TOLERANCE_STEPS if step_seconds is None else max(1, round(TOLERANCE_SECONDS / step_seconds))


@dataclass(frozen=True)
class EventScore:
    """How predicted events agree with recorded ones.

    Attributes:
        matched: (recorded step, predicted step, kind) of each pair.
        missed: recorded events without a prediction.
        false: predicted events without a recording.
        bounces: predicted events that the next one undoes within BOUNCE_STEPS.
        step_seconds: length of a step, or None where it is not known.
        samples: predictions that were made of the same recording; the intervals are those of one.
    """

    matched: tuple[tuple[int, int, EventKind], ...]
    missed: tuple[Event, ...]
    false: tuple[Event, ...]
    bounces: int
    step_seconds: float | None = None
    samples: int = 1

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Steps by which each matched prediction is late (positive) or early (negative)."""
        return np.array([predicted - recorded for recorded, predicted, _ in self.matched], dtype=np.int64)

    @property
    def recall(self) -> float:
        """Share of recorded events that were predicted; NaN if nothing was recorded."""
        recorded = len(self.matched) + len(self.missed)
        return len(self.matched) / recorded if recorded else float("nan")

    @property
    def precision(self) -> float:
        """Share of predicted events that were recorded; NaN if nothing was predicted."""
        predicted = len(self.matched) + len(self.false)
        return len(self.matched) / predicted if predicted else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision: 2 matched / (recorded + predicted); 1 if neither side has an event."""
        total = 2 * len(self.matched) + len(self.missed) + len(self.false)
        return 2 * len(self.matched) / total if total else 1.0

    def __add__(self, other: EventScore) -> EventScore:
        """The score of two episodes together; steps stay those of each episode."""
        return EventScore(
            self.matched + other.matched,
            self.missed + other.missed,
            self.false + other.false,
            self.bounces + other.bounces,
            self.step_seconds if self.step_seconds is not None else other.step_seconds,
            max(self.samples, other.samples),
        )

    def to_json(self) -> dict[str, Any]:
        """Counts, offsets in steps and milliseconds, 95 % Wilson intervals of recall and precision."""
        offsets = self.offsets
        n_matched, n_missed, n_false = len(self.matched), len(self.missed), len(self.false)
        return {
            **asdict(self),
            "early": int((offsets < 0).sum()),
            "late": int((offsets > 0).sum()),
            "median_offset_steps": float(np.median(offsets)) if n_matched else None,
            "offsets_ms": None if self.step_seconds is None else (offsets * self.step_seconds * 1000).round(1).tolist(),
            "recall": None if np.isnan(self.recall) else self.recall,
            "recall_interval": self._interval(n_matched, n_matched + n_missed),
            "precision": None if np.isnan(self.precision) else self.precision,
            "precision_interval": self._interval(n_matched, n_matched + n_false),
            "f1": self.f1,
        }

    def _interval(self, successes: int, trials: int) -> tuple[float, float]:
        """Several predictions of one event are not several events: counted as their mean."""
        return wilson_interval(round(successes / self.samples), round(trials / self.samples))

    def sentence(self) -> str:
        """The counts in one line; of several predictions together."""
        low, high = self.to_json()["recall_interval"]
        offsets, counted = self.offsets, f" in {self.samples} samples" if self.samples > 1 else ""
        recorded = len(self.matched) + len(self.missed)
        late, early = int((offsets > 0).sum()), int((offsets < 0).sum())
        middle = float(np.median(offsets)) if offsets.size else None
        clock = "" if self.step_seconds is None or middle is None else f", {middle * self.step_seconds * 1000:+.0f} ms"
        median = "" if middle is None else f" (median {middle:+.3g} steps{clock})"
        return (
            f"{len(self.matched)} of {recorded} recorded events found{counted} (95 % interval {low:.0%}-{high:.0%}): "
            f"{early} early, {late} late{median}; {len(self.missed)} missed, {len(self.false)} false, "
            f"{self.bounces} undone at once"
        )


def score_gripper_events(
    predicted: ArrayLike,
    recorded: ArrayLike,
    tolerance_steps: int = TOLERANCE_STEPS,
    *,
    band: DeadBand = GRIPPER_BAND,
    min_dwell: int = 1,
    step_seconds: float | None = None,
) -> EventScore:
    """Compare the events of one episode's predicted commands (N,) with those of its recorded commands (N,).

    Events of one kind are paired so that most are matched within ``tolerance_steps``, and then the sum of offsets is
    smallest. ``min_dwell`` debounces the prediction only: a recording is what happened.
    """
    if np.shape(predicted) != np.shape(recorded):
        raise ValueError(f"predicted gripper has shape {np.shape(predicted)}, recorded {np.shape(recorded)}")
    ours = gripper_events(predicted, band.open, band.closed, min_dwell)
    theirs = gripper_events(recorded, band.open, band.closed)
    kinds: tuple[EventKind, ...] = ("open", "close")
    pairs = sorted(pair for kind in kinds for pair in _pair(theirs, ours, kind, tolerance_steps))
    matched_recorded = {(step, kind) for step, _, kind in pairs}
    matched_predicted = {(step, kind) for _, step, kind in pairs}
    return EventScore(
        tuple(pairs),
        tuple(event for event in theirs if event not in matched_recorded),
        tuple(event for event in ours if event not in matched_predicted),
        count_bounces(gripper_events(predicted, band.open, band.closed)),
        step_seconds,
    )


def _pair(
    theirs: Sequence[Event], ours: Sequence[Event], kind: EventKind, tolerance: int
) -> list[tuple[int, int, EventKind]]:
    recorded = np.array([step for step, name in theirs if name == kind], dtype=np.int64)
    predicted = np.array([step for step, name in ours if name == kind], dtype=np.int64)
    from scipy.optimize import linear_sum_assignment  # takes long to import, and logs alone never match events

    distance = np.abs(recorded[:, None] - predicted[None, :])
    # One pair outside the tolerance costs more than any number inside it: most matches first, then smallest offsets.
    cost = np.where(distance <= tolerance, distance, (tolerance + 1) * (min(distance.shape, default=0) + 1))
    rows, columns = linear_sum_assignment(cost)
    return [
        (int(recorded[r]), int(predicted[c]), kind)
        for r, c in zip(rows, columns, strict=True)
        if distance[r, c] <= tolerance
    ]
