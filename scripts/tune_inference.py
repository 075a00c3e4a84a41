"""Measure samplers on recorded data and this machine, and propose the cheapest that is good enough.

python scripts/tune_inference.py latest.ckpt data/zarr/set.zarr --candidates ddim:4 ddim:8 ddim:16 ddim:8:0.5 ddpm:100
A candidate is SCHEDULER:STEPS, or SCHEDULER:STEPS:WARM to start from the remainder of the last chunk.

Exit status: 0 one is proposed, 1 none fits the budget, 2 cannot be measured.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import Answer, progress, run_command
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_events import TOLERANCE_SECONDS
from diffusion_policy.gripper_scale import add_gripper_scale

CANDIDATES = ["ddim:4", "ddim:6", "ddim:8", "ddim:10", "ddim:16", "ddim:50", "dpm-solver++:8", "ddim:8:0.5"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from diffusion_policy.serve.settings import PRECISIONS

    parser.add_argument("checkpoint", type=Path, metavar="CKPT")
    parser.add_argument("dataset", type=Path, metavar="ZARR")
    parser.add_argument("--candidates", nargs="+", default=CANDIDATES, metavar="SCHEDULER:STEPS[:WARM]")
    parser.add_argument("--episodes", nargs="+", default=["held-out"], help="held-out (default), all, or numbers")
    add_gripper_scale(parser)
    parser.add_argument("--stride", type=int, default=6, help="steps executed before the client asks again")
    parser.add_argument("--hz", type=float, default=10.0, help="control rate")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE_SECONDS, metavar="SECONDS",
        help="how far a predicted gripper event may be from a recorded one (default %(default)g)")  # fmt: skip
    parser.add_argument("--budget-mm", type=float, default=1.0, help="more position error than the best")
    parser.add_argument("--budget-deg", type=float, default=0.5, help="more rotation error than the best")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--json", type=Path, metavar="OUT")


def work(arguments: argparse.Namespace) -> Answer:
    """Measure the candidates."""
    from diffusion_policy.evaluate.episode_choice import parse_episodes
    from diffusion_policy.serve.settings import EngineSettings
    from diffusion_policy.serve.tuning import Budget, parse_candidate, tune

    if not arguments.hz > 0:
        raise WorkspaceError(f"--hz is {arguments.hz}; expected more than 0")
    with progress("requests") as show:
        logging.basicConfig(level=logging.INFO, format="%(message)s")  # above the bar
        report = tune(
            arguments.checkpoint,
            arguments.dataset,
            [parse_candidate(word) for word in arguments.candidates],
            Budget(arguments.budget_mm, arguments.budget_deg, arguments.stride / arguments.hz),
            EngineSettings(device=arguments.device, precision=arguments.precision),
            parse_episodes(arguments.episodes),
            arguments.stride,
            arguments.hz,
            arguments.tolerance,
            arguments.gripper_scale,
            show,
        )
    return Answer(report.table(), 0 if report.passed else 1, report.to_json())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
