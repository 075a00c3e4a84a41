"""Progress display of a run: a bar in a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from rich import get_console
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from diffusion_policy.workspace.metrics import figure


class ConsoleHandler(logging.Handler):
    """Log lines through rich's console, above the progress bar; long lines are not broken."""

    def __init__(self, stream: None = None, level: int = logging.NOTSET):
        super().__init__(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record; warnings stand out."""
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else None
        get_console().print(self.format(record), style=style, markup=False, highlight=False, soft_wrap=True)


# Of what is validated, the figures by which a run is judged, and how each is shown: words, form, unit.
SHOWN = {
    "val_loss": ("held-out loss", ".4f", ""),
    "val_position_error_mm": ("position", ".3g", " mm"),
    "val_rotation_error_deg": ("rotation", ".3g", " deg"),
    "val_gripper_f1": ("gripper F1", ".2f", ""),
}


class _TwoLines(Progress):
    """A progress bar with a line of words below it, where there are some; both fit into 80 columns."""

    words = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and the words."""
        yield from super().get_renderables()
        if self.words:
            yield Text(self.words, style="dim")


class TrainingBar:
    """Epoch, loss, rate, remaining time; below them the last validation figures and GPU memory.

    Args:
        total: updates of the whole run.
        done: of these, already made.
        epochs: of the whole run; they are counted from 1, as in the lines that end them.
        visible: False, or not a terminal: shows nothing.
        refresh_seconds: least time between two refreshes.
    """

    def __init__(self, total: int, done: int, epochs: int, *, visible: bool = True, refresh_seconds: float = 1.0):
        self._epochs, self._figures = epochs, dict[str, str]()
        console = get_console()
        self._bar = _TwoLines(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=1 / max(refresh_seconds, 0.1),
            disable=not (visible and console.is_terminal),
        )
        self._task: TaskID = self._bar.add_task(
            "training", total=total, completed=done, epoch=f"-/{epochs}", loss="", rate=""
        )

    def update(self, done: int, epoch: int, loss: float, samples_per_second: float) -> None:
        """After some updates of epoch number `epoch`, counted from 0; a rate of 0 is one that is not known yet."""
        at, loss_text = f"{epoch + 1}/{self._epochs}", f"loss {loss:.4f}"
        rate = f"{samples_per_second:.0f} samples/s" if samples_per_second else ""
        self._bar.update(self._task, completed=done, epoch=at, loss=loss_text, rate=rate)
        if torch.cuda.is_available():
            self._show("memory", f"GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")

    def validated(self, metrics: Mapping[str, Any]) -> None:
        """After a validation; figures that it did not measure stay as they were."""
        for key, (words, form, unit) in SHOWN.items():
            if key in metrics:
                self._show(key, f"{words} {figure(key, metrics, form)}{unit}")

    def _show(self, key: str, text: str) -> None:
        self._figures[key] = text
        self._bar.words = "  ".join(self._figures[name] for name in (*SHOWN, "memory") if name in self._figures)

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
