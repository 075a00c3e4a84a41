"""What a run came to, and what to do next."""

from __future__ import annotations

import shlex
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from diffusion_policy.dataset.joined_datasets import dataset_paths
from diffusion_policy.workspace.checkpointing import BEST, CheckpointFolder
from diffusion_policy.workspace.run_state import Progress
from diffusion_policy.workspace.start import LATEST


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
        next_command: to go on with: evaluation, or the rest of an interrupted run.
    """

    folder: Path
    epochs: int
    updates: int
    checkpoint: Path | None
    figures: dict[str, float]
    interrupted: signal.Signals | None
    next_command: str

    @classmethod
    def of(
        cls,
        cfg: DictConfig,
        folder: Path,
        progress: Progress,
        checkpoints: CheckpointFolder,
        interrupted: signal.Signals | None,
    ) -> RunSummary:
        """Look at what lies in the run folder."""
        found = [folder / "checkpoints" / name for name in (BEST, LATEST)]
        checkpoint = next((path for path in found if path.is_file()), None)
        if interrupted is not None:
            command = resume_command(folder)
        else:
            dataset = dataset_paths(cfg.task.dataset.zarr_path)[0]
            command = shlex.join(
                [
                    "python",
                    "scripts/run_offline_inference.py",
                    str(checkpoint),
                    dataset,
                    "--output",
                    str(folder / "logs"),
                ]
            )
        figures = checkpoints.best_metrics if checkpoint == found[0] else {}
        return cls(folder, progress.epoch, progress.global_step, checkpoint, figures, interrupted, command)

    def __str__(self) -> str:
        what = "finished" if self.interrupted is None else f"stopped by {self.interrupted.name}"
        figures = ", ".join(f"{key} {value:.4g}" for key, value in self.figures.items())
        lines = [
            f"{what} after {self.epochs} epochs, {self.updates} updates: {self.folder}",
            f"checkpoint: {self.checkpoint}{f' ({figures})' if figures else ''}",
            f"{'go on with' if self.interrupted else 'next'}: {self.next_command}",
        ]
        return "\n".join(lines)


def resume_command(folder: Path) -> str:
    """The command that continues a run: its own config and overrides, which Hydra keeps in the run folder."""
    hydra, overrides = (_kept(folder / ".hydra" / name) for name in ("hydra.yaml", "overrides.yaml"))
    config = hydra["hydra"]["job"]["config_name"] if hydra else "train_cogact_robot"
    replaced = ("training.resume=", "hydra.run.dir=")
    same = [text for text in overrides or [] if not text.lstrip("+~").startswith(replaced)]
    door = ["python", "train.py", f"--config-name={config}"]
    return shlex.join([*door, *same, "training.resume=True", f"hydra.run.dir={folder}"])


def _kept(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.is_file() else None
