"""Export a logged run for other tools; the run itself is not changed.

python scripts/export_run.py RUN --inference-log data/logs     # the predecessor's inference_log_*.json
python scripts/export_run.py RUN --vlalab vlalab_runs          # a run directory of VLA-Lab
python scripts/export_run.py RUN --rerun run.rrd               # a Rerun recording (extra: rerun)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, run_command
from diffusion_policy.errors import WorkspaceError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--inference-log", type=Path, metavar="DIR")
    kinds.add_argument("--vlalab", type=Path, metavar="DIR")
    kinds.add_argument("--rerun", type=Path, metavar="FILE")
    parser.add_argument("--project", metavar="NAME", help="project name for --vlalab (default: diffusion_policy)")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Exports the run."""
    from diffusion_policy.run_log.exports import PROJECT, to_inference_log, to_rerun, to_vlalab

    if arguments.vlalab is not None:
        written = to_vlalab(arguments.run, arguments.vlalab, arguments.project or PROJECT)
    elif arguments.project is not None:
        raise WorkspaceError("--project only applies to --vlalab")
    elif arguments.inference_log is not None:
        written = to_inference_log(arguments.run, arguments.inference_log)
    else:
        written = to_rerun(arguments.run, arguments.rerun)
    return CommandResult(str(written))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
