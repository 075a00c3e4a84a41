"""How work reports its progress: it calls a function with the amount done and the total."""

from __future__ import annotations

from collections.abc import Callable

# Called with (done, total).
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """A progress callback that does nothing."""


class ProgressCounter:
    """Counts what is done of a known total, and reports it, beginning with 0.

    Args:
        on_progress: called with each report.
        total: the amount of work.
    """

    def __init__(self, on_progress: Progress, total: int):
        self._on_progress, self._done, self._total = on_progress, 0, total
        on_progress(0, total)

    def add(self, count: int) -> None:
        """Add to what is done."""
        self._done += count
        self._on_progress(self._done, self._total)


def part_of(on_progress: Progress, number: int, parts: int) -> Progress:
    """Returns a callback for one of several parts of equal size that reports the progress of all of them.

    Args:
        on_progress: for all of them.
        number: of the part, from 0; earlier parts are done.
        parts: how many there are.
    """

    def report(done: int, total: int) -> None:
        on_progress(number * total + done, parts * total)

    return report
