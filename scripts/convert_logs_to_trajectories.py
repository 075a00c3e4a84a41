"""Turn logs of runs (and old ones with images) into CogACT trajectories for the converter.

python scripts/convert_logs_to_trajectories.py data/logs/serve/run_* --output data/raw/from_logs
python scripts/convert_logs_to_trajectories.py RUN --output DIR --corrections fixed.json     {"41": [8 numbers], ...}
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from diffusion_policy.serve.log_to_trajectory import convert_logs, read_corrections
from diffusion_policy.spec import WorkspaceError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="runs' folders, or inference_log_*.json")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--corrections", type=Path, metavar="JSON", help="corrected actions by step, for one log")
    arguments = parser.parse_args(argv)
    if arguments.corrections and len(arguments.logs) > 1:
        parser.error("--corrections belongs to one log")
    try:
        corrections = read_corrections(arguments.corrections) if arguments.corrections else None
        episodes = convert_logs(arguments.logs, arguments.output, corrections)
    except WorkspaceError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    lines = [f"{e.path}: {e.n_steps} steps, {e.left_out} left out, {e.corrected} corrected" for e in episodes]
    Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
