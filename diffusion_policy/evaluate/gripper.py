"""Did the policy learn to grasp? The verdict on one log, with its evidence in one line.

The verdict is decided in this order; the numbers are the constants below:

1. no gripper command: the action has no 0..1 gripper (seven numbers, or numbers of no known layout);
2. too short: fewer than MIN_STEPS steps and no change;
3. pass-through of the measured gripper: the command equals the measurement at every step, to the last digit;
4. never closes: no command <= 0.3;  5. never opens: no command >= 0.7;
6. chatters: at least CHATTER_BOUNCES changes are undone within BOUNCE_STEPS steps, and the gripper changes at least
   once in CHATTER_STEPS_PER_EVENT steps. A few quick reversals around one grasp are hesitation: named, not condemned;
7. learned: it closes or opens, and stays so.

The naive check ("more than one distinct value, and it changes") stands beside it: it calls every one of these learned
that is not constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.evaluate.events import (
    BOUNCE_STEPS,
    CLOSED,
    GRIPPER_BAND,
    OPEN,
    UNDECIDED,
    WIDTH_BAND,
    DeadBand,
    Event,
    EventScore,
    count_bounces,
    gripper_events,
    gripper_states,
    score_gripper_events,
)
from diffusion_policy.run_log import RunLog, RunLogError, read_log

__all__ = [
    "DeadBand",
    "EventScore",
    "GripperReport",
    "Unreadable",
    "gripper_events",
    "judge",
    "judge_file",
    "score_gripper_events",
]

Verdict = Literal[
    "learned",
    "never closes",
    "never opens",
    "pass-through of the measured gripper",
    "chatters",
    "no gripper command",
    "too short",
]

# 4 s at six executed actions of 10 Hz a step. Of the 58 real logs of 8-D models none is shorter.
MIN_STEPS = 5
# Fewer steps than this are weak evidence that a gripper would never close; the reason says so.
WEAK_STEPS = 20
# The real log that chatters undoes 44 of its 83 changes; the next worst undoes 8 of 10, around one grasp.
CHATTER_BOUNCES = 10
CHATTER_STEPS_PER_EVENT = 20
# How firm a verdict is: it is asked again under these dead bands, from none to nearly the whole range.
SWEEP = tuple(DeadBand(open=1 - edge, closed=edge) for edge in (0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05))
_DECIMALS = 6


@dataclass(frozen=True)
class GripperReport:
    """What one log shows of the gripper; ``to_json`` holds every attribute under its name.

    Attributes:
        file: name of the log.
        verdict: see the module's text.
        reason: the evidence in one line.
        generation, layout, steps, action_dim, images: what the log is.
        gripper_min, gripper_max, distinct_values: of the commands, in the log's unit (a width in metres for
            ``xyz_rotvec_width``); None without any gripper number.
        events: (step, "open" | "close") under the dead band; empty without a 0..1 gripper.
        opens, closes: whether any command lies at or beyond the open or closed threshold; None without a 0..1 gripper.
        equals_measured_gripper: the command is the measurement at every step.
        naive: what the naive check says: its verdict, the distinct values and the changes it counts.
        duty_closed: share of decided steps in which the gripper is commanded closed.
        dwell_steps: steps from each event to the next, the last one to the end.
        bounces: events undone within BOUNCE_STEPS.
        settled_events: events that remain when states must last longer than BOUNCE_STEPS.
        flips_per_minute: None where the log has no clock.
        undecided: share of commands inside the dead band.
        margin: median distance of the commands from the middle of the band, 1 = at the end of the range.
        leads_measurement: events that command a state the measurement is not in yet; a policy that only ever follows
            the measurement has 0. None without a measurement.
        sweep: events and verdict under each dead band of SWEEP.
        firmness: share of those bands that give this verdict; None without a sweep.
        width_events: events of a gripper width in metres under WIDTH_BAND, for the rotation-vector layout.
    """

    file: str
    verdict: Verdict
    reason: str
    generation: int
    layout: str
    steps: int
    action_dim: int
    gripper_min: float | None
    gripper_max: float | None
    distinct_values: int
    events: tuple[Event, ...]
    opens: bool | None
    closes: bool | None
    equals_measured_gripper: bool
    images: int
    naive: Mapping[str, Any]
    duty_closed: float | None = None
    dwell_steps: tuple[int, ...] = ()
    bounces: int = 0
    settled_events: int = 0
    flips_per_minute: float | None = None
    undecided: float | None = None
    margin: float | None = None
    leads_measurement: int | None = None
    sweep: tuple[Mapping[str, Any], ...] = ()
    firmness: float | None = None
    width_events: tuple[Event, ...] = ()

    @property
    def learned(self) -> bool:
        """Whether the gripper is commanded to close and to open, and keeps its mind."""
        return self.verdict == "learned"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; events are [step, kind]."""
        return {**asdict(self), "events": [list(event) for event in self.events]}


