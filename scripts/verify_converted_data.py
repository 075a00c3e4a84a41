"""Look at a converted dataset before training: counts, ranges, clocks, jumps, frames, gripper; and draw it.

    python scripts/verify_converted_data.py --zarr-path data/zarr/out.zarr --output-dir data/inspection
    python scripts/verify_converted_data.py --zarr-path data/zarr/out.zarr --checkpoint data/pretrained/old.ckpt

With a checkpoint: whether its statistics, and its quaternion sign, fit the dataset.
Exit status: 0 training on it is advisable, 1 it is not, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from diffusion_policy.evaluate.writing import write_json
from diffusion_policy.report.inspection import inspect_dataset
from diffusion_policy.report.inspection_pictures import draw_pictures
from diffusion_policy.spec import WorkspaceError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--zarr-path", required=True, type=Path, metavar="ZARR", help="converted dataset")
    add("--checkpoint", type=Path, metavar="CKPT", help="policy that is to be trained further on it")
    add("--output-dir", type=Path, default=Path(), metavar="DIR", help="where the pictures go (default: here)")
    add("--no-pictures", action="store_true", help="draw nothing")
    add("--json", type=Path, metavar="OUT", help="write findings and evidence")
    arguments = parser.parse_args(argv)
    try:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("frames", total=None)
            inspection = inspect_dataset(
                arguments.zarr_path,
                arguments.checkpoint,
                lambda done, total: bar.update(task, completed=done, total=total),
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
