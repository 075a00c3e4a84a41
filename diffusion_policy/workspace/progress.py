"""What a person sees while a run goes on: a bar where there is a terminal, lines everywhere else."""

from __future__ import annotations

import logging
from types import TracebackType

import torch
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class ConsoleHandler(logging.Handler):
    """Log lines through rich's console, above the progress bar; long lines are not broken."""

    def __init__(self, stream: None = None, level: int = logging.NOTSET):
        super().__init__(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record; warnings stand out."""
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else None
        get_console().print(self.format(record), style=style, markup=False, highlight=False, soft_wrap=True)


class TrainingBar:
    """Epoch, loss, rate, remaining time, last validation figures, GPU memory.

    Args:
        total: updates of the whole run.
        done: of these, already made.
        visible: False, or not a terminal: shows nothing.
        refresh_seconds: least time between two drawings.
    """

    def __init__(self, total: int, done: int, *, visible: bool = True, refresh_seconds: float = 1.0):
        console = get_console()
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[validated]} {task.fields[memory]}"),
            console=console,
            refresh_per_second=1 / max(refresh_seconds, 0.1),
            disable=not (visible and console.is_terminal),
        )
        self._task: TaskID = self._bar.add_task(
            "training", total=total, completed=done, epoch="", loss="", rate="", validated="", memory=""
        )

    def update(self, done: int, epoch: int, loss: float, samples_per_second: float) -> None:
        """After some updates."""
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if torch.cuda.is_available() else ""
        rate = f"{samples_per_second:.0f} samples/s"
        self._bar.update(self._task, completed=done, epoch=epoch, loss=f"{loss:.4f}", rate=rate, memory=memory)

    def validated(self, figures: str) -> None:
        """After a validation."""
        self._bar.update(self._task, validated=figures)

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
