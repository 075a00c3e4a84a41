"""Corrections on the built-in tabletop: the expert completes the task from where the policy failed or hesitated.

The simulator is deterministic, so a state that the policy reached is reproduced by its commands. An episode begins with
that state. The policy's own steps before it are left out: their commands, which are to be unlearned, would become
labels. Every step is marked as an intervention. Takeovers after which the expert fails, too, are counted but not kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy.dagger.moments import takeovers
from diffusion_policy.dagger.teacher import CorrectionError
from diffusion_policy.dagger.watching import Trace, TracedSimulator, tabletop_of, tips_of
from diffusion_policy.env_runner.results import SceneResult
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.sim.camera import Camera
from diffusion_policy.sim.expert import plan_on
from diffusion_policy.sim.recorder import record
from diffusion_policy.sim.tabletop import Tabletop
from diffusion_policy.sim.tabletop_env import TabletopEnv
from diffusion_policy.sim.tasks import Progress as TaskProgress

_REPLAYED = (16, 9)  # pixels of frames that are not used
_SAME_POSITION = 1e-9  # meters


class TabletopTeacher:
    """The scripted expert of the tabletop, which takes over; see ``teacher.Teacher``.

    Args:
        simulator: of the tabletop.
        folder: of the episodes.
        variation: of the expert, 0 to 1.
        per_scene: most takeovers per scene.
    """

    def __init__(self, simulator: Simulator, folder: Path, variation: float, per_scene: int) -> None:
        self.settings: Mapping[str, Any] = {"variation": variation, "per_scene": per_scene}
        self._untraced, self._traced = simulator, TracedSimulator.over(simulator)
        self.simulator: Simulator = self._traced
        self._folder, self._variation, self._per_scene = folder, variation, per_scene

    def correct(self, result: SceneResult, number: int) -> list[dict[str, Any]]:
        """Records the expert's episodes of one scene."""
        trace = self._traced.traces[result.seed]
        taken: list[dict[str, Any]] = []
        for takeover in takeovers(trace, succeeded=result.success, at_most=self._per_scene):
            frames = self._record(trace, takeover.step, result.seed, number)
            taken.append(
                {
                    "scene": result.scene,
                    "seed": result.seed,
                    "step": takeover.step,
                    "why": takeover.why,
                    "episode": f"episode_{number:04d}" if frames else None,
                    "frames": frames,
                }
            )
            number += bool(frames)
        return taken

    def close(self) -> None:
        """Nothing is open."""

    def _record(self, trace: Trace, step: int, seed: int, number: int) -> int:
        """Records the expert after ``step`` commands of the policy; returns the frames, 0 if it fails."""
        simulator = self._untraced
        env = replace(simulator, env={**simulator.env, "image_size": list(_REPLAYED)}).make()
        try:
            tabletop, progress = _replayed(tabletop_of(env), trace, step, seed)
            commands = plan_on(tabletop, np.random.default_rng([seed, step]), self._variation)
            camera = Camera(tabletop.scene, tuple(simulator.env["image_size"]))
            episode = self._folder / f"episode_{number:04d}"
            provenance = {"correction": {"seed": seed, "step": step}}
            shutil.rmtree(
                episode, ignore_errors=True
            )  # left by a collection that was killed before it wrote its document
            done = record(
                episode, number, tabletop, progress, commands, camera, provenance=provenance, intervention=True
            )
        finally:
            env.close()
        return len(commands) if done else 0


def _replayed(env: TabletopEnv, trace: Trace, step: int, seed: int) -> tuple[Tabletop, TaskProgress]:
    """Returns the tabletop after ``step`` commands of an episode, and the progress until then.

    Raises:
        CorrectionError: the replayed state differs from the recorded one.
    """
    env.reset(seed=seed)
    for action in trace.actions[:step]:
        env.step(action)
    was = trace.states[step : step + 1]
    if was and np.abs(was[0].tips - tips_of(env.tabletop)).max() > _SAME_POSITION:
        raise CorrectionError(f"scene {seed}: the same commands led elsewhere; the simulator is not repeatable here")
    return env.tabletop, env.progress
