"""Check for the known troubles of a fine-tune in order, and end with the cause and the next command.

    python scripts/doctor.py                                        # this machine
    python scripts/doctor.py --dataset data/zarr/set.zarr --checkpoint grown.ckpt
    python scripts/doctor.py --config train_cogact_robot task.dataset_path=data/zarr/set.zarr
    python scripts/doctor.py --run data/outputs/... --log data/logs/inference_log_*.json
    python scripts/doctor.py --checkpoint tuned.ckpt --closed-loop closed_loop.json

Exit status: 0 no errors (there may be warnings), 1 errors, 2 bad input.
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
    parser.add_argument(
        "--config", nargs="+", metavar="NAME", help="a config in config/, then overrides as for train.py"
    )
    parser.add_argument("--run", type=Path, metavar="DIR", help="folder of a training run; adds its files")
    parser.add_argument("--log", nargs="+", type=Path, default=[], metavar="LOG", help="logs, or folders of them")
    parser.add_argument(
        "--closed-loop", nargs="+", type=Path, default=[], metavar="JSON", help="results of evaluate_closed_loop.py"
    )
    add_gripper_scale(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write findings and diagnosis")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Examines what is given."""
    from diffusion_policy.diagnose.doctor import examine
    from diffusion_policy.evaluate.gripper_table import find_logs
    from diffusion_policy.training_config import compose_training
    from diffusion_policy.workspace.run_settings import run_settings

    logs = find_logs(arguments.log)
    config = None
    if arguments.config:
        name, *overrides = arguments.config
        config = arguments.config, run_settings(compose_training(name, overrides))
    given = arguments.dataset, arguments.checkpoint, config, arguments.run, logs, Path("data/outputs")
    options = {"gripper_scale": arguments.gripper_scale, "closed_loop": arguments.closed_loop}
    with progress("files") as show:
        examination = examine(*given, **options, on_progress=show)
    return CommandResult(examination.table(), examination.exit_status, examination.to_json())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
