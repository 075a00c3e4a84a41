"""Compare training runs: settings that differ, curves over each other, gripper scores, and which to deploy.

    python scripts/compare_runs.py data/outputs/2026.01.08/10.11.12_* --html comparison.html

Exit status: 0 a run can be recommended, 1 none can, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from diffusion_policy.evaluate.writing import write_json, write_report
from diffusion_policy.report.comparison import compare
from diffusion_policy.spec import WorkspaceError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of training runs, two or more")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write one self-contained page")
    arguments = parser.parse_args(argv)
    try:
        comparison = compare(arguments.runs)
        if arguments.json:
            write_json(arguments.json, comparison.to_json())
        if arguments.html:
            write_report(arguments.html, comparison.page())
    except WorkspaceError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    Console().print(comparison.table(), highlight=False)
    return 0 if comparison.best is not None else 1


if __name__ == "__main__":
    sys.exit(main())
