"""Progress display of a run: a bar in a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch

from diffusion_policy.terminal import ProgressBar, show_line
from diffusion_policy.workspace.metrics import figure


class ConsoleHandler(logging.Handler):
    """Log lines on stdout, above the progress bar; long lines are not broken."""

    def __init__(self, stream: None = None, level: int = logging.NOTSET):
        super().__init__(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record; warnings stand out."""
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else ""
        show_line(self.format(record), style)


# The validation figures by which a run is judged, and how each is shown: words, format, unit.
SHOWN = {
    "val_loss": ("held-out loss", ".4f", ""),
    "val_position_error_mm": ("position", ".3g", " mm"),
    "val_rotation_error_deg": ("rotation", ".3g", " deg"),
    "val_gripper_f1": ("gripper F1", ".2f", ""),
}


class TrainingBar:
    """Epoch, loss, rate, remaining time; below them the last validation figures and GPU memory; in 80 columns.

    Args:
        total: updates of the whole run.
        done: updates already made.
        epochs: of the whole run; they are counted from 1, as in the log lines of epochs.
        visible: False, or not a terminal: shows nothing.
        refresh_seconds: least time between two refreshes.
    """

    def __init__(self, total: int, done: int, epochs: int, *, visible: bool = True, refresh_seconds: float = 1.0):
        self._epochs, self._figures = epochs, dict[str, str]()
        self._bar = ProgressBar(
            f"epoch -/{epochs}", total, done, bar_width=12, visible=visible, refresh_seconds=refresh_seconds
        )

    def update(self, done: int, epoch: int, loss: float, samples_per_second: float) -> None:
        """After some updates of epoch number `epoch`, counted from 0; a rate of 0 means not yet known."""
        rate = f" {samples_per_second:.0f} samples/s" if samples_per_second else ""
        self._bar.update(done, before=f"epoch {epoch + 1}/{self._epochs}", after=f"loss {loss:.4f}{rate}")
        if torch.cuda.is_available():
            self._show("memory", f"GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")

    def validated(self, metrics: Mapping[str, Any]) -> None:
        """After a validation; figures that it did not measure are kept."""
        for key, (words, form, unit) in SHOWN.items():
            if key in metrics:
                self._show(key, f"{words} {figure(key, metrics, form)}{unit}")

    def _show(self, key: str, text: str) -> None:
        self._figures[key] = text
        self._bar.show_below("  ".join(self._figures[name] for name in (*SHOWN, "memory") if name in self._figures))

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
