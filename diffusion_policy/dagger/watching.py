"""Traces of a policy's episodes on the tabletop: enough to find where it erred, and to replay it to that state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from diffusion_policy.env_runner.simulator import Env, FloatArray, Simulator
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_events import CLIENT_THRESHOLD
from diffusion_policy.sim.tabletop import Tabletop
from diffusion_policy.sim.tabletop_env import TabletopEnv
from diffusion_policy.spec import POSE, POSE_GRIPPER, ActionLayout

_LAYOUT = ActionLayout.of(POSE_GRIPPER)


@dataclass(frozen=True)
class TabletopState:
    """The state of the tabletop before one command.

    Attributes:
        tips: (3,) meters, the point between the fingertips.
        opening: opening of the fingers, 0 = closed, 1 = open.
        target: number of the first target that is not yet in the tray; of the last target, if all are.
        holds: whether the target is between the closed fingers.
        block: (3,) meters, the target's center.
    """

    tips: FloatArray
    opening: float
    target: int
    holds: bool
    block: FloatArray

    @classmethod
    def of(cls, tabletop: Tabletop) -> TabletopState:
        """Returns the current state of a tabletop."""
        targets = range(tabletop.scene.n_targets)
        target = next((number for number in targets if not tabletop.is_placed(number)), targets[-1])
        return cls(
            tips=tips_of(tabletop),
            opening=tabletop.opening,
            target=target,
            holds=tabletop.held == target,
            block=tabletop.blocks[target].position.copy(),
        )


def tips_of(tabletop: Tabletop) -> FloatArray:
    """Returns the point between the fingertips (3,), in meters."""
    (tips,) = ActionLayout.of(POSE).positions(tabletop.pose)
    return tips


@dataclass
class Trace:
    """One episode: ``actions[t]`` (8,) float32 was commanded in the state ``states[t]``."""

    actions: list[NDArray[np.float32]] = field(default_factory=list)
    states: list[TabletopState] = field(default_factory=list)

    @property
    def wants_open(self) -> list[bool]:
        """Whether each command opens the gripper."""
        return [bool(_LAYOUT.grippers(action) > CLIENT_THRESHOLD) for action in self.actions]


class _TracedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A tabletop that records a trace of each episode, by the seed of its scene."""

    def __init__(self, env: Env, traces: dict[int, Trace]) -> None:
        super().__init__(env)
        self._traces = traces
        self._trace = Trace()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        begun = super().reset(seed=seed, options=options)
        self._trace = Trace()
        if seed is not None:
            self._traces[seed] = self._trace
        return begun

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._trace.states.append(TabletopState.of(tabletop_of(self.env).tabletop))
        self._trace.actions.append(np.array(action, dtype=np.float32))
        return super().step(action)


@dataclass(frozen=True)
class TracedSimulator(Simulator):
    """Settings of a tabletop whose environments record traces.

    Attributes:
        traces: every started episode, by seed of its scene.
    """

    traces: dict[int, Trace] = field(default_factory=dict)

    @classmethod
    def over(cls, simulator: Simulator) -> TracedSimulator:
        """Returns the same settings, with traces."""
        return cls(**{name: getattr(simulator, name) for name in Simulator.__dataclass_fields__})

    def make(self) -> Env:
        """Creates an environment."""
        return _TracedEnv(super().make(), self.traces)


def tabletop_of(env: Env) -> TabletopEnv:
    """Returns the tabletop environment inside its wrappers.

    Raises:
        WorkspaceError: the environment is another simulator, for which there is no expert.
    """
    if not isinstance(env.unwrapped, TabletopEnv):
        raise WorkspaceError(
            f"the simulator is a {type(env.unwrapped).__name__}; experts know the built-in tabletop and the grove"
        )
    return env.unwrapped
