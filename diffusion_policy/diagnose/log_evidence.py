"""Evidence from an inference log: the gripper's verdict, and the numbers that other findings are based on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffusion_policy.diagnose.latency import Stage, latency_stages
from diffusion_policy.evaluate.gripper import GripperReport, judge
from diffusion_policy.gripper_scale import DeclaredScales
from diffusion_policy.run_log import RunLog, read_log


@dataclass(frozen=True)
class LogEvidence:
    """One log.

    Attributes:
        log: the log as read, its gripper as 0..1 where its scale is known.
        gripper: the verdict.
        command_distance_m: median distance of the first action from the measured position; None without positions.
        quaternion_error: largest distance of a predicted quaternion's norm from 1; None for other layouts.
        stages: latencies, as far as the log's clocks can be trusted.
    """

    log: RunLog
    gripper: GripperReport
    command_distance_m: float | None = None
    quaternion_error: float | None = None
    stages: tuple[Stage, ...] = field(default=())

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.log.path.name

    @property
    def offline(self) -> bool:
        """Whether it was made from recorded episodes, not on the robot."""
        return "dataset" in self.log.meta


def look_at_log(path: str | Path, declared: DeclaredScales | None = None) -> LogEvidence:
    """Reads and judges a log; the scale of its gripper may be declared. Raises RunLogError if it cannot be read."""
    return evidence_of(read_log(path), declared)


def evidence_of(log: RunLog, declared: DeclaredScales | None = None) -> LogEvidence:
    """Returns the evidence of a log."""
    verdict, scales = judge(log, declared), log.gripper_scales(declared)
    if scales is not None and scales.command.scale is not None and not scales.command.is_internal:
        log = log.converted(scales)
    return LogEvidence(log, verdict, _command_distance(log), _quaternion_error(log), latency_stages(log))


def _command_distance(log: RunLog) -> float | None:
    """Returns meters; with several arms, for the farthest one."""
    action, state = log.action_layout, log.state_layout
    if not log.steps or action is None or state is None:
        return None
    commanded, measured = action.positions(log.commands), state.positions(log.states)
    both = [arm for arm in action.labels("position") if arm in state.labels("position")]
    columns = [(action.labels("position").index(arm), state.labels("position").index(arm)) for arm in both]
    away = [np.linalg.norm(commanded[:, ours] - measured[:, theirs], axis=1) for ours, theirs in columns]
    return max((float(np.median(meters)) for meters in away), default=None)


def _quaternion_error(log: RunLog) -> float | None:
    layout = log.action_layout
    if not log.steps or layout is None:
        return None
    arms = [arm for arm in layout.arms if arm.representation == "quaternion"]
    norms = [np.linalg.norm(log.actions[..., list(arm.rotation)], axis=-1) for arm in arms]
    return max((float(np.abs(norm - 1).max()) for norm in norms), default=None)
