"""Judge from inference logs when the policy commands its gripper to close and open, and how firm that is.

    python scripts/validate_gripper.py data/logs/inference_log_*.json --json verdicts.json

Commands show when the gripper would close; only a rollout shows whether it then holds something. Commands that are not
0 (closed) to 1 (open) need their scale: --gripper-scale NAME, or COMMAND/MEASURED, with the names in docs/data.md.
Exit status: 0 if it opens and closes in every log, 1 if not in some log (also if its scale is unknown), 2 if one cannot
be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, run_command
from diffusion_policy.gripper_scale import add_gripper_scale, parse_scales


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="inference_log_*.json, or folders of them")
    parser.add_argument("--before", nargs="+", type=Path, default=[], metavar="LOG", help="logs to compare with")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write a list with one object per log")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write the table as one page")
    add_gripper_scale(parser)


def work(arguments: argparse.Namespace) -> CommandResult:
    """Judges the logs."""
    from diffusion_policy.evaluate.gripper_table import validate_logs
    from diffusion_policy.report.gripper_page import write_page

    validation = validate_logs(arguments.logs, arguments.before, parse_scales(arguments.gripper_scale))
    if arguments.json is not None:
        validation.write(arguments.json)
    if arguments.html is not None:
        write_page(arguments.html, validation)
    return CommandResult(validation.table(), validation.exit_status)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv, outputs=("html",))


if __name__ == "__main__":
    sys.exit(main())
