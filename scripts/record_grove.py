"""Record demonstrations of the scripted expert in the grove, in the format of OpenAI's contractors (MP4, JSON lines).

    python scripts/record_grove.py --output data/grove/recordings --task log --episodes 30
    python scripts/convert_dataset.py --input data/grove/recordings --output data/grove/log.zarr --resolution 128 128

An interrupted recording keeps the complete episodes; the same command with --resume records the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, Stopped, progress, run_command, seed_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--output", required=True, type=Path, help="folder for TASK_SEED_0000.mp4, .jsonl and so on")
    parser.add_argument("--task", default="log", help="log (the default), wool or stone")
    parser.add_argument("--episodes", type=int, default=30, help="number of episodes (default: 30)")
    parser.add_argument("--seed", type=seed_number, default=0, help="equal seeds make equal episodes (default: 0)")
    parser.add_argument(
        "--variation", type=float, default=0.5, help="0 (always the same) to 1: pauses, uneven turns (default: 0.5)"
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted recording")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Records the episodes."""
    from diffusion_policy.errors import WorkspaceError
    from diffusion_policy.minecraft.recorder import grove_files, record_grove

    count, settings = arguments.episodes, {"task": arguments.task, "variation": arguments.variation}
    if count < 1:
        raise WorkspaceError(f"--episodes is {count}; expected 1 or more")
    if not 0 <= arguments.variation <= 1:
        raise WorkspaceError(f"--variation is {arguments.variation}; expected 0 to 1")
    try:
        with progress("episodes") as show:
            recording = record_grove(arguments.output, count, arguments.seed, **settings, resume=arguments.resume)
            for done, _ in enumerate(recording, 1):
                show(done, count)
    except KeyboardInterrupt as error:
        files = grove_files(arguments.output, count, arguments.seed, arguments.task)
        kept = sum(file.exists() for file in files)
        if not kept:
            raise
        raise Stopped(f"{kept} of {count} episodes are kept in {arguments.output}", added=["--resume"]) from error
    return CommandResult(f"recorded {count} episodes of {arguments.task} in {arguments.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
