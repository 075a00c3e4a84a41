"""Whether the policy commands its gripper to close and open: the verdict on one log, with its evidence in one line.

For how a verdict is decided, and what it does not show, see ``verdicts``. Commands in a scale other than 0..1 are
converted if the scale is known (declared, labeled or found: ``gripper_scale``); otherwise the verdict is "unknown
scale". A log without a gripper command has the verdict "no gripper command"; if its numbers are a rotation vector and a
gripper width, and no scale is declared, the width is judged in the same way with its own thresholds
(``width_verdict``). With several arms each gripper is judged; the log's verdict is the worst of theirs, and its reason
names the arm.

The naive check ("more than one distinct value, and it changes") is reported as well; it calls every gripper learned
that is not constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.evaluate.verdicts import (
    ALL_REFUSED,
    COMMAND,
    MIN_STEPS,
    OPENS_AND_CLOSES,
    PASS_THROUGH,
    UNKNOWN_SCALE,
    WIDTH,
    WORST_FIRST,
    Commands,
    Thresholds,
    Verdict,
    counted,
    decide,
    reason,
    statistics,
    sweep_dead_bands,
)
from diffusion_policy.gripper_events import DeadBand, Event, EventScore, gripper_events, score_gripper_events
from diffusion_policy.gripper_scale import DeclaredScales, GripperScale, ResolvedScales
from diffusion_policy.run_log import RunLog, RunLogError, read_log
from diffusion_policy.run_log.log import LoggedGripper

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

FloatArray = NDArray[np.float64]

_DECIMALS = 6


@dataclass(frozen=True)
class GripperReport:
    """What one log shows about the gripper; ``to_json`` holds every attribute under its name.

    Attributes:
        file: name of the log.
        verdict: see the module's docstring.
        reason: the evidence in one line.
        generation, layout, steps, action_dim, images: properties of the log.
        gripper_min, gripper_max, distinct_values: statistics of the commands, in the log's unit (a width in meters for
            ``xyz_rotvec_width``); None without any gripper number.
        events: (step, "open" | "close") under the dead band, by the log's own numbers; empty without a gripper command
            of a known scale.
        opens, closes: whether any command is at or beyond the open or closed threshold; None without such a command.
        equals_measured_gripper: whether the command equals the measurement at every step.
        naive: result of the naive check: its verdict, and the distinct values and changes that it counts.
        duty_closed: share of decided steps in which the gripper is commanded closed.
        dwell_steps: number of steps from each event to the next, and from the last to the end.
        bounces: number of events undone within BOUNCE_STEPS.
        settled_events: number of events that remain when states must last longer than BOUNCE_STEPS.
        flips_per_minute: flips per minute; None if the log has no clock.
        undecided: share of commands inside the dead band.
        margin: median distance of the commands from the middle of the band, 1 = at the end of the range.
        leads_measurement: number of events that a chunk commanded before they were measured
            (``events.order_of_events``); a policy that only ever follows the measurement has 0. None without a
            measurement.
        agrees_with_measurement: share of steps at which the commanded and measured states agree.
        sweep: events and verdict under each dead band of the scale's sweep.
        firmness: share of those bands that give this verdict; None without a sweep.
        width_verdict: verdict on a gripper width in meters under WIDTH_BAND; None for other layouts. The statistics are
            then those of the width.
        width_events: events of the width.
        gripper_scale, measured_scale: names of the scales of command and measurement; None if unknown or absent.
        scale_origin: how the command's scale is known: "declared", "labeled", "found" or "unknown"; None without one.
        missing_steps: (first, last) step number of each gap in the log.
        errors: number of messages answered with an error instead of an action, by code.
        oddities: other irregularities of the log, one sentence each.
        arms: the verdict of each arm's gripper; empty, and not in ``to_json``, with a single arm.
        commands: (N,) the log's gripper numbers, for drawing: 0..1 if their scale is known, otherwise as logged; not
            in ``to_json``. With several arms, those of the arm that the verdict is about.
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
    gripper_scale: str | None = None
    measured_scale: str | None = None
    scale_origin: str | None = None
    missing_steps: tuple[tuple[int, int], ...] = ()
    errors: Mapping[str, int] = field(default_factory=dict)
    oddities: tuple[str, ...] = ()
    arms: Mapping[str, Verdict] = field(default_factory=dict)
    commands: tuple[float, ...] = ()

    @property
    def opens_and_closes(self) -> bool:
        """Whether the policy commands the gripper to close and open by its own decision, without chattering."""
        return self.verdict == OPENS_AND_CLOSES

    @property
    def learned(self) -> bool:
        """Former name of `opens_and_closes`."""
        return self.opens_and_closes

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON; events are [step, kind]."""
        named = {**asdict(self), "events": [list(event) for event in self.events]}
        del named["commands"]
        if not self.arms:
            del named["arms"]
        return named


@dataclass(frozen=True)
class Unreadable:
    """A log that could not be read, among others that could."""

    file: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON, with the keys that every entry has."""
        return {"file": self.file, "verdict": "unreadable", "reason": self.reason}


