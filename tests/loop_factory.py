"""A numeric arm, and a policy that follows a known path, for the tests of the control loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffusion_policy.serve.client import (
    Chunk,
    ChunkRequest,
    ControlLoop,
    DelayedRequester,
    LinesInMemory,
    LoopSettings,
    Picture,
    PolicyForm,
    Reading,
    VirtualClock,
    make_strategy,
)
from diffusion_policy.spec import POSE_GRIPPER, ActionLayout

LAYOUT = ActionLayout.of(POSE_GRIPPER)
HOME = np.array([0.5, 0.0, 0.3, 1.0, 0.0, 0.0, 0.0, 1.0])
N_STEPS = 8
SPEED = 0.1  # meters a second, of the policy below


def form(cameras: tuple[str, ...] = ("image",), continuations: tuple[str, ...] = ("warm_start", "rtc")) -> PolicyForm:
    return PolicyForm(LAYOUT, cameras, 2, N_STEPS, 10.0, continuations)


@dataclass
class NumericArm:
    """Follows every command at once. ``told`` holds the commands: (time, action), None if it was held."""

    clock: VirtualClock
    cameras: tuple[str, ...] = ("image",)
    state: np.ndarray = field(default_factory=HOME.copy)
    sent: list[tuple[float, np.ndarray | None]] = field(default_factory=list)
    stopped: int = 0

    def observe(self) -> Reading:
        now = self.clock.now()
        return Reading(self.state.copy(), now, {camera: Picture(b"jpeg", now) for camera in self.cameras})

    def move(self, action: np.ndarray) -> None:
        self.state = action.copy()
        self.sent.append((self.clock.now(), action.copy()))

    def hold(self, reason: str) -> None:
        self.sent.append((self.clock.now(), None))

    def stop(self) -> None:
        self.stopped += 1

    @property
    def xs(self) -> list[float | None]:
        return [None if action is None else round(float(action[0]), 6) for _, action in self.sent]


def forward(query: ChunkRequest, n_steps: int = N_STEPS) -> Chunk:
    """Moves along x from where the arm was seen, a centimeter per step."""
    seen = query.observation
    actions = np.tile(seen.states[-1], (n_steps, 1))
    actions[:, 0] += SPEED / 10 * np.arange(1, n_steps + 1)
    return Chunk(actions, seen.observed_at + np.arange(n_steps) / 10)


def make_loop(
    strategy: str = "wait",
    n_action_steps: int = 4,
    ask: Callable[[ChunkRequest], Chunk] = forward,
    delay: Callable[[int], float] = lambda request: 0.0,
    arm: Callable[[VirtualClock], Any] = NumericArm,
    **settings: Any,
) -> tuple[ControlLoop, Any, VirtualClock, LinesInMemory]:
    clock, log = VirtualClock(100.0), LinesInMemory()
    made = arm(clock)
    loop = ControlLoop(
        made,
        DelayedRequester(ask, clock, delay),
        form(getattr(made, "cameras", ("image",))),
        make_strategy(strategy, n_action_steps),
        LoopSettings(**{"control_hz": 10.0, **settings}),
        clock=clock,
        log=log,
        run_id="t",
    )
    return loop, made, clock, log


def run_for(loop: ControlLoop, clock: VirtualClock, seconds: float) -> None:
    end = clock.now() + seconds
    loop.run(lambda: clock.now() >= end - 1e-9)
