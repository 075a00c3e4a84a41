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

from diffusion_policy.report.inspection import inspect_dataset
from diffusion_policy.report.inspection_door import add_output_flags, inspect_and_say


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--zarr-path", required=True, type=Path, metavar="ZARR", help="converted dataset, or its URL")
    add("--checkpoint", type=Path, metavar="CKPT", help="policy that is to be trained further on it")
    add_output_flags(parser)
    arguments = parser.parse_args(argv)
    return inspect_and_say(arguments, lambda bar: inspect_dataset(arguments.zarr_path, arguments.checkpoint, bar))


if __name__ == "__main__":
    sys.exit(main())