@dataclass(frozen=True)
class Unreadable:
    """A log that could not be read, among others that could."""

    file: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the keys that every entry has."""
        return {"file": self.file, "verdict": "unreadable", "reason": self.reason}


def judge_file(path: str | Path) -> GripperReport | Unreadable:
    """Read and judge one log; a log that cannot be read becomes an entry that says why, and hides no other."""
    try:
        return judge(read_log(path))
    except RunLogError as error:
        return Unreadable(str(path), str(error))


def judge(log: RunLog) -> GripperReport:
    """Judge the gripper of one log."""
    gripper = log.commands[:, -1] if log.layout in ("xyz_quat_gripper", "xyz_rotvec_width") else None
    distinct = 0 if gripper is None else len(np.unique(gripper))
    changes = 0 if gripper is None else int(np.count_nonzero(np.diff(gripper)))
    facts: dict[str, Any] = {
        "file": log.path.name,
        "generation": log.generation,
        "layout": log.layout,
        "steps": len(log.steps),
        "action_dim": log.commands.shape[1],
        "gripper_min": None if gripper is None else round(float(gripper.min()), _DECIMALS),
        "gripper_max": None if gripper is None else round(float(gripper.max()), _DECIMALS),
        "distinct_values": distinct,
        "images": sum(step.jpeg is not None for step in log.steps),
        "naive": {
            "verdict": "learned" if distinct > 1 and changes else "not learned",
            "distinct_values": distinct,
            "changes": changes,
        },
    }
    if log.layout != "xyz_quat_gripper" or gripper is None:
        return _without_command(log, facts)
    measured = log.measured_gripper
    equal = measured is not None and bool((gripper == measured).all())
    events = gripper_events(gripper)
    verdict = _verdict(gripper, equals_measured=equal)
    sweep = [_under(band, gripper, equals_measured=equal) for band in SWEEP]
    return GripperReport(
        **facts,
        verdict=verdict,
        reason=_reason(verdict, gripper, events),
        events=tuple(events),
        opens=bool((gripper >= GRIPPER_BAND.open).any()),
        closes=bool((gripper <= GRIPPER_BAND.closed).any()),
        equals_measured_gripper=equal,
        sweep=tuple(sweep),
        firmness=sum(entry["verdict"] == verdict for entry in sweep) / len(sweep),
        **_statistics(gripper, events, measured, log.step_period),
    )


def _verdict(gripper: NDArray[np.float64], *, equals_measured: bool, band: DeadBand = GRIPPER_BAND) -> Verdict:
    """The decision, in the order of the module's text, for commands (N,) of the 0..1 gripper."""
    events = gripper_events(gripper, band.open, band.closed)
    if len(gripper) < MIN_STEPS and not events:
        return "too short"
    if equals_measured:
        return "pass-through of the measured gripper"
    if not (gripper <= band.closed).any():
        return "never closes"
    if not (gripper >= band.open).any():
        return "never opens"
    if count_bounces(events) >= CHATTER_BOUNCES and len(events) * CHATTER_STEPS_PER_EVENT >= len(gripper):
        return "chatters"
    return "learned"


