"""Inspect recordings before they are converted: counts, ranges, clocks, jumps, frames, gripper; and draw them.

    python scripts/inspect_cogact_data.py data/raw/trajectories --output-dir data/inspection
    python scripts/inspect_cogact_data.py data/lerobot/my_set --mapping droid --no-pictures

Writes sample_images.png, action_trajectory.png, workspace.png and episode_timeline.png. The recordings are only read.
Exit status: 0 nothing forbids training on them (warnings may remain), 1 an error does, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, progress, run_command
from diffusion_policy.gripper_scale import add_gripper_scale
from diffusion_policy.timestamps import add_timestamps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add = parser.add_argument
    add("directory", nargs="?", type=Path, default=Path("data/raw/trajectories"), metavar="DIR", help="folder or URL "
        "with episode_0000/ and so on, or a LeRobot dataset (default: data/raw/trajectories)")  # fmt: skip
    add("--mapping", metavar="FILE", help="meaning of a LeRobot dataset's columns: a file, or a name in "
        "config/recordings (default: derived from their names; else a file to fill in is printed)")  # fmt: skip
    add_gripper_scale(parser)
    add_timestamps(parser)
    add("--output-dir", type=Path, default=Path(), metavar="DIR", help="where to write the pictures (default: here)")
    add("--no-pictures", action="store_true", help="draw nothing")
    add("--json", type=Path, metavar="OUT", help="write findings and evidence")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Inspects, and draws."""
    from diffusion_policy.diagnose.inspection import inspect_recordings
    from diffusion_policy.report.inspection_pictures import draw_pictures

    with progress("frames") as bar:
        inspection = inspect_recordings(
            arguments.directory, bar, arguments.gripper_scale, arguments.timestamps, arguments.mapping
        )
    pictures = [] if arguments.no_pictures else draw_pictures(inspection, arguments.output_dir)
    return CommandResult(inspection.table(pictures), inspection.exit_status, inspection.to_json())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
