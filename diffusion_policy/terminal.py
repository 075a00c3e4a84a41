"""What entry points and training print: results, log lines, headings and progress bars. Nothing else imports rich."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from rich import get_console
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as DrawnTable
from rich.text import Text as DrawnText

from diffusion_policy.tables import Printable, Table, Text


def show(shown: Printable | Sequence[Printable], console: Console | None = None) -> None:
    """Prints results on stdout, or on a console."""
    console = console or Console()
    for part in [shown] if isinstance(shown, str | Text | Table) else shown:
        if isinstance(part, str):
            console.print(part, markup=False, highlight=False, soft_wrap=True)
        else:
            no_wrap = isinstance(part, Text) and part.no_wrap  # rich folds text regardless of the text's own setting
            console.print(drawn(part), highlight=False, crop=False, soft_wrap=no_wrap)
    console.file.flush()


def show_heading(title: str) -> None:
    """Prints a line across the terminal, starting with the title."""
    get_console().rule(DrawnText(title, "bold"), align="left")


def show_line(text: str, style: str = "") -> None:
    """Prints one line on stdout, above any visible progress bar; it is not folded."""
    get_console().print(text, style=style or None, markup=False, highlight=False, soft_wrap=True)


def drawn(part: Text | Table) -> RenderableType:
    """Returns text or a table as rich renders it."""
    return _text(part) if isinstance(part, Text) else _table(part)


def _text(text: Text) -> DrawnText:
    parts = [(words, style) for words, style in text.parts]
    if not text.no_wrap:
        return DrawnText.assemble(*parts)
    return DrawnText.assemble(*parts, no_wrap=True, overflow="ignore")


def _table(table: Table) -> DrawnTable:
    result = DrawnTable(
        title=table.title or None, title_justify="left", caption=table.caption or None, pad_edge=table.framed
    )
    if not table.framed:
        result.box = None
    result.show_header = any(column.title for column in table.columns)
    for column in table.columns:
        result.add_column(
            DrawnText(column.title),
            justify="right" if column.right else "left",
            no_wrap=column.no_wrap,
            overflow="fold",  # no part of a cell is cut off
            min_width=column.min_width,
            max_width=column.max_width,
        )
    for number, row in enumerate(table.rows):
        if number in table.sections:
            result.add_section()
        result.add_row(*map(_text, row))
    return result


class _WithWordsBelow(Progress):
    """A progress bar with a line of words below it, if there are any."""

    words = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.words:
            yield DrawnText(self.words, style="dim")


class ProgressBar:
    """Words, a bar, the count and total, more words, and the remaining time; shows nothing if not visible.

    Args:
        before: the words before the bar.
        total: the amount of work; None: not known yet.
        done: the part already done.
        bar_width: in characters; None: rich's default.
        on_stderr: shown there, and removed at the end; else on stdout, where it stays.
        visible: False, or not a terminal: shows nothing.
        refresh_seconds: least time between two refreshes.
    """

    def __init__(
        self,
        before: str,
        total: int | None = None,
        done: int = 0,
        *,
        bar_width: int | None = 40,
        on_stderr: bool = False,
        visible: bool = True,
        refresh_seconds: float = 0.1,
    ):
        console = Console(stderr=True) if on_stderr else get_console()
        self._bar = _WithWordsBelow(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width),
            MofNCompleteColumn(),
            TextColumn("{task.fields[after]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=on_stderr,
            refresh_per_second=1 / max(refresh_seconds, 0.1),
            disable=not (visible and console.is_interactive),  # a hidden bar would leave an empty line
        )
        self._task = self._bar.add_task(before, total=total, completed=done, after="")

    def update(self, done: int, total: int | None = None, before: str | None = None, after: str | None = None) -> None:
        """Shows how much is done; arguments that are None stay unchanged."""
        fields: dict[str, Any] = {} if after is None else {"after": after}
        self._bar.update(self._task, completed=done, total=total, description=before, **fields)

    @property
    def per_second(self) -> float:
        """The amount done per second; 0 if not known yet."""
        return self._bar.tasks[0].speed or 0.0

    def show_below(self, words: str) -> None:
        """Shows a line of words below the bar, replacing the last one."""
        self._bar.words = words

    def start(self) -> None:
        """Begins to show it."""
        self._bar.start()

    def stop(self) -> None:
        """Shows the last state, and ends."""
        self._bar.stop()

    def __enter__(self) -> ProgressBar:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
