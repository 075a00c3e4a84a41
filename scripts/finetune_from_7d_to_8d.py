"""Make an 8-D (pose and gripper) checkpoint from a 7-D (pose) one, ready to be fine-tuned.

    python scripts/finetune_from_7d_to_8d.py --old_ckpt data/pretrained/cogact_7d.ckpt \
        --new_ckpt data/pretrained/cogact_7d_to_8d_init.ckpt

Then train with `pretrained.path=data/pretrained/cogact_7d_to_8d_init.ckpt`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from diffusion_policy.command_line import CommandResult, progress, run_command
from diffusion_policy.gripper_scale import add_gripper_scale


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--old_ckpt", required=True, help="7-D checkpoint (x y z qx qy qz qw); never written to")
    parser.add_argument("--new_ckpt", required=True, help="8-D checkpoint to write")
    parser.add_argument("--mode", choices=("grow", "strip"), default="grow",
                        help="grow: keep the action projections, with proof; strip: reinitialize them")  # fmt: skip
    parser.add_argument("--dataset", metavar="ZARR", help="take the gripper's normalizer entry from this dataset")
    add_gripper_scale(parser)
    parser.add_argument("--ledger", metavar="JSON", help="where to write the ledger (default: NEW_CKPT.ledger.json)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing NEW_CKPT")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Grows the checkpoint, with its ledger."""
    from diffusion_policy.adapt.pose_to_gripper import grow_7d_to_8d

    with progress("stages") as show:
        ledger = grow_7d_to_8d(
            arguments.old_ckpt, arguments.new_ckpt, arguments.mode, arguments.dataset, ledger_path=arguments.ledger,
            overwrite=arguments.overwrite, gripper_scale=arguments.gripper_scale, on_progress=show,
        )  # fmt: skip
    return CommandResult([*ledger.table(), f"wrote {arguments.new_ckpt}"])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv, outputs=("new_ckpt", "ledger"))


if __name__ == "__main__":
    sys.exit(main())
