"""Events of a gripper: when it opens and closes, under a dead band, and how two sequences of events agree.

A predicted gripper is a noisy number between 0 and 1. "It changes, so it learned" is wrong: values that wander between
0.977 and 1.000 change at every step but never close the gripper. So an event is a change of *state*, and a state is
left only when the command crosses the far edge of a dead band.

Pure functions on arrays: validation during training, recorded episodes and logs of the robot all use these.
Gripper 1 = open, 0 = closed; a step is one command; N steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.intervals import Interval, defined, wilson_interval

EventKind = Literal["open", "close"]
Event = tuple[int, EventKind]
Order = Literal["ahead", "behind", "back"]

UNDECIDED, CLOSED, OPEN = -1, 0, 1
# A state that is left again within this many steps was not a decision.
BOUNCE_STEPS = 2
# Recorded and predicted events further apart than this are not the same event. The default for every reported F1: in
# training, open loop and tuning.
TOLERANCE_SECONDS = 1.0
# Control rate that is assumed for data without a clock; reports say so.
ASSUMED_HZ = 10.0
TOLERANCE_STEPS = round(TOLERANCE_SECONDS * ASSUMED_HZ)
# Step lengths that differ by less than this share count as one control rate.
_SAME_RATE = 0.05


@dataclass(frozen=True)
class DeadBand:
    """Commands >= ``open`` open the gripper, commands <= ``closed`` close it, and those in between change nothing."""

    open: float
    closed: float

    def __post_init__(self) -> None:
        if not self.closed <= self.open:
            raise ValueError(f"dead band closes at {self.closed} and opens at {self.open}; expected closed <= open")


# For a command in 0..1, and for a width in meters: recordings call a gripper wider than 5 cm open.
GRIPPER_BAND = DeadBand(open=0.7, closed=0.3)
WIDTH_BAND = DeadBand(open=0.06, closed=0.04)
# The robot's client has no dead band: it opens on a command above this, and closes on any other.
CLIENT_THRESHOLD = 0.5


def gripper_states(values: ArrayLike, band: DeadBand = GRIPPER_BAND) -> NDArray[np.int8]:
    """State after each of N commands: OPEN, CLOSED, or UNDECIDED before the first that leaves the dead band."""
    commands = np.asarray(values, dtype=np.float64)
    if commands.ndim != 1:
        raise ValueError(f"gripper commands have shape {commands.shape}; expected one number per step, (N,)")
    decided = np.where(commands >= band.open, OPEN, np.where(commands <= band.closed, CLOSED, UNDECIDED))
    last = np.maximum.accumulate(np.where(decided != UNDECIDED, np.arange(len(commands)), -1))
    return np.where(last >= 0, decided[last], UNDECIDED).astype(np.int8) if len(commands) else decided.astype(np.int8)


def gripper_events(
    values: ArrayLike,
    open_threshold: float = GRIPPER_BAND.open,
    closed_threshold: float = GRIPPER_BAND.closed,
    min_dwell: int = 1,
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
    """For each event, whether the policy commanded it before it was measured.

    A chunk is executed before the next one is requested, so the gripper may have moved by the time a chunk begins with
    the new state. The decision is looked for where it was made: in the last chunk since the previous event that was
    answered while the old state was still measured. If no command in it calls for the new state, the change came from
    elsewhere (a hand, a recording), and the policy only repeats what it measures.

    Args:
        events: of the first command of each chunk, as returned by ``gripper_events``.
        chunks: (N, T) commands of each chunk.
        measured: (N,) gripper measured before each chunk.
        band: for commands and measurement alike.

    Returns:
        "ahead": commanded first; "behind": measured first; "back": the measurement was in the new state all along.
    """
    commanded, measured_states = np.asarray(chunks, dtype=np.float64), gripper_states(measured, band)
    if commanded.ndim != 2 or len(commanded) != len(measured_states):
        raise ValueError(
            f"chunks have shape {commanded.shape} for {len(measured_states)} measurements; expected (N, T)"
        )
    opens, closes = np.max(commanded, axis=1) >= band.open, np.min(commanded, axis=1) <= band.closed
    orders: list[Order] = []
    since = 0
    for step, kind in events:
        (old,) = np.nonzero(measured_states[since : step + 1] == (CLOSED if kind == "open" else OPEN))
        asks = opens if kind == "open" else closes
        orders.append("back" if not old.size else "ahead" if asks[since + old[-1]] else "behind")
        since = step
    return tuple(orders)


def tolerance_steps(step_seconds: float | None, tolerance_s: float = TOLERANCE_SECONDS) -> int:
    """A tolerance in steps, at least one, since recordings resolve gripper motion no better.

    Args:
        step_seconds: between two steps of the data; None if it has no clock; ASSUMED_HZ is then used.
        tolerance_s: in seconds.

    Raises:
        ValueError: one of them is not positive and finite.
    """
    seconds = 1 / ASSUMED_HZ if step_seconds is None else step_seconds
    if not (0 < seconds < math.inf and 0 < tolerance_s < math.inf):
        raise ValueError(f"a tolerance of {tolerance_s} s at {seconds} s per step; expected positive numbers")
    return max(1, round(tolerance_s / seconds))


def control_period(timestamps: ArrayLike | None) -> float | None:
    """Median seconds between the steps of one episode, from time stamps (N,) in seconds; None if they are not a
    clock's.

    That is: no time stamps, fewer than two, or a median that is not positive and finite.
    """
    times = np.asarray(() if timestamps is None else timestamps, dtype=np.float64)
    if len(times) < 2:
        return None
    median = float(np.median(np.diff(times)))
    return median if 0 < median < math.inf else None


@dataclass(frozen=True)
class EventScore:
    """How predicted events agree with recorded ones.

    Attributes:
        matched: (recorded step, predicted step, kind) of each pair.
        missed: recorded events without a prediction.
        false: predicted events without a recording.
        bounces: predicted events that the next one undoes within BOUNCE_STEPS.
        step_seconds: length of a step; None if unknown, or if it differs between the episodes.
        samples: number of predictions of the same recording; the intervals are those for one.
        tolerance_s: how far apart a pair may be.
        tolerance_steps: the same in steps; None if steps differ between the episodes.
    """

    matched: tuple[tuple[int, int, EventKind], ...]
    missed: tuple[Event, ...]
    false: tuple[Event, ...]
    bounces: int
    step_seconds: float | None = None
    samples: int = 1
    tolerance_s: float = TOLERANCE_SECONDS
    tolerance_steps: int | None = TOLERANCE_STEPS

    @property
    def recorded(self) -> int:
        """Recorded events, found or not."""
        return len(self.matched) + len(self.missed)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Steps by which each matched prediction is late (positive) or early (negative)."""
        return np.array([predicted - recorded for recorded, predicted, _ in self.matched], dtype=np.int64)

    @property
    def recall(self) -> float:
        """Share of recorded events that were predicted; NaN if nothing was recorded."""
        return len(self.matched) / self.recorded if self.recorded else math.nan

    @property
    def precision(self) -> float:
        """Share of predicted events that were recorded; NaN if nothing was predicted."""
        predicted = len(self.matched) + len(self.false)
        return len(self.matched) / predicted if predicted else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision, 2 matched / (recorded + predicted); NaN if nothing was recorded.

        Without a recorded event there was nothing to find, so predictors cannot be compared by what they found;
        ``false`` counts what they invented.
        """
        predicted = len(self.matched) + len(self.false)
        return 2 * len(self.matched) / (self.recorded + predicted) if self.recorded else math.nan

    @property
    def tolerance(self) -> str:
        """The tolerance by name: "1 s (10 steps)"."""
        if self.tolerance_steps is None:
            return f"{self.tolerance_s:.3g} s"
        steps = f"{self.tolerance_steps} step{'s' if self.tolerance_steps > 1 else ''}"
        clock = "" if self.step_seconds is not None else f", at {ASSUMED_HZ:g} Hz: the data has no clock"
        return f"{self.tolerance_s:.3g} s ({steps}{clock})"

    def __add__(self, other: EventScore) -> EventScore:
        """The score of two episodes together; steps stay those of each episode.

        Raises:
            ValueError: they were scored with different tolerances.
        """
        if not math.isclose(self.tolerance_s, other.tolerance_s):
            raise ValueError(
                f"scores within {self.tolerance_s:.3g} s and within {other.tolerance_s:.3g} s cannot be added"
            )
        return EventScore(
            self.matched + other.matched,
            self.missed + other.missed,
            self.false + other.false,
            self.bounces + other.bounces,
            self.step_seconds if _same_rate(self.step_seconds, other.step_seconds) else None,
            max(self.samples, other.samples),
            self.tolerance_s,
            self.tolerance_steps if self.tolerance_steps == other.tolerance_steps else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Counts, offsets in steps and milliseconds, 95 % Wilson intervals of recall and precision.

        None means undefined: shares of nothing and their intervals, a median without offsets.
        """
        offsets = self.offsets
        n_matched, n_missed, n_false = len(self.matched), len(self.missed), len(self.false)
        return {
            **asdict(self),
            "early": int((offsets < 0).sum()),
            "late": int((offsets > 0).sum()),
            "median_offset_steps": float(np.median(offsets)) if n_matched else None,
            "offsets_ms": None if self.step_seconds is None else (offsets * self.step_seconds * 1000).round(1).tolist(),
            "recall": defined(self.recall),
            "recall_interval": self._interval(n_matched, n_matched + n_missed),
            "precision": defined(self.precision),
            "precision_interval": self._interval(n_matched, n_matched + n_false),
            "f1": defined(self.f1),
        }

    def _interval(self, successes: int, trials: int) -> Interval | None:
        """Several predictions of one event are not several events: they count as their mean. None without a trial."""
        counted = round(trials / self.samples)
        return wilson_interval(min(round(successes / self.samples), counted), counted) if counted else None

    def sentence(self) -> str:
        """The counts in one line; several predictions are counted together."""
        counted = f" in {self.samples} samples" if self.samples > 1 else ""
        made = f"{len(self.false)} false, {self.bounces} undone at once"
        if not self.recorded:
            return f"no event is recorded, so F1 and recall are undefined{counted}; {made}"
        interval, offsets = self._interval(len(self.matched), self.recorded), self.offsets
        text = "" if interval is None else f" (95 % interval {interval[0]:.0%}-{interval[1]:.0%})"
        late, early = int((offsets > 0).sum()), int((offsets < 0).sum())
        middle = float(np.median(offsets)) if offsets.size else None
        clock = "" if self.step_seconds is None or middle is None else f", {middle * self.step_seconds * 1000:+.0f} ms"
        median = "" if middle is None else f" (median {middle:+.3g} steps{clock})"
        return (
            f"{len(self.matched)} of {self.recorded} recorded events found{counted}{text}: {early} early, "
            f"{late} late{median}; {len(self.missed)} missed, {made}; found means within {self.tolerance}"
        )


