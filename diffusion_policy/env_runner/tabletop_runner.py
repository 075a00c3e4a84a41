"""Closed loop on the built-in tabletop while a policy trains: ``GymRunner`` with the tabletop's settings filled in."""

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
    """Rolls a policy out on scenes that no recording holds.

    Args:
        output_dir: unused; the interface of runners.
        shape_meta: of the policy; its images' key may be any.
        n_episodes: scenes; always the same ones.
        seed: of the first scene's environment.
        max_steps: after which an episode has failed; null: 150 for each target.
        executed_steps: how many of the predicted actions are carried out before the policy is asked again.
        camera_size: (width, height) of the camera, as recorded; frames are JPEG-coded and resized as in a dataset.
        referee: "kinematic" (fast, as trained runs measure often) or "physics".
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
        """What two measurements must share to be compared."""
        return self.runner.describe()

    def run(self, policy: ActingPolicy) -> dict[str, float]:
        """Metrics of ``GymRunner``, and the share grasped and placed under the names that older runs have."""
        metrics = self.runner.run(policy)
        older = {"tabletop_grasped": metrics["test_grasped"], "tabletop_success": metrics["test_success"]}
        return {**metrics, **older}
