"""The score of a run: its figures at the best measured epoch, by which runs are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusion_policy.diagnose.closed_loop_findings import closed_loop_findings
from diffusion_policy.diagnose.findings import Finding, diagnose, level_of
from diffusion_policy.diagnose.run_kinds import findings_of_run
from diffusion_policy.intervals import Interval, wilson_interval
from diffusion_policy.report.rollouts import NOT_ROLLED_OUT, Rollouts
from diffusion_policy.run_folder.reading import RunFolder, is_finite, motion_error, ranked_by

# Figures that rank epochs of a run, and runs, in order; multiplied by the sign, larger is better.
RANKED = (("test_success", 1), ("val_gripper_f1", 1), ("val_position_error_mm", -1), ("val_loss", -1))
HEAD = (
    "run",
    "updates",
    "success",
    "success during training",
    "F1 (within)",
    "events found (95 % interval)",
    "false flips",
    "position (mm)",
    "validation loss",
)


@dataclass(frozen=True)
class RunScore:
    """The figures of a run at its best measured epoch; None if not measured or not defined.

    Attributes:
        run: the run.
        update: update of the best epoch.
        f1: F1 of gripper events.
        tolerance: tolerance of F1, such as "1 s"; None if unknown.
        success: share of scenes done in closed loop during training, with its 95 % interval.
        found, recorded, false_flips: numbers of gripper events in held-out episodes.
        position_mm: mean error; None for a layout without a pose.
        val_loss: validation loss at that epoch, or the lowest one.
        rollouts: closed-loop results of its checkpoints.
        motion: mean error of positions, or of joints without a pose, and its unit.
    """

    run: RunFolder
    update: int | None
    f1: float | None
    found: int | None
    recorded: int | None
    false_flips: int | None
    position_mm: float | None
    val_loss: float | None
    tolerance: str | None = None
    success: float | None = None
    success_interval: Interval | None = None
    rollouts: Rollouts = NOT_ROLLED_OUT
    motion: tuple[float, str] | None = None

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint to deploy: the one rolled out, best.ckpt if both were; otherwise the run's deployable one."""
        chosen = self.rollouts.chosen
        return self.run.deployable if chosen is None else chosen.checkpoint

    @property
    def interval(self) -> Interval | None:
        """95 % Wilson interval of the share of events found; None if no event is recorded."""
        return wilson_interval(self.found or 0, self.recorded) if self.recorded else None

    @property
    def measured(self) -> bool:
        """Whether any figure that ranks runs is defined."""
        return any(value is not None for value in self.figures())

    @property
    def may_be_deployed(self) -> bool:
        """Whether it has a checkpoint, and nothing forbids deploying it."""
        return self.checkpoint is not None and level_of(self.findings) != "bad"

    @cached_property
    def findings(self) -> list[Finding]:
        """The findings of doctor and report about it."""
        return [*findings_of_run(self.run), *closed_loop_findings(self.rollouts.looked, self.run.deployable)]

    @property
    def cause(self) -> Finding | None:
        """The cause if something is wrong with it."""
        return diagnose(self.findings).cause

    def figures(self) -> tuple[float | None, ...]:
        """The figures that rank runs: success of rollouts, then in the order of RANKED; smaller is better."""
        share = self.rollouts.share
        done = None if share is None else share.count / share.of
        falling = [None if value is None else -value for value in (done, self.success, self.f1)]
        return (*falling, None if self.motion is None else self.motion[0], self.val_loss)

    def cells(self) -> list[str]:
        """The row of the score table."""
        interval = self.interval
        recall = "-" if interval is None else f"{self.found} of {self.recorded} ({interval[0]:.0%}-{interval[1]:.0%})"
        within = "" if self.f1 is None or self.tolerance is None else f" ({self.tolerance})"
        return [
            self.run.name,
            str(self.run.updates),
            self._success_cell(),
            share_cell(self.success, self.success_interval),
            f"{cell(self.f1)}{within}",
            recall,
            "-" if self.false_flips is None else str(self.false_flips),
            self.motion_cell(),
            cell(self.val_loss),
        ]

    def motion_cell(self) -> str:
        """Returns the motion error, with its unit where it differs from the heading's."""
        if self.motion is None or self.position_mm is not None:
            return cell(self.position_mm)
        error, unit = self.motion
        return f"{cell(error)} {unit} (joints)".replace("  ", " ")

    def _success_cell(self) -> str:
        """Returns the success of its rollouts, with the checkpoint's name if it is not the best one."""
        if self.rollouts.share is None or self.checkpoint is None:
            return "-"
        return f"{self.rollouts.share}" + (
            "" if self.checkpoint == self.run.deployable else f", {self.checkpoint.name}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "run": str(self.run.path),
            "updates": self.run.updates,
            "best_update": self.update,
            "closed_loop": self.rollouts.to_json(),
            "success": self.success,
            "success_interval": None if self.success_interval is None else list(self.success_interval),
            "gripper_f1": self.f1,
            "gripper_tolerance": self.tolerance,
            "events_found": self.found,
            "events_recorded": self.recorded,
            "interval": None if self.interval is None else list(self.interval),
            "false_flips": self.false_flips,
            "position_error_mm": self.position_mm,
            **({} if self.motion is None or self.position_mm is not None else {"joint_error": list(self.motion)}),
            "val_loss": self.val_loss,
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
        }


