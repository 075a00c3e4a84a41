"""Record pick and places of the scripted expert on the built-in tabletop, in the robot's recording format.

python scripts/make_demo_trajectories.py --output data/demo/trajectories --episodes 16
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from diffusion_policy.sim.recorder import make_trajectories
from diffusion_policy.spec import WorkspaceError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 recorded, 2 refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder for episode_0000/ and so on")
    parser.add_argument("--episodes", type=int, default=16, help="how many (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds make equal files (default: 0)")
    parser.add_argument(
        "--resolution", type=int, nargs=2, default=(640, 360), metavar=("WIDTH", "HEIGHT"), help="(default: 640 360)"
    )
    arguments = parser.parse_args(argv)
    try:
        folders = make_trajectories(arguments.output, arguments.episodes, arguments.seed, tuple(arguments.resolution))
    except WorkspaceError as error:
        Console(stderr=True).print(f"error: {error}", markup=False)
        return 2
    Console().print(f"recorded {len(folders)} episodes in {arguments.output}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
