"""The verdict on a sequence of gripper commands: how it is decided and worded, and how firm it is.

A log shows *when* a policy commands its gripper to close and open. Only a rollout shows whether it then holds
anything; no verdict here claims it. Verdicts are decided in this order; the numbers are the constants below:

1. too short: fewer than MIN_STEPS steps and no change ("every answer refused": no step at all, only errors);
2. pass-through of the measured gripper: the command equals the measurement at every step, to the last digit;
3. unknown scale: the commands are in a unit that is neither declared nor unambiguous (``gripper_scale``): no verdict;
4. never closes: no command at or below the closed threshold;  5. never opens: none at or above the open threshold;
6. chatters: at least CHATTER_BOUNCES changes are undone within BOUNCE_STEPS steps, and the gripper changes at least
   once in CHATTER_STEPS_PER_EVENT steps. A few quick reversals around one grasp are hesitation: named, not condemned;
7. follows the measured gripper: it changes after the measurement does, and no change was commanded before that anywhere
in a
   chunk. Someone else closed the gripper, or the recording did, and the policy repeats it;
8. opens and closes: it closes or opens by its own decision and does not chatter. Earlier versions called this
"learned".

Pure functions on arrays. N steps, T actions in a chunk; a command of 1 is open, 0 closed; a width is in meters. Steps
are counted by the log's own numbers, so steps missing from a log still count as time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.gripper_events import (
    BOUNCE_STEPS,
    CLOSED,
    GRIPPER_BAND,
    UNDECIDED,
    WIDTH_BAND,
    DeadBand,
    Event,
    Order,
    count_bounces,
    gripper_events,
    gripper_states,
    order_of_events,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Verdict = Literal[
    "opens and closes",
    "unknown scale",
    "never closes",
    "never opens",
    "pass-through of the measured gripper",
    "follows the measured gripper",
    "chatters",
    "no gripper command",
    "every answer refused",
    "too short",
]

OPENS_AND_CLOSES: Verdict = "opens and closes"
PASS_THROUGH: Verdict = "pass-through of the measured gripper"
UNKNOWN_SCALE: Verdict = "unknown scale"
ALL_REFUSED: Verdict = "every answer refused"
# With several grippers, the log's verdict is the first of these that any of them has.
WORST_FIRST: tuple[Verdict, ...] = (
    PASS_THROUGH,
    "follows the measured gripper",
    "never closes",
    "never opens",
    "chatters",
    UNKNOWN_SCALE,
    "too short",
    "no gripper command",
    ALL_REFUSED,
    OPENS_AND_CLOSES,
)
# Verdicts in files that earlier versions wrote, with their present names.
FORMER_VERDICTS: dict[str, Verdict] = {"learned": OPENS_AND_CLOSES}

# 4 s at six executed actions per step and 10 Hz. None of the 58 real logs of 8-D models is shorter.
MIN_STEPS = 5
# Fewer steps than this are weak evidence that a gripper would never close; the reason says so.
WEAK_STEPS = 20
# The real log that chatters undoes 44 of its 83 changes; the next worst undoes 8 of 10, around one grasp.
CHATTER_BOUNCES = 10
CHATTER_STEPS_PER_EVENT = 20


@dataclass(frozen=True)
class Thresholds:
    """How to read the numbers of one kind of gripper.

    Attributes:
        band: the thresholds.
        sweep: other thresholds, from no dead band to nearly the whole range, under which the verdict is repeated.
        reach: distance from the middle of the band to the end of the range.
        unit: unit to append to a number; empty for a command in 0..1.
    """

    band: DeadBand
    sweep: tuple[DeadBand, ...]
    reach: float
    unit: str = ""

    @property
    def middle(self) -> float:
        """The middle between open and closed."""
        return (self.band.open + self.band.closed) / 2

    def of_share(self, shares: FloatArray) -> FloatArray:
        """Converts (N,) from 0 closed .. 1 open to this scale."""
        return self.middle + (2 * shares - 1) * self.reach


def _bands(middle: float, halves: Sequence[float]) -> tuple[DeadBand, ...]:
    return tuple(DeadBand(round(middle + half, 4), round(middle - half, 4)) for half in halves)


COMMAND = Thresholds(GRIPPER_BAND, _bands(0.5, (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)), 0.5)
# The real gripper's commands are 0.03 to 0.08 m.
WIDTH = Thresholds(WIDTH_BAND, _bands(0.05, (0, 0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.0175)), 0.03, " m")


@dataclass(frozen=True)
class Commands:
    """A log's numbers for one gripper, in a scale with known thresholds.

    Attributes:
        first: (N,) the next command at each step.
        chunks: (N, T) all commands of each chunk.
        measured: (N,) the gripper before each command, in the same scale; None if not logged or its
            scale is unknown.
        numbers: (N,) the steps' own numbers, rising; 0, 1, ... by default.
        stride: their usual increment.
        copied: whether the command is the measurement at every step, as logged.
    """

    first: FloatArray
    chunks: FloatArray
    measured: FloatArray | None = None
    numbers: IntArray | None = None
    stride: int = 1
    copied: bool = False

    @property
    def at(self) -> IntArray:
        """(N,) the time of each step, in inferences since the first, including missing steps."""
        numbers = np.arange(len(self.first)) if self.numbers is None else self.numbers
        return (numbers - numbers[:1].sum()) // self.stride

    @property
    def duration(self) -> int:
        """Number of steps from the first to the last, including missing ones."""
        return int(self.at[-1]) + 1 if len(self.first) else 0

    def events(self, band: DeadBand) -> list[Event]:
        """Returns changes of the commanded state, by position in the log."""
        return gripper_events(self.first, band.open, band.closed)

    def named(self, events: Sequence[Event]) -> tuple[Event, ...]:
        """Returns events by the log's own step numbers."""
        return tuple((step if self.numbers is None else int(self.numbers[step]), kind) for step, kind in events)

    def timed(self, events: Sequence[Event]) -> list[Event]:
        """Returns events by their time (`at`)."""
        return [(int(self.at[step]), kind) for step, kind in events]

    def when(self, step: int) -> str:
        """Returns the step of an event in words: between two steps if the log lacks the one before it."""
        ((number, _),) = self.named([(step, "close")])
        if step and self.at[step] - self.at[step - 1] > 1:
            ((before, _),) = self.named([(step - 1, "close")])
            return f"between steps {before} and {number}"
        return f"at step {number}"

    def order(self, band: DeadBand) -> tuple[Order, ...] | None:
        """Returns for each event whether it was commanded before it was measured; None without a measurement."""
        if self.measured is None:
            return None
        return order_of_events(self.events(band), self.chunks, self.measured, band)


