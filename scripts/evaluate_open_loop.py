"""Errors of a checkpoint on held-out recorded episodes, beside baselines that it must beat.

    python scripts/evaluate_open_loop.py data/outputs/.../latest.ckpt data/zarr/set.zarr
    python scripts/evaluate_open_loop.py new.ckpt data/zarr/set.zarr --against old.ckpt --json errors.json

Exit status: 0 if the policy beats every baseline, 1 if not, 2 on bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from diffusion_policy.evaluate.open_loop_report import compare_open_loop, evaluate_open_loop
from diffusion_policy.evaluate.open_loop_table import comparison_table, open_loop_table
from diffusion_policy.evaluate.recorded_inference import Sampling, parse_episodes
from diffusion_policy.evaluate.writing import write_json
from diffusion_policy.policy.sampler import SCHEDULERS
from diffusion_policy.spec import WorkspaceError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT")
    parser.add_argument("dataset", type=Path, metavar="ZARR")
    parser.add_argument("--against", type=Path, metavar="CKPT", help="another checkpoint to compare with")
    parser.add_argument("--episodes", nargs="+", default=["held-out"], help="held-out (default), all, or numbers")
    parser.add_argument("--samples", type=int, default=4, help="noise samples at each step (default 4)")
    parser.add_argument("--scheduler", choices=SCHEDULERS, default="ddim")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps (default 8)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers")
    arguments = parser.parse_args(argv)
    console = Console()
    try:
        episodes = parse_episodes(arguments.episodes)
        sampling = Sampling(arguments.scheduler, arguments.steps, arguments.seed)
        checkpoints = [path for path in (arguments.against, arguments.checkpoint) if path]
        reports = [
            evaluate_open_loop(path, arguments.dataset, episodes, sampling, arguments.samples, arguments.device)
            for path in checkpoints
        ]
        differences = compare_open_loop(*reports) if arguments.against else {}
        if arguments.json:
            write_json(arguments.json, {"reports": [r.to_json() for r in reports], "comparison": differences})
    except WorkspaceError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    for report in reports:
        console.print(open_loop_table(report), highlight=False)
        console.print()
    if differences:
        console.print(comparison_table(differences, *(report.checkpoint for report in reports)), highlight=False)
    return 1 if reports[-1].shortcomings() else 0


if __name__ == "__main__":
    sys.exit(main())
