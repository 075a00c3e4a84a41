"""What an inference log shows: the gripper's verdict, and the numbers that other findings are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffusion_policy.evaluate.gripper import GripperReport, judge
from diffusion_policy.report.latency import Stage, latency_stages
from diffusion_policy.run_log import RunLog, read_log


@dataclass(frozen=True)
class LogEvidence:
    """One log.

    Attributes:
        log: as read.
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
        """Of the file."""
        return self.log.path.name

    @property
    def offline(self) -> bool:
        """Whether it is of recorded episodes, not of the robot."""
        return "dataset" in self.log.meta


def look_at_log(path: str | Path) -> LogEvidence:
    """Read and judge a log; RunLogError if it cannot be read."""
    return evidence_of(read_log(path))


def evidence_of(log: RunLog) -> LogEvidence:
    """The evidence that a log gives."""
    commands, states = log.commands, log.states
    distance = error = None
    if len(log.steps):
        distance = float(np.median(np.linalg.norm(commands[:, :3] - states[:, :3], axis=1)))
    if log.layout in ("xyz_quat", "xyz_quat_gripper"):
        error = float(np.abs(np.linalg.norm(log.actions[..., 3:7], axis=-1) - 1).max())
    return LogEvidence(log, judge(log), distance, error, latency_stages(log))
