"""Compare training runs: settings that differ, curves over each other, success and scores, and which to deploy.

    python scripts/compare_runs.py data/outputs/2026.01.08/10.11.12_* --html comparison.html
    python scripts/compare_runs.py RUN_A RUN_B --closed-loop rollouts_a.json rollouts_b.json

Results of closed loop in a run's folder (closed_loop*.json) count without being named. Exit status: 0 a run can be
recommended, 1 none can, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of training runs, two or more")
    parser.add_argument(
        "--closed-loop", nargs="+", type=Path, default=[], metavar="JSON", help="of evaluate_closed_loop.py"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write one self-contained page")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Compare the runs."""
    from diffusion_policy.report.comparison import compare
    from diffusion_policy.storage import write_text

    comparison = compare(arguments.runs, arguments.closed_loop)
    if arguments.html:
        write_text(arguments.html, comparison.page())
    return CommandResult(comparison.table(), 0 if comparison.best is not None else 1, comparison.to_json())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv, outputs=("html",))


if __name__ == "__main__":
    sys.exit(main())
