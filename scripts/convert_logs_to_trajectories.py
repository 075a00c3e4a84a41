"""Convert logs of runs (and older logs with images) to CogACT trajectories for the converter.

python scripts/convert_logs_to_trajectories.py data/logs/serve/run_* --output data/raw/from_logs
python scripts/convert_logs_to_trajectories.py RUN --output DIR --corrections fixed.json     # {"41": [8 numbers], ...}
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, run_command
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_scale import add_gripper_scale, parse_scales


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="run folders, or inference_log_*.json")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    add_gripper_scale(parser)
    parser.add_argument("--corrections", type=Path, metavar="JSON", help="corrected actions by step, for one log")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Converts the logs."""
    from diffusion_policy.run_log.to_trajectories import convert_logs, read_corrections

    if arguments.corrections and len(arguments.logs) > 1:
        raise WorkspaceError(f"--corrections applies to one log; there are {len(arguments.logs)}")
    corrections = read_corrections(arguments.corrections) if arguments.corrections else None
    episodes = convert_logs(arguments.logs, arguments.output, corrections, parse_scales(arguments.gripper_scale))
    lines = [f"{e.path}: {e.n_steps} steps, {e.left_out} left out, {e.corrected} corrected" for e in episodes]
    return CommandResult("\n".join(lines))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
