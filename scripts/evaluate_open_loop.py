"""Measure a checkpoint's errors on held-out recorded episodes, compared with baselines that it must beat.

    python scripts/evaluate_open_loop.py data/outputs/.../latest.ckpt data/zarr/set.zarr
    python scripts/evaluate_open_loop.py new.ckpt data/zarr/set.zarr --against old.ckpt --json errors.json

Exit status: 0 if the policy beats every baseline, 1 if not, 2 on bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, progress, run_command, seed_number
from diffusion_policy.gripper_events import TOLERANCE_SECONDS
from diffusion_policy.gripper_scale import add_gripper_scale
from diffusion_policy.policy import SCHEDULER_NAMES
from diffusion_policy.policy.default_sampler import DEFAULT_SAMPLER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("checkpoint", type=Path, metavar="CKPT")
    parser.add_argument("dataset", type=Path, metavar="ZARR")
    parser.add_argument("--against", type=Path, metavar="CKPT", help="another checkpoint to compare with")
    parser.add_argument("--episodes", nargs="+", default=["held-out"], help="held-out (default), all, or numbers")
    add_gripper_scale(parser)
    parser.add_argument("--samples", type=int, default=4, help="noise samples at each step (default 4)")
    parser.add_argument("--scheduler", choices=SCHEDULER_NAMES, default=DEFAULT_SAMPLER.scheduler)
    parser.add_argument(
        "--steps", type=int, default=DEFAULT_SAMPLER.steps, help="denoising steps (default %(default)d)"
    )
    parser.add_argument("--tolerance", type=float, default=TOLERANCE_SECONDS, metavar="SECONDS",
        help="seconds between a predicted and a recorded gripper event that match (default %(default)g)")  # fmt: skip
    parser.add_argument("--seed", type=seed_number, default=42)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Evaluates the checkpoint, and the one to compare with."""
    from diffusion_policy.evaluate.episode_choice import parse_episodes
    from diffusion_policy.evaluate.open_loop_report import compare_open_loop, evaluate_open_loop
    from diffusion_policy.evaluate.open_loop_table import comparison_table, open_loop_table
    from diffusion_policy.evaluate.recorded_inference import Sampling

    episodes = parse_episodes(arguments.episodes)
    sampling = Sampling(arguments.scheduler, arguments.steps, arguments.seed)
    checkpoints = [path for path in (arguments.against, arguments.checkpoint) if path]
    reports = []
    for path in checkpoints:
        with progress("predictions") as show:
            reports.append(
                evaluate_open_loop(
                    path,
                    arguments.dataset,
                    episodes,
                    sampling,
                    arguments.samples,
                    arguments.device,
                    tolerance_s=arguments.tolerance,
                    gripper_scale=arguments.gripper_scale,
                    on_progress=show,
                )
            )
    differences = compare_open_loop(*reports) if arguments.against else {}
    shown = [part for report in reports for part in (*open_loop_table(report), "")]
    if differences:
        shown += comparison_table(differences, *(report.checkpoint for report in reports))
    document = {"reports": [report.to_json() for report in reports], "comparison": differences}
    return CommandResult(shown, 1 if reports[-1].shortcomings() else 0, document)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