def _under(band: DeadBand, gripper: NDArray[np.float64], *, equals_measured: bool) -> dict[str, Any]:
    return {
        "open": band.open,
        "closed": band.closed,
        "events": len(gripper_events(gripper, band.open, band.closed)),
        "verdict": _verdict(gripper, equals_measured=equals_measured, band=band),
    }


def _reason(verdict: Verdict, gripper: NDArray[np.float64], events: list[Event]) -> str:
    steps = f"{len(gripper)} step{'s' if len(gripper) != 1 else ''}"
    weak = ", too few to be sure" if len(gripper) < WEAK_STEPS else ""
    span = f"{gripper.min():.3f}-{gripper.max():.3f}"
    bounces = count_bounces(events)
    if verdict == "too short":
        return f"{steps} without a change; at least {MIN_STEPS} are needed to say anything"
    if verdict == "pass-through of the measured gripper":
        return f"the command equals the measured gripper at all {steps}: it is copied, not decided"
    if verdict == "never closes":
        return f"commands stay in {span}, none is <= {GRIPPER_BAND.closed} ({steps}{weak})"
    if verdict == "never opens":
        return f"commands stay in {span}, none is >= {GRIPPER_BAND.open} ({steps}{weak})"
    if verdict == "chatters":
        return f"{len(events)} changes in {steps}, {bounces} of them undone within {BOUNCE_STEPS} steps"
    first = next((step for step, kind in events if kind == "close"), None)
    opening = "starts closed" if first is None else f"closes at step {first}"
    following = next((step for step, kind in events if kind == "open" and (first is None or step > first)), None)
    ending = "" if following is None else f", opens at step {following}"
    hesitation = f"; hesitates: {bounces} undone within {BOUNCE_STEPS} steps" if bounces else ""
    return f"{opening}{ending}; {len(events)} change{'s' if len(events) != 1 else ''} in {steps}{hesitation}"


def _statistics(
    gripper: NDArray[np.float64],
    events: list[Event],
    measured: NDArray[np.float64] | None,
    step_period: float | None,
) -> dict[str, Any]:
    states = gripper_states(gripper)
    decided = states[states != UNDECIDED]
    inside = (gripper > GRIPPER_BAND.closed) & (gripper < GRIPPER_BAND.open)
    leads = None
    if measured is not None:
        seen = gripper_states(measured)
        leads = sum(int(seen[step]) == (CLOSED if kind == "open" else OPEN) for step, kind in events)
    return {
        "duty_closed": float((decided == CLOSED).mean()) if decided.size else None,
        "dwell_steps": tuple(np.diff([step for step, _ in events], append=len(gripper)).tolist()) if events else (),
        "bounces": count_bounces(events),
        "settled_events": len(gripper_events(gripper, min_dwell=BOUNCE_STEPS + 1)),
        "flips_per_minute": len(events) / (len(gripper) * step_period / 60) if step_period else None,
        "undecided": float(inside.mean()),
        "margin": float(min(1.0, np.median(np.abs(gripper - 0.5)) * 2)),
        "leads_measurement": leads,
    }


def _without_command(log: RunLog, facts: Mapping[str, Any]) -> GripperReport:
    verdict: Verdict = "no gripper command"
    width_events: list[Event] = []
    if not log.steps:
        verdict, reason = "too short", "the log holds no step"
    elif log.layout == "xyz_quat":
        reason = "seven numbers, x y z qx qy qz qw: a pose without a gripper"
    elif log.layout == "xyz_rotvec_width":
        width = log.commands[:, -1]
        width_events = gripper_events(width, WIDTH_BAND.open, WIDTH_BAND.closed)
        reason = (
            f"seven numbers, x y z rx ry rz width: a width of {width.min():.3f}-{width.max():.3f} m with "
            f"{len(width_events)} changes (open >= {WIDTH_BAND.open} m, closed <= {WIDTH_BAND.closed} m), "
            "no 0..1 gripper"
        )
    else:
        reason = f"{log.commands.shape[1]} numbers a command that fit no known layout"
    return GripperReport(
        **facts,
        verdict=verdict,
        reason=reason,
        events=(),
        opens=None,
        closes=None,
        equals_measured_gripper=False,
        width_events=tuple(width_events),
    )
