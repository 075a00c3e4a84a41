"""Summary of a run: what it reached, and the next command."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from diffusion_policy.commands import command
from diffusion_policy.dataset.joined_datasets import dataset_paths
from diffusion_policy.run_folder import BEST, LATEST
from diffusion_policy.run_folder.resuming import resume_command
from diffusion_policy.workspace.checkpointing import CheckpointFolder
from diffusion_policy.workspace.metrics import TOLERANCE, figure
from diffusion_policy.workspace.run_state import TrainingProgress


@dataclass(frozen=True)
class RunSummary:
    """The end of a run.

    Attributes:
        folder: of the run.
        epochs: done.
        updates: made.
        checkpoint: the best one, or the latest if none was measured; None if none was saved.
        figures: of the best one.
        interrupted: the signal that ended the run, or None.
        next_command: the next step: evaluation, or the rest of an interrupted run; None without a checkpoint.
    """

    folder: Path
    epochs: int
    updates: int
    checkpoint: Path | None
    figures: dict[str, float]
    interrupted: signal.Signals | None
    next_command: str | None

    @classmethod
    def of(
        cls,
        cfg: DictConfig,
        folder: Path,
        progress: TrainingProgress,
        checkpoints: CheckpointFolder,
        interrupted: signal.Signals | None,
    ) -> RunSummary:
        """Build the summary from the files of the run folder."""
        found = [folder / "checkpoints" / name for name in (BEST, LATEST)]
        checkpoint = next((path for path in found if path.is_file()), None)
        following = None
        if interrupted is not None:
            following = resume_command(folder)
        elif checkpoint is not None and "cloning" in cfg:  # a policy with memory, which plays episodes
            following = command("report", "--run", folder, "--out", folder / "report.html")
        elif checkpoint is not None:
            dataset = dataset_paths(cfg.task.dataset.zarr_path)[0]
            following = command("run_offline_inference", checkpoint, dataset, "--output", folder / "logs")
        figures = checkpoints.best_metrics if checkpoint == found[0] else {}
        return cls(folder, progress.epoch, progress.global_step, checkpoint, figures, interrupted, following)

    def __str__(self) -> str:
        done = f"after {self.epochs} epochs, {self.updates} updates"
        if self.interrupted is not None:
            kept = f"kept in {self.folder / 'checkpoints' / LATEST}"
            return f"stopped by {self.interrupted.name} {done}, {kept}; go on with: {self.next_command}"
        lines = [
            f"finished {done}: {self.folder}",
            f"checkpoint: {self.checkpoint or 'none was saved'}{self._measured()}",
        ]
        if self.next_command is not None:
            lines.append(f"see what it does in held-out episodes: {self.next_command}")
        return "\n".join(lines)

    def _measured(self) -> str:
        """Figures of the checkpoint; epochs are counted from 1 for people, from 0 in files."""
        if not self.figures:
            return ""
        epoch, shown = self.figures.get("epoch"), [k for k in self.figures if k not in ("epoch", TOLERANCE)]
        after = [] if epoch is None else [f"after epoch {int(epoch) + 1}"]
        return f" ({', '.join([*after, *(f'{key} {figure(key, self.figures)}' for key in shown)])})"
