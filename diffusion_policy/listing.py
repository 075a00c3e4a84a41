"""Lists of names in messages: only the first few, each cut to a limited length, since files may hold any names."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 60


def listed(names: Iterable[object], most: int = 5) -> str:
    """Returns the names as "a, b, c, and 4 more", or "none" if there are none."""
    every = [str(name) for name in names]
    cut_names = ", ".join(name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..." for name in every[:most])
    return f"{cut_names}, and {len(every) - most} more" if len(every) > most else cut_names or "none"
