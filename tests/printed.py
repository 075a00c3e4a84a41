"""Results as they are printed."""

import io
from collections.abc import Sequence

from rich.console import Console

from diffusion_policy.tables import Shown, Table, Text
from diffusion_policy.terminal import drawn


def printed(shown: Shown | Sequence[Shown], width: int = 160) -> str:
    """What `terminal.show` prints in a terminal of this width, without styles."""
    console = Console(file=io.StringIO(), width=width)
    for part in [shown] if isinstance(shown, str | Text | Table) else shown:
        console.print(part if isinstance(part, str) else drawn(part), markup=False, highlight=False, crop=False)
    return console.file.getvalue()  # type: ignore[attr-defined]
