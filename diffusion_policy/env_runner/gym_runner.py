"""Closed-loop evaluation during training: episodes in any Gymnasium simulator, as ``task.env_runner`` of a config.

    task:
      env_runner:
        _target_: diffusion_policy.env_runner.gym_runner.GymRunner
        _recursive_: false
        shape_meta: ${task.shape_meta}
        n_scenes: 20
        simulator: {...}    # as config/simulator/tabletop.yaml

Metrics: ``test_success`` with its 95 % interval, ``test_grasped`` where the simulator reports it, ``test_scenes`` and
``test_n_action_steps``; ``checkpoint.best`` ranks by ``test_success`` where it is measured.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from diffusion_policy.env_runner.actors import ActingPolicy
from diffusion_policy.env_runner.memory_actor import actor_of
from diffusion_policy.env_runner.results import grasped_of, reasons_of, success_of
from diffusion_policy.env_runner.rollout import RolloutSettings, default_action_steps, roll_out
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.spec import read_shape_meta

logger = logging.getLogger(__name__)


class GymRunner:
    """Rolls a policy out in a simulator.

    Args:
        output_dir: unused; part of the interface of all runners.
        shape_meta: names and shapes of the policy's observations and actions.
        simulator: see ``Simulator.read``.
        n_scenes: episodes of one measurement; always the same scenes, so that epochs can be compared.
        seed: of the first scene's environment; scene i is reset with seed + i.
        n_action_steps: steps of a chunk that are executed; null: ``rollout.DEFAULT_ACTION_STEPS``.
        max_steps: number of steps after which an episode has failed.
        at_once: number of episodes that advance together.

    Raises:
        WorkspaceError: the settings are wrong, or simulator and policy do not match.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str] | None,
        shape_meta: Mapping[str, Any],
        simulator: Simulator | Mapping[str, Any] | DictConfig,
        n_scenes: int = 20,
        seed: int = 100_000,
        n_action_steps: int | None = None,
        max_steps: int = 1000,
        at_once: int = 16,
    ):
        self.output_dir = output_dir
        self.simulator = Simulator.read(simulator)
        self.n_scenes, self.seed = n_scenes, seed
        self._asked, self._max_steps, self._at_once = n_action_steps, max_steps, at_once
        if n_scenes < 1:
            raise WorkspaceError(f"n_scenes is {n_scenes}; expected 1 or more")
        for note in self.simulator.check_policy(read_shape_meta(shape_meta).robot):
            logger.info("closed loop: %s", note)

    def describe(self) -> dict[str, Any]:
        """Returns what two measurements must share to be comparable."""
        return {
            "simulator": self.simulator.name,
            "scenes": self.n_scenes,
            "seed": self.seed,
            "n_action_steps": self._asked,
        }

    def run(self, policy: ActingPolicy) -> dict[str, float]:
        """Rolls the policy out, and returns metrics by name.

        The policy must be in eval mode. Global random states stay as they are.
        """
        actor = actor_of(policy, self.simulator, self.seed)
        settings = RolloutSettings(default_action_steps(actor, self._asked), self._max_steps, self._at_once)
        scenes = {scene: self.seed + scene for scene in range(self.n_scenes)}
        results = list(roll_out(self.simulator, actor, scenes, settings))
        success, grasped = success_of(results), grasped_of(results)
        reasons = ", ".join(f"{reason} {count}" for reason, count in reasons_of(results).items())
        logger.info(
            "closed loop: success %s, %d steps of a chunk executed, %s%s",
            success, settings.n_action_steps, self.simulator.name, f"; {reasons}" if reasons else "",
        )  # fmt: skip
        low, high = success.interval
        metrics = {
            "test_success": success.count / success.of,
            "test_success_low": low,
            "test_success_high": high,
            "test_scenes": float(success.of),
            "test_n_action_steps": float(settings.n_action_steps),
        }
        return metrics if grasped is None else {**metrics, "test_grasped": grasped.count / grasped.of}
