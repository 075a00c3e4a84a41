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

from diffusion_policy.report.inspection import inspect_recordings
from diffusion_policy.report.inspection_door import add_output_flags, inspect_and_say


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("directory", nargs="?", type=Path, default=Path("data/raw/trajectories"), metavar="DIR",
        help="folder or URL that holds episode_0000/ and so on (default: data/raw/trajectories)")  # fmt: skip
    add_output_flags(parser)
    arguments = parser.parse_args(argv)
    return inspect_and_say(arguments, lambda bar: inspect_recordings(arguments.directory, bar))


if __name__ == "__main__":
    sys.exit(main())
