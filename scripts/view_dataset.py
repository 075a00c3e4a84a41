"""View the episodes of a dataset on one page: frames, gripper, path, tasks, findings; and mark those to delete.

    python scripts/view_dataset.py data/zarr/cogact.zarr --output cogact.html
    python scripts/view_dataset.py data/zarr/a.zarr data/zarr/b.zarr.zip --episodes 3 5-8 --output few.html

The page opens from disk. Episodes marked on it are saved to a file for edit_dataset.py --delete-marked. A page's
size is limited: episodes whose pictures do not fit are still listed. Exit status: 0 written, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, progress, run_command
from diffusion_policy.gripper_scale import add_gripper_scale


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="ZARR", help="datasets: folders, zips or URLs")
    add("--output", type=Path, metavar="HTML", help="the page to write (default: named after the dataset, here)")
    add(
        "--episodes",
        nargs="+",
        metavar="N",
        help="episodes to show with pictures: numbers, ranges (over all inputs, from 0)",
    )
    add("--frames", type=int, default=120, metavar="N", help="most pictures per episode and camera (default: 120)")
    add("--max-megabytes", type=float, default=20.0, metavar="MB", help="size of the page (default: 20)")
    add("--all-frames", action="store_true", help="read every frame, like verify_converted_data.py")
    add_gripper_scale(parser)


def work(arguments: argparse.Namespace) -> CommandResult:
    """Writes the page."""
    from diffusion_policy.report.dataset_page import PageSettings, numbers_of, open_set, write_dataset_page

    output = arguments.output or Path(f"{arguments.inputs[0].name}.html")
    settings = PageSettings(
        episodes=None if arguments.episodes is None else numbers_of(arguments.episodes),
        megabytes=arguments.max_megabytes,
        frames=arguments.frames,
        all_frames=arguments.all_frames,
        gripper_scale=arguments.gripper_scale,
    )
    opened = []
    for path in arguments.inputs:
        with progress(f"{'frames read of' if settings.all_frames else 'checking'} {path.name}") as bar:
            opened.append(open_set(path, settings, bar))
    with progress("episodes") as bar:
        text = write_dataset_page(output, opened, settings, bar)
    return CommandResult(f"{text}\n{output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv, outputs=("output",))


if __name__ == "__main__":
    sys.exit(main())
