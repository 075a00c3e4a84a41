"""Names in a message: the first few, each of them cut, so that a file of somebody else's fills no screen."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 60


def listed(names: Iterable[object], most: int = 5) -> str:
    """Names one after the other, as "a, b, c, and 4 more"; "none" where there is none."""
    every = [str(name) for name in names]
    shown = ", ".join(name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..." for name in every[:most])
    return f"{shown}, and {len(every) - most} more" if len(every) > most else shown or "none"
