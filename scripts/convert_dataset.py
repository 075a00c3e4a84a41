"""Convert foreign datasets to the one that training reads: zarr sets (diffusion_policy, UMI), LeRobot, old recordings.


Examples:
    python scripts/convert_dataset.py --input cup.zarr.zip --output data/zarr/cup.zarr --mapping umi_zarr \
        --resolution 224 224
    python scripts/convert_dataset.py --input their_set.zarr --output data/zarr/theirs.zarr --mapping my.yaml --dry-run

Without --mapping, an input whose arrays are not self-describing is refused with a mapping to fill in. --dry-run
opens and checks every episode and writes nothing. An interrupted conversion continues with --resume.
Exit status: 0 converted, whatever the checks at the end find; 2 refused; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from diffusion_policy.command_line import CommandResult, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of every conversion."""
    from diffusion_policy.convert.arguments import add_conversion_arguments

    add_conversion_arguments(
        parser,
        "zarr in a folder or zip archive, a folder with replay_buffer.zarr and videos/, a LeRobot dataset's "
        "(meta/info.json), or a folder with episode_0000/ and so on",
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
