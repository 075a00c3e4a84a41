"""Record demonstrations of the scripted expert on the built-in tabletop, in the robot's recording format.

python scripts/make_demo_trajectories.py --output data/demo/trajectories --episodes 16
python scripts/make_demo_trajectories.py --output data/varied --task distractors --variation 1 --referee physics

An interrupted recording keeps the complete episodes; the same command with --resume records the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, Stopped, run_command, seed_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--output", required=True, type=Path, help="folder for episode_0000/ and so on")
    parser.add_argument("--episodes", type=int, default=16, help="number of episodes (default: 16)")
    parser.add_argument("--seed", type=seed_number, default=0, help="equal seeds make equal files (default: 0)")
    parser.add_argument(
        "--resolution", type=int, nargs=2, default=(640, 360), metavar=("WIDTH", "HEIGHT"), help="(default: 640 360)"
    )
    parser.add_argument(
        "--task",
        default="pick_and_place",
        help="pick_and_place (the default), two_in_order, distractors, or pose_only: the gripper stays open",
    )
    parser.add_argument(
        "--variation", type=float, default=0.0, help="0 (always the same, the default) to 1 (as much as people vary)"
    )
    parser.add_argument(
        "--referee", default="kinematic", help="what moves the blocks: kinematic (the default) or physics"
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted recording")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Records the episodes."""
    from diffusion_policy.sim.recorder import episode_folders, make_trajectories

    try:
        folders = make_trajectories(
            arguments.output,
            arguments.episodes,
            arguments.seed,
            tuple(arguments.resolution),
            task=arguments.task,
            variation=arguments.variation,
            referee=arguments.referee,
            resume=arguments.resume,
        )
    except KeyboardInterrupt as error:
        kept = sum(folder.exists() for folder in episode_folders(arguments.output, arguments.episodes))
        if not kept:
            raise
        kept_text = f"{kept} of {arguments.episodes} episodes are kept in {arguments.output}"
        raise Stopped(kept_text, added=["--resume"]) from error
    return CommandResult(f"recorded {len(folders)} episodes in {arguments.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
