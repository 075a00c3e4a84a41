"""Shortens lists of dotted names to a few globs, for messages."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def fold(keys: Iterable[str], everything: Collection[str]) -> list[str]:
    """The keys as a few globs: a subtree of `everything` whose keys are all among them becomes ``name.*``."""
    wanted = set(keys)
    others = set(everything) - wanted
    taken: set[str] = set()
    for key in others:
        parts = key.split(".")
        taken.update(".".join(parts[:depth]) for depth in range(1, len(parts)))
    folded: dict[str, list[str]] = {}
    for key in sorted(wanted):
        parts = key.split(".")
        heads = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        head = next((head for head in heads if head not in taken), None)
        folded.setdefault(f"{head}.*" if head else key, []).append(key)
    return [members[0] if len(members) == 1 else pattern for pattern, members in folded.items()]
