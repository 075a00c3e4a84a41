"""A minimal custom simulator: an arm that is done once its hand is at the target."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

STEP_M, NEAR_M, MAX_STEPS = 0.05, 0.03, 40


class ReachEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """The hand goes to the commanded position, at most 5 cm per step; the target is the bright square of the image."""

    def __init__(self, image_size: tuple[int, int] = (40, 36)) -> None:
        self.width, self.height = image_size
        self.observation_space = Dict(
            image=Box(0, 255, (self.height, self.width, 3), np.uint8),
            arm=Dict(pose=Box(-np.inf, np.inf, (7,)), gripper=Box(0, 1, (1,))),
        )
        self.action_space = Box(-np.inf, np.inf, (8,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.target = self.np_random.uniform([0.4, -0.1, 0.1], [0.6, 0.1, 0.2])
        self.pose, self.gripper, self.steps = np.array([0.5, 0.0, 0.4, 1, 0, 0, 0]), 1.0, 0
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        way = action[:3] - self.pose[:3]
        self.pose[:3] += way * min(1.0, STEP_M / max(float(np.linalg.norm(way)), 1e-9))
        self.gripper, self.steps = float(action[7]), self.steps + 1
        info = self._info()
        return self._observation(), 0.0, info["reached"], self.steps >= MAX_STEPS, info

    def _info(self) -> dict[str, Any]:
        away = float(np.linalg.norm(self.target - self.pose[:3]))
        return {"reached": away < NEAR_M, "why_not": "far from the target" if away > 0.1 else "beside the target"}

    def _observation(self) -> dict[str, Any]:
        image = np.zeros((self.height, self.width, 3), np.uint8)
        row, column = int(self.target[0] * self.height), int((self.target[1] + 0.5) * self.width)
        image[row - 2 : row + 2, column - 2 : column + 2] = 255
        return {"image": image, "arm": {"pose": self.pose.copy(), "gripper": np.array([self.gripper])}}
