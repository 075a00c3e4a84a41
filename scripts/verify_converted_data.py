"""Inspect a converted dataset before training: counts, ranges, clocks, jumps, frames, gripper; and draw it.

    python scripts/verify_converted_data.py --zarr-path data/zarr/out.zarr --output-dir data/inspection
    python scripts/verify_converted_data.py --zarr-path data/zarr/out.zarr --checkpoint data/pretrained/old.ckpt

With a checkpoint: whether its statistics, and its quaternion sign, fit the dataset.
Exit status: 0 nothing forbids training on it (warnings may remain), 1 an error does, 2 bad input.
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
    add("--zarr-path", required=True, type=Path, metavar="ZARR", help="a converted dataset, or its URL")
    add("--checkpoint", type=Path, metavar="CKPT", help="checkpoint of a policy to be trained further on it")
    add_gripper_scale(parser)
    add("--output-dir", type=Path, default=Path(), metavar="DIR", help="where to write the pictures (default: here)")
    add("--no-pictures", action="store_true", help="draw nothing")
    add("--json", type=Path, metavar="OUT", help="write findings and evidence")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Inspects, and draws."""
    from diffusion_policy.diagnose.inspection import inspect_dataset
    from diffusion_policy.report.inspection_pictures import draw_pictures

    with progress("frames read") as bar:
        inspection = inspect_dataset(arguments.zarr_path, arguments.checkpoint, bar, arguments.gripper_scale)
    pictures = [] if arguments.no_pictures else draw_pictures(inspection, arguments.output_dir)
    return CommandResult(inspection.table(pictures), inspection.exit_status, inspection.to_json())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
