"""What a policy did on the tabletop, step by step: enough to tell where it went wrong, and to go there again."""

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
class Seen:
    """The tabletop before one command.

    Attributes:
        tips: (3,) meters, the point between the fingertips.
        opening: of the fingers, 0 = shut, 1 = open.
        target: number of the first target that is not in the tray yet; of the last one, if all are.
        holds: whether the target is between closed fingers.
        block: (3,) meters, the target's center.
    """

    tips: FloatArray
    opening: float
    target: int
    holds: bool
    block: FloatArray

    @classmethod
    def of(cls, tabletop: Tabletop) -> Seen:
        """Look at it now."""
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
    """(3,) metres, the point between its fingertips."""
    (tips,) = ActionLayout.of(POSE).positions(tabletop.pose)
    return tips


@dataclass
class Trace:
    """One episode: ``actions[t]`` (8,) float32 was commanded in the state ``seen[t]``."""

    actions: list[NDArray[np.float32]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    @property
    def wants_open(self) -> list[bool]:
        """What each command said to the fingers."""
        return [bool(_LAYOUT.grippers(action) > CLIENT_THRESHOLD) for action in self.actions]


class _WatchedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A tabletop that writes its episodes down, by the seed of their scenes."""

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
        self._trace.seen.append(Seen.of(tabletop_of(self.env).tabletop))
        self._trace.actions.append(np.array(action, dtype=np.float32))
        return super().step(action)


@dataclass(frozen=True)
class WatchedSimulator(Simulator):
    """A tabletop's settings, whose environments write down what happens.

    Attributes:
        traces: by seed of the scene, every episode that was begun.
    """

    traces: dict[int, Trace] = field(default_factory=dict)

    @classmethod
    def over(cls, simulator: Simulator) -> WatchedSimulator:
        """The same settings, watched."""
        return cls(**{name: getattr(simulator, name) for name in Simulator.__dataclass_fields__})

    def make(self) -> Env:
        """A new environment."""
        return _WatchedEnv(super().make(), self.traces)


def tabletop_of(env: Env) -> TabletopEnv:
    """The tabletop's own environment.

    Raises:
        WorkspaceError: it is another simulator, for which there is no expert.
    """
    if not isinstance(env.unwrapped, TabletopEnv):
        raise WorkspaceError(
            f"the simulator is a {type(env.unwrapped).__name__}; the scripted expert knows the built-in tabletop only"
        )
    return env.unwrapped