def _same_rate(first: float | None, second: float | None) -> bool:
    return first == second or (
        first is not None and second is not None and abs(first - second) <= _SAME_RATE * max(first, second)
    )


def score_gripper_events(
    predicted: ArrayLike,
    recorded: ArrayLike,
    tolerance_steps: int | None = None,
    *,
    band: DeadBand = GRIPPER_BAND,
    min_dwell: int = 1,
    step_seconds: float | None = None,
    tolerance_s: float = TOLERANCE_SECONDS,
) -> EventScore:
    """Compare the events of one episode's predicted commands with those of its recorded commands.

    Every gripper F1 comes from here: in validation during training, open loop and tuning. Events of one kind are paired
    so that as many as possible match within the tolerance and, among such pairings, the sum of offsets is smallest.

    Args:
        predicted: (N,) one command for each recorded step.
        recorded: (N,)
        tolerance_steps: the tolerance counted in steps, instead of ``tolerance_s``.
        band: dead band of both.
        min_dwell: debounces the prediction only, since a recording is what happened.
        step_seconds: between two steps, see ``control_period``; None without a clock; ASSUMED_HZ is then used.
        tolerance_s: seconds that a pair may be apart, but at least one step.

    Raises:
        ValueError: the lengths differ, or the tolerance is not positive.
    """
    if np.shape(predicted) != np.shape(recorded):
        raise ValueError(f"predicted gripper has shape {np.shape(predicted)}, recorded {np.shape(recorded)}")
    steps, seconds = _tolerance(tolerance_steps, tolerance_s, step_seconds)
    ours = gripper_events(predicted, band.open, band.closed, min_dwell)
    theirs = gripper_events(recorded, band.open, band.closed)
    kinds: tuple[EventKind, ...] = ("open", "close")
    pairs = sorted(pair for kind in kinds for pair in _pair(theirs, ours, kind, steps))
    matched_recorded = {(step, kind) for step, _, kind in pairs}
    matched_predicted = {(step, kind) for _, step, kind in pairs}
    return EventScore(
        matched=tuple(pairs),
        missed=tuple(event for event in theirs if event not in matched_recorded),
        false=tuple(event for event in ours if event not in matched_predicted),
        bounces=count_bounces(gripper_events(predicted, band.open, band.closed)),
        step_seconds=step_seconds,
        tolerance_s=seconds,
        tolerance_steps=steps,
    )


