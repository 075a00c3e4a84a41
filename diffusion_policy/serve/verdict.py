"""How a door of this room ends: one comparison, told to the terminal, a file and the exit status."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, RenderableType

from diffusion_policy.evaluate.writing import write_json
from diffusion_policy.spec import WorkspaceError


class Verdict(Protocol):
    """What a comparison or a measurement found."""

    @property
    def passed(self) -> bool:
        """Whether it is good."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""

    def table(self) -> RenderableType:
        """For the terminal."""


def conclude(compare: Callable[[], Verdict], path: Path | None) -> int:
    """Compare, write the JSON to ``path`` if one is given (beside, then renamed), and show the table.

    Returns:
        The exit status: 0 good, 1 not good, 2 no verdict (the error is shown).
    """
    try:
        verdict = compare()
        if path is not None:
            write_json(path, verdict.to_json())
    except WorkspaceError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    Console().print(verdict.table())
    return 0 if verdict.passed else 1
