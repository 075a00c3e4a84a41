"""Look at recordings before they are converted: counts, ranges, clocks, jumps, frames, gripper; and draw them.

    python scripts/inspect_cogact_data.py data/raw/trajectories --output-dir data/inspection

Writes sample_images.png, action_trajectory.png, workspace.png and episode_timeline.png. The recordings are only read.
Exit status: 0 training on them is advisable, 1 it is not, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from diffusion_policy.evaluate.writing import write_json
from diffusion_policy.report.inspection import inspect_recordings
from diffusion_policy.report.inspection_pictures import draw_pictures
from diffusion_policy.spec import WorkspaceError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("directory", nargs="?", type=Path, default=Path("data/raw/trajectories"), metavar="DIR",
        help="folder that holds episode_0000/ and so on (default: data/raw/trajectories)")  # fmt: skip
    add("--output-dir", type=Path, default=Path(), metavar="DIR", help="where the pictures go (default: here)")
    add("--no-pictures", action="store_true", help="draw nothing")
    add("--json", type=Path, metavar="OUT", help="write findings and evidence")
    arguments = parser.parse_args(argv)
    try:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("frames", total=None)
            inspection = inspect_recordings(
                arguments.directory, lambda done, total: bar.update(task, completed=done, total=total)
            )
        pictures = [] if arguments.no_pictures else draw_pictures(inspection, arguments.output_dir)
        if arguments.json:
            write_json(arguments.json, inspection.to_json())
    except WorkspaceError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    Console().print(inspection.table(pictures), highlight=False)
    return inspection.exit_status


if __name__ == "__main__":
    sys.exit(main())
