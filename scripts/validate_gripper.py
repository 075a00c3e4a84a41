"""Say of inference logs whether the gripper was learned.

    python scripts/validate_gripper.py data/logs/inference_log_*.json --json verdicts.json

Exit status: 0 if every log is learned, 1 if one is not, 2 if one cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from diffusion_policy.evaluate.gripper_table import validate_logs
from diffusion_policy.spec import WorkspaceError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="inference_log_*.json, or folders of them")
    parser.add_argument("--before", nargs="+", type=Path, default=[], metavar="LOG", help="logs to compare with")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write a list of objects, one a log")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write the table as one page")
    arguments = parser.parse_args(argv)
    try:
        validation = validate_logs(arguments.logs, arguments.before)
        validation.write(json_path=arguments.json, html_path=arguments.html)
    except WorkspaceError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    Console().print(validation.table())
    return validation.exit_status


if __name__ == "__main__":
    sys.exit(main())
