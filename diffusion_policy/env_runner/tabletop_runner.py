"""Closed-loop evaluation on the built-in tabletop during training: ``GymRunner`` with the tabletop's settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_policy.env_runner.actors import ActingPolicy
from diffusion_policy.env_runner.gym_runner import GymRunner
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.installation import CONFIG
from diffusion_policy.sim.referees import KINEMATIC
from diffusion_policy.sim.scene import PICK_AND_PLACE
from diffusion_policy.spec import SpecError, read_shape_meta

SETTINGS = CONFIG / "simulator" / "tabletop.yaml"


class TabletopRunner:
    """Rolls a policy out on scenes that are in no recording.

    Args:
        output_dir: unused; part of the interface of all runners.
        shape_meta: of the policy; its image may have any key.
        n_episodes: number of scenes; they are always the same.
        seed: of the first scene's environment.
        max_steps: number of steps after which an episode has failed; null: 150 for each target.
        executed_steps: number of predicted actions that are executed before the policy is asked again.
        camera_size: (width, height) of the camera, as recorded; frames are JPEG-coded and resized as in a dataset.
        referee: "kinematic" (fast, for frequent measurements during training) or "physics".
        task: a name of ``sim.tasks.TASKS``.

    Raises:
        SpecError: the policy's keys are not those of the tabletop.
        WorkspaceError: no such task or referee.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str] | None,
        shape_meta: Mapping[str, Any],
        n_episodes: int = 10,
        seed: int = 100_000,
        max_steps: int | None = None,
        executed_steps: int = 6,
        camera_size: Sequence[int] = (640, 360),
        referee: str = KINEMATIC,
        task: str = PICK_AND_PLACE,
    ):
        spec = read_shape_meta(shape_meta)
        if len(spec.rgb) != 1:
            raise SpecError(f"the tabletop has one camera; shape_meta.obs has {len(spec.rgb)} images")
        self.referee = referee
        env = {"referee": referee, "task": task, "image_size": list(camera_size), "max_steps": max_steps}
        simulator = Simulator.load(SETTINGS, **env).with_camera(spec.rgb[0].key)
        simulator.make().close()  # a wrong task or referee is refused before training starts
        self.runner = GymRunner(output_dir, shape_meta, simulator, n_episodes, seed, executed_steps)

    def describe(self) -> dict[str, Any]:
        """Returns what two measurements must share to be comparable."""
        return self.runner.describe()

    def run(self, policy: ActingPolicy) -> dict[str, float]:
        """Returns the metrics of ``GymRunner``, and grasps and successes also under the names of older runs."""
        metrics = self.runner.run(policy)
        older = {"tabletop_grasped": metrics["test_grasped"], "tabletop_success": metrics["test_success"]}
        return {**metrics, **older}
