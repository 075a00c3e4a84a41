"""Results as they are printed."""

import io
from collections.abc import Sequence

from rich.console import Console

from diffusion_policy.tables import Printable
from diffusion_policy.terminal import show


def printed(shown: Printable | Sequence[Printable], width: int = 160) -> str:
    """What `terminal.show` prints in a terminal of this width, without styles."""
    written = io.StringIO()
    show(shown, Console(file=written, width=width))
    return written.getvalue()
