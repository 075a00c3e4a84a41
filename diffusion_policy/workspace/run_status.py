"""The status of a run, in RUN/status.json: whether it is running, was stopped, failed, or finished all epochs.

Its metrics alone do not show that: a run that was stopped early looks like one that learned little.
"""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from types import TracebackType
from typing import Literal

from diffusion_policy.run_folder import STATUS_NAME
from diffusion_policy.storage import StorageError, write_json
from diffusion_policy.workspace.run_state import TrainingProgress

logger = logging.getLogger(__name__)

State = Literal["running", "stopped", "failed", "finished"]


class RunStatus:
    """A context manager that writes the status when the run begins, and however it ends.

    Args:
        folder: of the run; None: another process writes.
        progress: of the run; read whenever the status is written.
        epochs: planned.
        updates: planned.

    Attributes:
        stopped_by: the signal that the run was asked to stop by, or None.
    """

    def __init__(self, folder: Path | None, progress: TrainingProgress, epochs: int, updates: int):
        self._folder, self._progress, self._epochs, self._updates = folder, progress, epochs, updates
        self.stopped_by: signal.Signals | None = None

    def __enter__(self) -> RunStatus:
        self._write("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self._write("failed", str(error) or type(error).__name__)
        elif error is not None or self.stopped_by is not None:
            self._write("stopped")
        else:
            self._write("finished")

    def _write(self, state: State, error: str | None = None) -> None:
        if self._folder is None:
            return
        content = {
            "state": state,
            "signal": None if self.stopped_by is None else self.stopped_by.name,
            "error": error,
            "epochs": self._progress.epoch,
            "of_epochs": self._epochs,
            "updates": self._progress.global_step,
            "of_updates": self._updates,
        }
        try:
            write_json(self._folder / STATUS_NAME, content)
        except StorageError as failure:
            logger.warning("%s", failure)  # a full disk does not end a run that can continue
