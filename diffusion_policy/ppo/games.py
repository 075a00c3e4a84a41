"""One environment of many: its episodes are seeded, and it can be restored to an earlier state.

The state of a Gymnasium environment cannot be saved. What is saved is how it arose: the episode's seed and the actions
since its reset. Replayed, they give the same state if the environment is deterministic; the frame shows whether it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.ppo import PPOError
from diffusion_policy.ppo.outcomes import Outcome
from diffusion_policy.spec import ImageArray, StepSpec


@dataclass(frozen=True)
class Played:
    """The result of one action.

    Attributes:
        frame: (H, W, 3) uint8 RGB, seen after it, in the same episode.
        reward: of the action, including shaping.
        terminated: whether the episode ended because of what happened in it.
        truncated: whether it was cut short.
        outcome: of the episode, if it has ended.
    """

    frame: ImageArray
    reward: float
    terminated: bool
    truncated: bool
    outcome: Outcome | None


@dataclass(frozen=True)
class Shaping:
    """Rewards for progress toward success that do not change the optimal policy (Ng, Harada and Russell 1999).

    The reward of a step is increased by discount * potential(after) - potential(before); progress that is lost again is
    subtracted, and an episode that terminates ends at potential 0.

    Attributes:
        weights: of entries of the environment's info; their weighted sum is the potential.
        discount: of the run's rewards.
    """

    weights: Mapping[str, float]
    discount: float

    def potential(self, info: Mapping[str, Any]) -> float:
        """The potential of a state described by info.

        Raises:
            PPOError: info lacks an entry.
        """
        lacking = [name for name in self.weights if name not in info]
        if lacking:
            raise PPOError(f"ppo.shaping names {lacking}; the environment's info has {sorted(info)}")
        return sum(weight * float(info[name]) for name, weight in self.weights.items())


class Game:
    """An environment and its current episode.

    Args:
        simulator: creates the environment, and reads its observations.
        spec: of the policy: one camera, and the names of the action.
        seed: of the run.
        number: of this environment among the run's.
        shaping: of rewards; None: the environment's own.
    """

    def __init__(self, simulator: Simulator, spec: StepSpec, seed: int, number: int, shaping: Shaping | None = None):
        self._simulator, self._spec, self._seed, self.number = simulator, spec, seed, number
        self._shaping = shaping or Shaping({}, 1.0)
        self._potential = 0.0
        self._env = simulator.make()
        self._episode = -1
        self._actions: list[NDArray[np.float64]] = []
        self._total = 0.0
        self._camera = spec.rgb[0]

    def reset(self) -> ImageArray:
        """Start the next episode, and return its first frame (H, W, 3)."""
        return self._start(self._episode + 1)

    def step(self, action: NDArray[np.float64]) -> Played:
        """Act.

        Args:
            action: (Da,) numbers in the order of ``spec.action_names``.
        """
        observation, reward, terminated, truncated, info = self._env.step(
            self._simulator.to_env(action, self._spec.action_names)
        )
        self._actions.append(action)
        self._total += float(reward)
        outcome = None
        if terminated or truncated:
            success = self._simulator.succeeded(info, float(reward), terminated=terminated)
            outcome = Outcome(self._total, len(self._actions), success)
        before, self._potential = self._potential, 0.0 if terminated else self._shaping.potential(info)
        shaped = float(reward) + self._shaping.discount * self._potential - before
        return Played(self._frame(observation), shaped, bool(terminated), bool(truncated), outcome)

    def close(self) -> None:
        """End the environment."""
        self._env.close()

    def to_plain(self) -> dict[str, Any]:
        """The episode's number and its actions (n, Da) since its first frame."""
        width = len(self._spec.action_names)
        actions = np.stack(self._actions) if self._actions else np.zeros((0, width))
        return {"episode": self._episode, "actions": torch.from_numpy(actions)}

    def restore(self, plain: dict[str, Any], expected: ImageArray) -> ImageArray | None:
        """Replay an episode up to where it was.

        Args:
            plain: from ``to_plain``.
            expected: (H, W, 3) the frame that was seen then.

        Returns:
            The frame; None if another one is seen now, because the environment is not deterministic.
        """
        frame = self._start(int(plain["episode"]))
        for action in plain["actions"].numpy():
            frame = self.step(action).frame
        return frame if np.array_equal(frame, expected) else None

    def _start(self, episode: int) -> ImageArray:
        self._episode, self._actions, self._total = episode, [], 0.0
        drawn = np.random.SeedSequence([self._seed, self.number, episode]).generate_state(1)
        observation, info = self._env.reset(seed=int(drawn.item()))
        self._potential = self._shaping.potential(info)
        return self._frame(observation)

    def _frame(self, observation: Any) -> ImageArray:
        frame = self._simulator.read_step(observation, self._spec)[self._camera.key]
        width, height = self._camera.width_height
        return frame if frame.shape[:2] == (height, width) else self._simulator.resized(frame, width, height)
