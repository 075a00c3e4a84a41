"""Write one page about a fine-tune, in one file: verdict, findings, closed loop, data, ledger, curves, errors, replay.

    python scripts/report.py --run data/outputs/... --out report.html
    python scripts/report.py --dataset data/zarr/set.zarr --out data.html
    python scripts/report.py --log data/logs/inference_log_*.json --open-loop errors.json --out report.html
    python scripts/report.py --checkpoint tuned.ckpt --closed-loop closed_loop.json --out report.html

Sections appear for what is given; a run adds its datasets, best checkpoint, closed-loop results and logs. Exit
status: 0 the verdict is good or has doubts, 1 it is bad, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, progress, run_command
from diffusion_policy.gripper_scale import add_gripper_scale


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--dataset", nargs="+", type=Path, default=[], metavar="ZARR", help="converted datasets")
    parser.add_argument("--checkpoint", type=Path, metavar="CKPT", help="a checkpoint of the policy")
    parser.add_argument("--run", type=Path, metavar="DIR", help="folder of a training run")
    parser.add_argument("--log", nargs="+", type=Path, default=[], metavar="LOG", help="logs, or folders of them")
    parser.add_argument(
        "--open-loop", nargs="+", type=Path, default=[], metavar="JSON", help="results of evaluate_open_loop.py"
    )
    parser.add_argument(
        "--closed-loop", nargs="+", type=Path, default=[], metavar="JSON", help="results of evaluate_closed_loop.py"
    )
    add_gripper_scale(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="HTML", help="the page to write")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Writes the page."""
    from diffusion_policy.evaluate.gripper_table import find_logs
    from diffusion_policy.report.report_page import Sources, write_report

    logs = tuple(find_logs(arguments.log))
    given = (tuple(arguments.dataset), arguments.checkpoint, arguments.run, logs, tuple(arguments.open_loop))
    sources = Sources(*given, arguments.gripper_scale, tuple(arguments.closed_loop))
    with progress("files") as show:
        verdict = write_report(arguments.out, sources, show)
    return CommandResult(f"{verdict.sentence}\n{arguments.out}", 1 if verdict.level == "bad" else 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv, outputs=("out",))


if __name__ == "__main__":
    sys.exit(main())
