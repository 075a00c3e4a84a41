"""A run that kills itself with SIGKILL, started by test_resume as a process of its own.

python killed_run.py DATASET RUN_FOLDER update:N|write:N OVERRIDE...

`update:N`: right after update N was made. `write:N`: while the first checkpoint after update N lies half written.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import tiny_run

from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KilledWorkspace(TrainDiffusionTransformerHybridWorkspace):
    """Dies as it was told to."""

    def _make_updates(self, beginning):
        super()._make_updates(beginning)
        kind, number = sys.argv[3].split(":")
        make = self._updates.make

        def make_and_die(batches, epoch, global_step):
            outcome = make(batches, epoch, global_step)
            if outcome.global_step == int(number):
                die() if kind == "update" else threading.Thread(target=self._die_while_writing, daemon=True).start()
            return outcome

        self._updates.make = make_and_die

    def _die_while_writing(self):
        unfinished = self.output_dir / "checkpoints" / ".latest.ckpt.unfinished"
        before = unfinished.exists()
        while True:
            if unfinished.exists() and not before and unfinished.stat().st_size > 0:
                die()
            before = before and unfinished.exists()
            time.sleep(0.0005)


if __name__ == "__main__":
    dataset, folder = Path(sys.argv[1]), Path(sys.argv[2])
    KilledWorkspace(tiny_run.settings(dataset, *sys.argv[4:]), folder).run()
