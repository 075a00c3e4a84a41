"""Settings of the control loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.serve.client.observation_buffer import BufferSettings
from diffusion_policy.serve.client.requester import PolicyForm

DEFAULT_SMOOTHING = 2  # of commands that run an arm; docs/on_the_arm.md has what it does to jerk and success


@dataclass(frozen=True)
class LoopSettings:
    """How the arm is commanded, and when it holds.

    Attributes:
        control_hz: commands a second.
        answer_timeout_s: a request that is not answered for so long is abandoned, and the arm holds.
        max_action_age_s: no step is executed so long after the capture of the observation that it answers.
        longest_gap_s: after a control period that took longer the arm holds, and what was planned is forgotten (a slow
            call of the arm, a suspended process); None: 2.5 control periods, 0.1 s at least.
        camera_max_age_s: largest age of a camera's newest frame.
        camera_max_ages_s: the same of single cameras, by key.
        state_max_age_s: largest age of the measured state.
        gripper_blocking_s: how long the gripper takes to move; until then it gets no other command.
        retry_s: seconds between an error and the next request.
        expected_delay_s: from the capture of an observation to its answer, before any was measured.
        smoothing: passes of the filter over the steps of a plan, see ``smoothing``; 0: the policy's own steps.
    """

    control_hz: float
    answer_timeout_s: float = 1.0
    max_action_age_s: float = 2.0
    longest_gap_s: float | None = None
    camera_max_age_s: float = 0.3
    camera_max_ages_s: Mapping[str, float] = field(default_factory=dict)
    state_max_age_s: float = 0.2
    gripper_blocking_s: float = 0.0
    retry_s: float = 0.1
    expected_delay_s: float = 0.0
    smoothing: int = 0

    def __post_init__(self) -> None:
        """Refuses settings that mean nothing."""
        for name in ("control_hz", "answer_timeout_s", "max_action_age_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise WorkspaceError(f"{name} is {getattr(self, name)}; expected a number above 0")
        for name in ("gripper_blocking_s", "retry_s", "expected_delay_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise WorkspaceError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.smoothing < 0:
            raise WorkspaceError(f"smoothing is {self.smoothing}; expected 0 or more passes")
        if not self.period_s < self.gap_s < math.inf:
            raise WorkspaceError(
                f"longest_gap_s is {self.gap_s}; expected more than a control period, {self.period_s:g} s"
            )

    @property
    def period_s(self) -> float:
        """The control period."""
        return 1 / self.control_hz

    @property
    def gap_s(self) -> float:
        """The longest control period after which the arm still moves on."""
        return max(0.1, 2.5 * self.period_s) if self.longest_gap_s is None else self.longest_gap_s

    def buffer(self, form: PolicyForm) -> BufferSettings:
        """What is observed for a policy, and how old it may be."""
        return BufferSettings(
            form.layout,
            form.cameras,
            form.n_obs_steps,
            1 / form.control_hz,
            self.camera_max_age_s,
            self.camera_max_ages_s,
            self.state_max_age_s,
        )
