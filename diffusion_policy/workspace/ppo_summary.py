"""Summary of a reinforcement learning run: the results of its last episodes, and the next command."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusion_policy.commands import command
from diffusion_policy.run_folder import LATEST
from diffusion_policy.run_folder.resuming import resume_command
from diffusion_policy.workspace.metrics import figure
from diffusion_policy.workspace.run_state import TrainingProgress

SIMULATOR_NAME = "simulator.yaml"
# Figures of an iteration, with their descriptions.
SHOWN = {
    "kl_to_pretrained": "KL to the pretrained policy (nats per frame)",
    "clip_share": "clipped share",
    "explained_variance": "explained variance of returns",
    "frames_per_second": "frames per second",
}


@dataclass(frozen=True)
class PPOSummary:
    """The end of a run.

    Attributes:
        folder: of the run.
        iterations, updates, frames: how many were made and played.
        figures: of the last iteration, and of the last episodes; see `ppo.learner` and `ppo.outcomes`.
        interrupted: the signal that ended the run, or None.
        next_command: the next step: evaluation, or the rest of an interrupted run.
    """

    folder: Path
    iterations: int
    updates: int
    frames: int
    figures: Mapping[str, float]
    interrupted: signal.Signals | None
    next_command: str

    @classmethod
    def of(
        cls,
        folder: Path,
        progress: TrainingProgress,
        frames: int,
        figures: Mapping[str, float],
        interrupted: signal.Signals | None,
    ) -> PPOSummary:
        """Build the summary from the run's position and the files of its folder."""
        latest, simulator = folder / "checkpoints" / LATEST, folder / SIMULATOR_NAME
        following = (
            resume_command(folder)
            if interrupted is not None
            else command("evaluate_closed_loop", latest, "--weights", "model", "--simulator", simulator)
        )
        return cls(folder, progress.epoch, progress.global_step, frames, figures, interrupted, following)

    def __str__(self) -> str:
        done = f"after {self.iterations} iterations, {self.updates} updates, {self.frames} frames"
        latest = self.folder / "checkpoints" / LATEST
        if self.interrupted is not None:
            return f"stopped by {self.interrupted.name} {done}, kept in {latest}; go on with: {self.next_command}"
        return "\n".join(
            [
                f"finished {done}: {self.folder}",
                f"in training, with drawn actions: {self._measured()}",
                *self._last_iteration(),
                f"checkpoint: {latest}",
                f"measure it in closed loop, in new episodes: {self.next_command}",
            ]
        )

    def _last_iteration(self) -> list[str]:
        shown = [
            f"{words} {figure(name, self.figures, '.3g')}" for name, words in SHOWN.items() if name in self.figures
        ]
        return [f"last iteration: {', '.join(shown)}"] if shown else []

    def _measured(self) -> str:
        if "success_share" not in self.figures:
            return "no episode ended, so nothing is known about its success"
        figures = self.figures
        share, low, high = (
            f"{figures[name]:.0%}" for name in ("success_share", "success_share_low", "success_share_high")
        )
        return (
            f"success in {share} of the last {figures['window_episodes']:.0f} episodes (95 %: {low} to {high}), "
            f"mean return {figures['episode_return']:.3g}"
        )
