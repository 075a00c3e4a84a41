"""Run a checkpoint on recorded episodes as the robot would, and write an inference log for each.

python scripts/run_offline_inference.py data/outputs/.../latest.ckpt data/zarr/set.zarr --output data/logs
python scripts/validate_gripper.py data/logs
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, progress, run_command, seed_number
from diffusion_policy.gripper_scale import add_gripper_scale
from diffusion_policy.policy import SCHEDULER_NAMES
from diffusion_policy.policy.default_sampler import DEFAULT_SAMPLER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("checkpoint", type=Path, metavar="CKPT")
    parser.add_argument("dataset", type=Path, metavar="ZARR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to write the logs")
    parser.add_argument(
        "--episodes",
        nargs="+",
        default=["held-out"],
        metavar="WHICH",
        help="held-out (default), all, or episode numbers",
    )
    add_gripper_scale(parser)
    parser.add_argument("--scheduler", choices=SCHEDULER_NAMES, default=DEFAULT_SAMPLER.scheduler)
    parser.add_argument(
        "--steps", type=int, default=DEFAULT_SAMPLER.steps, help="denoising steps (default %(default)d)"
    )
    parser.add_argument("--stride", type=int, default=1, help="recorded steps per inference (default %(default)d)")
    parser.add_argument("--seed", type=seed_number, default=42)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", choices=["ema_model", "model"], default="ema_model")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Runs the checkpoint on the episodes."""
    from diffusion_policy.evaluate.episode_choice import parse_episodes
    from diffusion_policy.evaluate.recorded_inference import run_recorded_inference

    with progress("inferences") as show:
        logging.basicConfig(level=logging.INFO, format="%(message)s")  # above the bar
        logs = run_recorded_inference(
            arguments.checkpoint,
            arguments.dataset,
            arguments.output,
            parse_episodes(arguments.episodes),
            scheduler=arguments.scheduler,
            steps=arguments.steps,
            device=arguments.device,
            seed=arguments.seed,
            stride=arguments.stride,
            which=arguments.weights,
            gripper_scale=arguments.gripper_scale,
            on_progress=show,
        )
    return CommandResult(f"{len(logs)} logs in {arguments.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
