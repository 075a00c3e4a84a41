"""Say of inference logs when the policy commands its gripper to close and to open, and how firm that is.

    python scripts/validate_gripper.py data/logs/inference_log_*.json --json verdicts.json

Commands show when the gripper would close; that it then holds something, only a rollout shows. Commands that are not
0 (closed) to 1 (open) need their scale: --gripper-scale NAME, or COMMAND/MEASURED, with the names of docs/data.md.
Exit status: 0 if it opens and closes in every log, 1 if not in one (also: unknown scale), 2 if one cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, run_command
from diffusion_policy.gripper_scale import add_gripper_scale, parse_scales


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="inference_log_*.json, or folders of them")
    parser.add_argument("--before", nargs="+", type=Path, default=[], metavar="LOG", help="logs to compare with")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write a list of objects, one a log")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write the table as one page")
    add_gripper_scale(parser)


def work(arguments: argparse.Namespace) -> CommandResult:
    """Judge the logs."""
    from diffusion_policy.evaluate.gripper_table import validate_logs
    from diffusion_policy.report.gripper_page import write_page

    validation = validate_logs(arguments.logs, arguments.before, parse_scales(arguments.gripper_scale))
    if arguments.json is not None:
        validation.write(arguments.json)
    if arguments.html is not None:
        write_page(arguments.html, validation)
    return CommandResult(validation.table(), validation.exit_status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv, outputs=("html",))


if __name__ == "__main__":
    sys.exit(main())
