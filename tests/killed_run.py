"""A run that kills itself with SIGKILL, for tests that start it in a process of its own."""

import os
import signal
from pathlib import Path

from omegaconf import DictConfig

from diffusion_policy.workspace.start import LATEST
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KilledWorkspace(TrainDiffusionTransformerHybridWorkspace):
    """Dies at the moment `when`."""

    when: str

    def _make_updates(self, initialization):
        super()._make_updates(initialization)
        kind, number = self.when.split(":")
        make = self._updates.make

        def make_and_die(batches, epoch, global_step):
            outcome = make(batches, epoch, global_step)
            if outcome.global_step == int(number):
                if kind == "update":
                    self._checkpoints.wait()  # earlier checkpoints are complete
                    die()
                os.replace = die_half_way
            return outcome

        self._updates.make = make_and_die


def die_half_way(unfinished: str | Path, path: str | Path) -> None:
    """Replaces `os.replace`, when half of the checkpoint has been written."""
    size, names = Path(unfinished).stat().st_size, Path(unfinished).stat().st_nlink
    if Path(path).name == LATEST and names == 1:
        os.truncate(unfinished, size // 2)
        die()
    os.rename(unfinished, path)


def run_until_killed(cfg: DictConfig, folder: Path, when: str) -> None:
    """Trains, and dies.

    Args:
        cfg: its settings.
        folder: folder of the run.
        when: "update:N", right after update N was made and earlier checkpoints were written, or "write:N", while the
            first checkpoint after update N is half written.
    """
    run = KilledWorkspace(cfg, folder)
    run.when = when
    run.run()