def _tolerance(given: int | None, tolerance_s: float, step_seconds: float | None) -> tuple[int, float]:
    """The tolerance in steps and in seconds; ``given``, in steps, takes precedence over seconds."""
    if given is None:
        return tolerance_steps(step_seconds, tolerance_s), tolerance_s
    return given, given / ASSUMED_HZ if step_seconds is None else given * step_seconds


def _pair(
    theirs: Sequence[Event], ours: Sequence[Event], kind: EventKind, tolerance: int
) -> list[tuple[int, int, EventKind]]:
    recorded = np.array([step for step, name in theirs if name == kind], dtype=np.int64)
    predicted = np.array([step for step, name in ours if name == kind], dtype=np.int64)
    from scipy.optimize import linear_sum_assignment  # slow to import, and logs alone never match events

    distance = np.abs(recorded[:, None] - predicted[None, :])
    # One pair outside the tolerance costs more than any number inside it: most matches first, then smallest offsets.
    cost = np.where(distance <= tolerance, distance, (tolerance + 1) * (min(distance.shape, default=0) + 1))
    rows, columns = linear_sum_assignment(cost)
    return [
        (int(recorded[r]), int(predicted[c]), kind)
        for r, c in zip(rows, columns, strict=True)
        if distance[r, c] <= tolerance
    ]
