"""What the two doors of inspection have in common: flags of the output, a bar while frames are read, exit status."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from diffusion_policy.evaluate.writing import write_json
from diffusion_policy.report.inspection import Inspection
from diffusion_policy.report.inspection import Progress as OnProgress
from diffusion_policy.report.inspection_pictures import draw_pictures
from diffusion_policy.spec import WorkspaceError


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Where pictures and findings go."""
    add = parser.add_argument
    add("--output-dir", type=Path, default=Path(), metavar="DIR", help="where the pictures go (default: here)")
    add("--no-pictures", action="store_true", help="draw nothing")
    add("--json", type=Path, metavar="OUT", help="write findings and evidence")


def inspect_and_say(arguments: argparse.Namespace, inspect: Callable[[OnProgress], Inspection]) -> int:
    """Inspect, draw, write and print as the flags say; 0 training is advisable, 1 it is not, 2 bad input."""
    try:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("frames", total=None)
            inspection = inspect(lambda done, total: bar.update(task, completed=done, total=total))
        pictures = [] if arguments.no_pictures else draw_pictures(inspection, arguments.output_dir)
        if arguments.json:
            write_json(arguments.json, inspection.to_json())
    except WorkspaceError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    Console().print(inspection.table(pictures), highlight=False)
    return inspection.exit_status
