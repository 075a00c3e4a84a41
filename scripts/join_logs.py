"""Show what was sent to the arm and what the server answered, request by request.

    python scripts/join_logs.py data/logs/arm/arm_20260108_171739.jsonl data/logs/serve/run_20260108_171738
    python scripts/join_logs.py ARM_LOG RUN RUN --json joined.json

For each request: time to the answer, inference, what the arm did with it, the age of the executed steps, and the seam
to the previous chunk; above them the figures of the whole run, with the time that the arm was held. Exit status: 0, or
2 if the logs do not belong together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("log", type=Path, metavar="ARM_LOG", help="arm_*.jsonl written by run_robot.py")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders of the server")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Joins the logs."""
    from dataclasses import asdict

    from diffusion_policy.serve.client.arm_log import read_arm_log
    from diffusion_policy.serve.client.loop_figures import LoopFigures
    from diffusion_policy.serve.joined_logs import join, joined_table

    log = read_arm_log(arguments.log)
    requests, figures = join(log, arguments.runs), LoopFigures.of(log)
    shown = [f"{name:26}{value}" for name, value in figures.rows()]
    document = {"run": figures.to_json(), "requests": [asdict(request) for request in requests]}
    return CommandResult([*shown, joined_table(requests)], document=document)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
