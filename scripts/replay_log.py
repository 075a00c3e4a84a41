"""Recompute the actions of a logged run, and compare them with the log.

python scripts/replay_log.py data/logs/serve/run_20260108_171739 --ckpt latest.ckpt
python scripts/replay_log.py RUN --ckpt other.ckpt --steps 4

Exit status: 0 reproduced (or compared with another policy), 1 not reproduced, 2 cannot be replayed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, run_command
from diffusion_policy.policy import SCHEDULER_NAMES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--ckpt", type=Path, required=True, help="the log's own checkpoint, or another")
    parser.add_argument("--scheduler", choices=SCHEDULER_NAMES, help="default: the log's")
    parser.add_argument("--steps", type=int, help="default: the log's")
    parser.add_argument("--device", help="default: the log's")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the comparison")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Recomputes the run."""
    from diffusion_policy.serve.replay import replay

    wanted = {name: getattr(arguments, name) for name in ("scheduler", "steps", "device")}
    overrides = {name: value for name, value in wanted.items() if value is not None}
    comparison = replay(arguments.run, arguments.ckpt, overrides)
    return CommandResult(comparison.table(), 0 if comparison.passed else 1, comparison.to_json())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
