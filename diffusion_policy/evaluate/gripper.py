"""Did the policy learn to grasp? The verdict on one log, with its evidence in one line.

How a verdict is decided stands in ``verdicts``. A log without a 0..1 gripper has the verdict "no gripper command";
where its numbers are rotation vector and gripper width, the width is judged in the same way under thresholds of its
own (``width_verdict``).

The naive check ("more than one distinct value, and it changes") stands beside it: it calls every one of these learned
that is not constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy.evaluate.verdicts import (
    COMMAND,
    WIDTH,
    Commands,
    Verdict,
    asked_again,
    decide,
    reason,
    statistics,
)
from diffusion_policy.gripper_events import DeadBand, Event, EventScore, gripper_events, score_gripper_events
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
        leads_measurement: events that a chunk commanded before they were measured (``events.order_of_events``); a
            policy that only ever follows the measurement has 0. None without a measurement.
        agrees_with_measurement: share of steps at which commanded and measured state are the same.
        sweep: events and verdict under each dead band of the scale's sweep.
        firmness: share of those bands that give this verdict; None without a sweep.
        width_verdict: verdict on a gripper width in metres under WIDTH_BAND; None for other layouts. The statistics are
            then those of the width.
        width_events: its events.
        commands: (N,) the gripper numbers of the log, to be drawn; not part of ``to_json``.
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
    agrees_with_measurement: float | None = None
    sweep: tuple[Mapping[str, Any], ...] = ()
    firmness: float | None = None
    width_verdict: Verdict | None = None
    width_events: tuple[Event, ...] = ()
    commands: tuple[float, ...] = ()

    @property
    def learned(self) -> bool:
        """Whether the gripper is commanded to close and to open, and keeps its mind."""
        return self.verdict == "learned"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; events are [step, kind]."""
        named = {**asdict(self), "events": [list(event) for event in self.events]}
        del named["commands"]
        return named


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
        "commands": () if gripper is None else tuple(gripper.tolist()),
        "naive": {
            "verdict": "learned" if distinct > 1 and changes else "not learned",
            "distinct_values": distinct,
            "changes": changes,
        },
    }
    if gripper is not None:
        commands = Commands(gripper, log.actions[..., -1], log.measured_gripper)
        return (
            _of_command(log, commands, facts) if log.layout == "xyz_quat_gripper" else _of_width(log, commands, facts)
        )
    return _without_gripper(log, facts)


def _of_command(log: RunLog, commands: Commands, facts: Mapping[str, Any]) -> GripperReport:
    verdict, band = decide(commands, COMMAND.band), COMMAND.band
    sweep = asked_again(commands, COMMAND)
    return GripperReport(
        **facts,
        verdict=verdict,
        reason=reason(verdict, commands, COMMAND),
        events=tuple(commands.events(band)),
        opens=bool((commands.first >= band.open).any()),
        closes=bool((commands.first <= band.closed).any()),
        equals_measured_gripper=commands.copied,
        sweep=sweep,
        firmness=sum(entry["verdict"] == verdict for entry in sweep) / len(sweep),
        **statistics(commands, COMMAND, log.step_period),
    )


def _of_width(log: RunLog, commands: Commands, facts: Mapping[str, Any]) -> GripperReport:
    verdict, band = decide(commands, WIDTH.band), WIDTH.band
    sweep = asked_again(commands, WIDTH)
    said = f"a width in metres, no 0..1 gripper: by its own thresholds {verdict}; {reason(verdict, commands, WIDTH)}"
    return GripperReport(
        **facts,
        verdict="no gripper command",
        reason=said,
        events=(),
        opens=None,
        closes=None,
        equals_measured_gripper=False,
        width_verdict=verdict,
        width_events=tuple(commands.events(band)),
        sweep=sweep,
        firmness=sum(entry["verdict"] == verdict for entry in sweep) / len(sweep),
        **statistics(commands, WIDTH, log.step_period),
    )


def _without_gripper(log: RunLog, facts: Mapping[str, Any]) -> GripperReport:
    verdict: Verdict = "no gripper command"
    if not log.steps:
        verdict, said = "too short", "the log holds no step"
    elif log.layout == "xyz_quat":
        said = "seven numbers, x y z qx qy qz qw: a pose without a gripper"
    else:
        said = f"{log.commands.shape[1]} numbers a command that fit no known layout"
    return GripperReport(
        **facts, verdict=verdict, reason=said, events=(), opens=None, closes=None, equals_measured_gripper=False
    )