def decide(commands: Commands, band: DeadBand) -> Verdict:
    """Returns the verdict on commands whose scale is known, in the order of the module's docstring."""
    events, values = commands.events(band), commands.first
    if len(values) < MIN_STEPS and not events:
        return "too short"
    if commands.copied:
        return PASS_THROUGH
    if not (values <= band.closed).any():
        return "never closes"
    if not (values >= band.open).any():
        return "never opens"
    chatter = count_bounces(commands.timed(events)) >= CHATTER_BOUNCES
    if chatter and len(events) * CHATTER_STEPS_PER_EVENT >= commands.duration:
        return "chatters"
    order = commands.order(band) or ()
    if "ahead" not in order and "behind" in order:
        return "follows the measured gripper"
    return OPENS_AND_CLOSES


def sweep_dead_bands(commands: Commands, scale: Thresholds) -> tuple[dict[str, Any], ...]:
    """Returns events and verdict under each dead band of the scale's sweep."""
    return tuple(
        {
            "open": band.open,
            "closed": band.closed,
            "events": len(commands.events(band)),
            "verdict": decide(commands, band),
        }
        for band in scale.sweep
    )


def reason(verdict: Verdict, commands: Commands, scale: Thresholds) -> str:
    """Returns the evidence in one line."""
    values, events = commands.first, commands.events(scale.band)
    steps = counted(len(values), "step")
    weak = ", too few to be sure" if len(values) < WEAK_STEPS else ""
    span = f"{values.min():.3f}-{values.max():.3f}{scale.unit}"
    if verdict == "too short":
        return f"{steps} without a change; a verdict needs at least {MIN_STEPS}"
    if verdict == PASS_THROUGH:
        return f"the command equals the measured gripper at all {steps}: it is copied, not decided"
    if verdict == "never closes":
        return f"commands stay in {span}, none is <= {scale.band.closed}{scale.unit} ({steps}{weak})"
    if verdict == "never opens":
        return f"commands stay in {span}, none is >= {scale.band.open}{scale.unit} ({steps}{weak})"
    if verdict == "chatters":
        bounces = count_bounces(commands.timed(events))
        return f"{len(events)} changes in {steps}, {bounces} of them undone within {BOUNCE_STEPS} steps"
    if verdict == "follows the measured gripper":
        first, kind = events[0]
        count = f"{len(events)} changes, the first" if len(events) > 1 else "its one change, a"
        when = commands.when(first)
        return f"{count} {kind} {when}: none was commanded before it was measured; it is repeated, not decided"
    return _sequence_of_events(commands, events, scale.band)


