"""Convert recordings to the dataset that training reads: CogACT trajectories, or a LeRobot dataset (v2.1, v3.0).

Example:
    python scripts/convert_cogact_to_zarr.py --input data/raw/trajectories --output data/zarr/out.zarr \
        --resolution 320 180 --start-episode 66 --max-episodes 36

An interrupted conversion keeps the finished episodes; the same command with --resume continues.
Exit status: 0 converted, whatever the checks at the end find; 2 refused; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from diffusion_policy.command_line import CommandResult, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares both generations of the command line."""
    from diffusion_policy.convert.arguments import add_conversion_arguments

    add_conversion_arguments(
        parser, "folder with episode_0000/ and so on, or a LeRobot dataset's (meta/info.json), or s3://BUCKET/..."
    )


def work(arguments: argparse.Namespace) -> CommandResult:
    """Converts, and reports what became of the episodes and what the checks found."""
    from diffusion_policy.convert.arguments import run_conversion
    from diffusion_policy.diagnose.conversion_verdict import checked

    return run_conversion(arguments, checked)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