def score_run(run: RunFolder, rollouts: Rollouts = NOT_ROLLED_OUT) -> RunScore:
    """Scores a run at its best measured epoch: highest F1, lowest position (or else joint) error, lowest loss.

    As in `checkpoint.best`, an epoch is not ranked by a figure that is not defined for it.
    """
    lowest = min((value for _, value in run.curve("val_loss")), default=None)
    tolerance = run.last("val_gripper_tolerance_s")  # F1 from before a change of the tolerance cannot be compared
    lines = [
        line
        for line in run.metrics
        if figure(line, "val_gripper_f1") is None or figure(line, "val_gripper_tolerance_s") == tolerance
    ]
    measured = [line for line in lines if any(_ranked(line, key) is not None for key, _ in RANKED)]
    if not measured:
        return RunScore(run, None, None, None, None, None, None, lowest, rollouts=rollouts)
    line = max(measured, key=lambda line: [_rank(_ranked(line, key), sign) for key, sign in RANKED])
    loss = figure(line, "val_loss")
    return RunScore(
        run,
        int(line["global_step"]),
        figure(line, "val_gripper_f1"),
        _count(line, "val_gripper_events_found"),
        _count(line, "val_gripper_events_recorded"),
        _count(line, "val_gripper_false_flips"),
        figure(line, "val_position_error_mm"),
        lowest if loss is None else loss,
        run.tolerance,
        figure(line, "test_success"),
        _interval_of(line, "test_success"),
        rollouts,
        motion_error(line),
    )


def _ranked(line: Mapping[str, Any], key: str) -> float | None:
    value = ranked_by(line, key)
    return float(value) if is_finite(value) else None


def figure(line: Mapping[str, Any], key: str) -> float | None:
    """Returns a figure from a line of metrics; None if not measured or not defined."""
    return float(line[key]) if is_finite(line.get(key)) else None


def _interval_of(line: Mapping[str, Any], key: str) -> Interval | None:
    low, high = figure(line, f"{key}_low"), figure(line, f"{key}_high")
    return None if low is None or high is None else (low, high)


def _rank(value: float | None, sign: int) -> tuple[bool, float]:
    return value is not None, 0.0 if value is None else sign * value


def _count(line: Mapping[str, Any], key: str) -> int | None:
    value = figure(line, key)
    return None if value is None else int(value)


def share_cell(value: float | None, interval: Interval | None = None) -> str:
    """Returns a share with its interval, for a table; "-" if not measured."""
    if value is None:
        return "-"
    return f"{value:.0%}" + ("" if interval is None else f" ({interval[0]:.0%}-{interval[1]:.0%})")


def cell(value: float | None) -> str:
    """Returns a number for a table; "-" if not measured."""
    return "-" if value is None else f"{value:.3g}"
