"""How work reports how far it has come: it calls a function with what is done, and with what there is to do."""

from __future__ import annotations

from collections.abc import Callable

# Called with (done, total).
Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """A progress callback that does nothing."""


class ProgressCounter:
    """Counts what is done of a known total, and reports it; at first that nothing is.

    Args:
        on_progress: what it is reported to.
        total: what there is to do.
    """

    def __init__(self, on_progress: Progress, total: int):
        self._on_progress, self._done, self._total = on_progress, 0, total
        on_progress(0, total)

    def add(self, count: int) -> None:
        """So much more is done."""
        self._done += count
        self._on_progress(self._done, self._total)


def part_of(on_progress: Progress, number: int, parts: int) -> Progress:
    """Returns the progress of one of several parts of the same size, which is reported as that of all of them.

    Args:
        on_progress: of all of them.
        number: of the part, from 0; those before it are done.
        parts: how many there are.
    """

    def report(done: int, total: int) -> None:
        on_progress(number * total + done, parts * total)

    return report
