"""Export a policy for a robot computer without torch: one ONNX graph from observations to actions.

python scripts/export_policy.py latest.ckpt policy.onnx                          # needs the extra: onnx
python scripts/export_policy.py latest.ckpt policy.onnx --steps 16

The whole denoising loop (DDIM) is in the graph; the starting noise is an input. ONNX Runtime's answers are
compared with the policy's before the file gets its name. policy.onnx.json describes inputs and outputs. Exit
status: 0 written, 2 refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_policy.command_line import CommandResult, run_command
from diffusion_policy.policy.default_sampler import DEFAULT_SAMPLER

SCHEDULER = "ddim"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("checkpoint", type=Path, metavar="CKPT")
    parser.add_argument("output", type=Path, metavar="FILE.onnx", help="file to write, with FILE.onnx.json")
    parser.add_argument("--weights", choices=["ema_model", "model"], default="ema_model")
    parser.add_argument(
        "--steps", type=int, default=DEFAULT_SAMPLER.steps, help="denoising steps (default %(default)d)"
    )


def work(arguments: argparse.Namespace) -> CommandResult:
    """Exports, and reports how closely the graph matches."""
    from diffusion_policy.checkpoint import load_policy, read_checkpoint
    from diffusion_policy.export.onnx_policy import export_onnx
    from diffusion_policy.policy.registry import refuse_memory
    from diffusion_policy.policy.sampler import set_sampler
    from diffusion_policy.storage import file_sha256

    checkpoint = read_checkpoint(arguments.checkpoint)
    refuse_memory(checkpoint.cfg.policy, checkpoint.path)
    policy = load_policy(checkpoint, which=arguments.weights)
    set_sampler(policy, SCHEDULER, arguments.steps)
    about = {
        "checkpoint": str(arguments.checkpoint), "checkpoint_sha256": file_sha256(arguments.checkpoint),
        "weights": arguments.weights, "scheduler": SCHEDULER, "steps": arguments.steps,
    }  # fmt: skip
    exported = export_onnx(policy.eval(), arguments.output, about)
    return CommandResult(
        f"{exported.path}: {SCHEDULER}, {arguments.steps} steps; ONNX Runtime's actions are at most "
        f"{exported.difference:.1e} from the policy's, in a range of 2"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
