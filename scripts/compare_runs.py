"""Compare training runs: differing settings, overlaid curves, success and scores, and which run to deploy.

    python scripts/compare_runs.py data/outputs/2026.01.08/10.11.12_* --html comparison.html
    python scripts/compare_runs.py RUN_A RUN_B --closed-loop rollouts_a.json rollouts_b.json

Closed-loop results in a run's folder (closed_loop*.json) are used without being named. Exit status: 0 a run can be
recommended, 1 none can, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of training runs, two or more")
    parser.add_argument(
        "--closed-loop", nargs="+", type=Path, default=[], metavar="JSON", help="results of evaluate_closed_loop.py"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write one self-contained page")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Compares the runs."""
    from diffusion_policy.report.comparison import compare
    from diffusion_policy.storage import write_text

    comparison = compare(arguments.runs, arguments.closed_loop)
    if arguments.html:
        write_text(arguments.html, comparison.page())
    return CommandResult(comparison.table(), 0 if comparison.best is not None else 1, comparison.to_json())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv, outputs=("html",))


if __name__ == "__main__":
    sys.exit(main())
