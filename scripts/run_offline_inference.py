"""Run a checkpoint over recorded episodes as the robot would, and write an inference log for each.

python scripts/run_offline_inference.py data/outputs/.../latest.ckpt data/zarr/set.zarr --output data/logs
python scripts/validate_gripper.py data/logs
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from diffusion_policy.evaluate.recorded_inference import parse_episodes, run_recorded_inference
from diffusion_policy.policy.sampler import SCHEDULERS
from diffusion_policy.spec import WorkspaceError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT")
    parser.add_argument("dataset", type=Path, metavar="ZARR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the logs go")
    parser.add_argument(
        "--episodes",
        nargs="+",
        default=["held-out"],
        metavar="WHICH",
        help="held-out (default), all, or episode numbers",
    )
    parser.add_argument("--scheduler", choices=SCHEDULERS, default="ddim")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps (default 8)")
    parser.add_argument("--stride", type=int, default=1, help="an inference every so many recorded steps")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", choices=["ema_model", "model"], default="ema_model")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
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
        )
    except WorkspaceError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    Console().print(f"{len(logs)} logs in {arguments.output}", markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