def _sequence_of_events(commands: Commands, events: Sequence[Event], band: DeadBand) -> str:
    """Returns what a gripper that opens and closes does, and when."""
    first = next((step for step, kind in events if kind == "close"), None)
    opening = "starts closed" if first is None else f"closes {commands.when(first)}"
    following = next((step for step, kind in events if kind == "open" and (first is None or step > first)), None)
    ending = "" if following is None else f", opens {commands.when(following)}"
    order, bounces = commands.order(band), count_bounces(commands.timed(events))
    decided = "" if order is None else f", {order.count('ahead')} of them before the measured gripper"
    hesitation = f"; hesitates: {bounces} undone within {BOUNCE_STEPS} steps" if bounces else ""
    changes = f"{counted(len(events), 'change')} in {counted(len(commands.first), 'step')}"
    return f"{opening}{ending}; {changes}{decided}{hesitation}"


def counted(count: int, noun: str) -> str:
    """Returns a number and its noun."""
    return f"{count} {noun}{'s' if count != 1 else ''}"


def statistics(commands: Commands, scale: Thresholds, step_period: float | None) -> dict[str, Any]:
    """Returns the numbers behind a verdict, named as in ``GripperReport``."""
    values, band = commands.first, scale.band
    states, events = gripper_states(values, band), commands.events(band)
    decided = states[states != UNDECIDED]
    measured = None if commands.measured is None else gripper_states(commands.measured, band)
    order = commands.order(band)
    both = None if measured is None else (measured != UNDECIDED) & (states != UNDECIDED)
    timed = commands.timed(events)
    return {
        "duty_closed": float((decided == CLOSED).mean()) if decided.size else None,
        "dwell_steps": tuple(np.diff([step for step, _ in timed], append=commands.duration).tolist()) if events else (),
        "bounces": count_bounces(timed),
        "settled_events": len(gripper_events(values, band.open, band.closed, min_dwell=BOUNCE_STEPS + 1)),
        "flips_per_minute": len(events) / (commands.duration * step_period / 60) if step_period else None,
        "undecided": float(((values > band.closed) & (values < band.open)).mean()),
        "margin": float(min(1.0, np.median(np.abs(values - scale.middle)) / scale.reach)),
        "leads_measurement": None if order is None else order.count("ahead"),
        "agrees_with_measurement": (
            None if measured is None or both is None or not both.any() else float((states == measured)[both].mean())
        ),
    }