def judge_file(path: str | Path, declared: DeclaredScales | None = None) -> GripperReport | Unreadable:
    """Reads and judges one log; one that cannot be read becomes an entry with the reason and does not affect others."""
    try:
        return judge(read_log(path), declared)
    except RunLogError as error:
        return Unreadable(str(path), str(error))


def judge(log: RunLog, declared: DeclaredScales | None = None) -> GripperReport:
    """Judges the gripper of one log.

    Args:
        log: a log of any generation.
        declared: scale of its gripper, if declared.

    Raises:
        RunLogError: its numbers contradict the declared scale.
    """
    scales = log.gripper_scales(declared)
    if scales is None:
        return _without_gripper(log, _facts(log, None, None))
    reports = {gripper.arm: _judge_gripper(log, gripper, scales, declared) for gripper in log.grippers}
    return _worst(reports) if len(reports) > 1 else next(iter(reports.values()))


def _worst(reports: Mapping[str, GripperReport]) -> GripperReport:
    """Returns the report of the arm with the worst verdict; its reason names that arm and the other verdicts."""
    arm = min(reports, key=lambda name: WORST_FIRST.index(reports[name].verdict))
    others = "".join(f"; {name}: {report.verdict}" for name, report in reports.items() if name != arm)
    arms = {name: report.verdict for name, report in reports.items()}
    return replace(reports[arm], reason=f"{arm}: {reports[arm].reason}{others}", arms=arms)


def _judge_gripper(
    log: RunLog, gripper: LoggedGripper, scales: ResolvedScales, declared: DeclaredScales | None
) -> GripperReport:
    facts = _facts(log, gripper, scales)
    if log.layout == "xyz_rotvec_width" and declared is None:
        return _of_width(log, gripper, scales, facts)
    if scales.command.scale is None:
        return _of_unknown_scale(log, gripper, scales, facts)
    return _of_command(log, gripper, scales.command.scale, scales, facts)


def _facts(log: RunLog, logged: LoggedGripper | None, scales: ResolvedScales | None) -> dict[str, Any]:
    """Returns the part of a report that does not depend on the verdict."""
    gripper = None if logged is None else logged.commands
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
        "images": sum(bool(step.frames) for step in log.steps),
        "missing_steps": log.missing,
        "errors": dict(log.errors),
        "oddities": log.oddities,
        "commands": () if gripper is None else tuple(gripper.tolist()),
        "naive": {
            "verdict": "learned" if distinct > 1 and changes else "not learned",
            "distinct_values": distinct,
            "changes": changes,
        },
    }
    if scales is not None:
        facts |= {"gripper_scale": _name(scales.command.scale), "scale_origin": scales.command.origin}
        facts["measured_scale"] = None if scales.measured is None else _name(scales.measured.scale)
    return facts


def _name(scale: GripperScale | None) -> str | None:
    return None if scale is None else scale.name


def _commands(log: RunLog, logged: LoggedGripper, scale: GripperScale | None, measured: FloatArray | None) -> Commands:
    """Returns the log's commands in 0..1 (as logged if the scale is unknown), and the measurement likewise."""
    gripper = logged.chunks if scale is None else scale.to_internal(logged.chunks)
    return Commands(gripper[:, 0], gripper, measured, log.numbers, log.stride, logged.is_copied)


def _judged(commands: Commands, scale: Thresholds, log: RunLog) -> dict[str, Any]:
    """Returns verdict, events and statistics under a scale's thresholds, named as in ``GripperReport``."""
    verdict, sweep = decide(commands, scale.band), sweep_dead_bands(commands, scale)
    return {
        "verdict": verdict,
        "reason": reason(verdict, commands, scale),
        "events": commands.named(commands.events(scale.band)),
        "opens": bool((commands.first >= scale.band.open).any()),
        "closes": bool((commands.first <= scale.band.closed).any()),
        "equals_measured_gripper": commands.copied,
        "sweep": sweep,
        "firmness": sum(entry["verdict"] == verdict for entry in sweep) / len(sweep),
        **statistics(commands, scale, log.step_period),
    }


def _of_command(
    log: RunLog, gripper: LoggedGripper, scale: GripperScale, scales: ResolvedScales, facts: dict[str, Any]
) -> GripperReport:
    measured, aside = gripper.measured, ""
    if scales.measured is not None and measured is not None:
        known = scales.measured.scale
        measured = None if known is None else known.to_internal(measured)
        if known is None:
            aside = (
                f"; the measured gripper ({scales.measured.span}) is in an unknown "
                f"scale and was ignored: {scales.flag()}"
            )
    commands = _commands(log, gripper, scale, measured)
    judged = _judged(commands, COMMAND, log)
    if not scale.is_internal:
        aside += f"; {scales.command.reason}, converted to 0..1"
    facts |= {"commands": tuple(commands.first.tolist())}
    return GripperReport(**facts | judged | {"reason": judged["reason"] + aside + _odd(log)})


def _of_width(log: RunLog, gripper: LoggedGripper, scales: ResolvedScales, facts: dict[str, Any]) -> GripperReport:
    measured = gripper.measured
    if measured is not None and scales.measured is not None and scales.measured.is_internal:
        measured = WIDTH.of_share(measured)  # a measurement in 0..1 with a command in meters
    width = _judged(_commands(log, gripper, None, measured), WIDTH, log)
    text = (
        f"a width in meters, not a 0..1 gripper: by its own thresholds {width['verdict']}; {width['reason']}{_odd(log)}"
    )
    unsaid = {"events": (), "opens": None, "closes": None, "equals_measured_gripper": False}
    judged = {"width_verdict": width["verdict"], "width_events": width["events"]}
    return GripperReport(**facts | width | unsaid | judged | {"verdict": "no gripper command", "reason": text})


def _of_unknown_scale(
    log: RunLog, gripper: LoggedGripper, scales: ResolvedScales, facts: dict[str, Any]
) -> GripperReport:
    command, copied, steps = scales.command, gripper.is_copied, counted(len(log.steps), "step")
    text = f"commands are {command.span} in {steps}: {command.reason}"
    verdict, text = UNKNOWN_SCALE, f"{text}; declare it: {scales.advice()}"
    if copied and len(log.steps) >= MIN_STEPS:
        copy = f"the command equals the measured gripper at all {steps}: it is copied, not decided"
        verdict, text = PASS_THROUGH, f"{copy}; {text}"
    return GripperReport(
        **facts,
        verdict=verdict,
        reason=text + _odd(log),
        events=(),
        opens=None,
        closes=None,
        equals_measured_gripper=copied,
    )


def _odd(log: RunLog) -> str:
    """Returns missing steps and refused messages, to append to a reason."""
    return "".join(f"; {oddity}" for oddity in log.oddities)


def _without_gripper(log: RunLog, facts: Mapping[str, Any]) -> GripperReport:
    verdict: Verdict = "no gripper command"
    if not log.steps:
        return GripperReport(
            **facts, verdict=ALL_REFUSED if log.is_refused else "too short", reason=log.why_empty, events=(),
            opens=None, closes=None, equals_measured_gripper=False,
        )  # fmt: skip
    if log.layout == "xyz_quat":
        text = "seven numbers, x y z qx qy qz qw: a pose without a gripper"
    elif log.layout == "named" and log.action_layout is not None:
        text = f"{log.commands.shape[1]} numbers without a gripper: {log.action_layout.describe()}"
    else:
        text = f"{log.commands.shape[1]} numbers per command that fit no known layout"
    return GripperReport(
        **facts, verdict=verdict, reason=text + _odd(log), events=(), opens=None, closes=None,
        equals_measured_gripper=False,
    )  # fmt: skip
