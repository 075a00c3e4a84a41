"""Go through the known troubles of a fine-tune in order, and end with the cause and the next command.

    python scripts/doctor.py                                        # this machine
    python scripts/doctor.py --dataset data/zarr/set.zarr --checkpoint grown.ckpt
    python scripts/doctor.py --config train_cogact_robot task.dataset_path=data/zarr/set.zarr
    python scripts/doctor.py --run data/outputs/... --log data/logs/inference_log_*.json

Exit status: 0 fine, 1 trouble found, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from diffusion_policy.evaluate.gripper_table import find_logs
from diffusion_policy.evaluate.writing import write_json
from diffusion_policy.report.doctor import examine
from diffusion_policy.report.training_evidence import compose_config
from diffusion_policy.spec import WorkspaceError

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the door; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs="+", type=Path, default=[], metavar="ZARR", help="converted datasets")
    parser.add_argument("--checkpoint", type=Path, metavar="CKPT", help="a checkpoint of the policy")
    parser.add_argument(
        "--config", nargs="+", metavar="NAME", help="a config of config/, then overrides as for train.py"
    )
    parser.add_argument("--run", type=Path, metavar="DIR", help="folder of a training run; brings its files along")
    parser.add_argument("--log", nargs="+", type=Path, default=[], metavar="LOG", help="logs, or folders of them")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write findings and diagnosis")
    arguments = parser.parse_args(argv)
    try:
        logs = find_logs(arguments.log)
        config = None
        if arguments.config:
            name, *overrides = arguments.config
            config = arguments.config, compose_config(ROOT / "config", name, overrides)
        examination = examine(
            arguments.dataset, arguments.checkpoint, config, arguments.run, logs, ROOT / "data" / "outputs"
        )
        if arguments.json:
            write_json(arguments.json, examination.to_json())
    except WorkspaceError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    Console().print(examination.table(), highlight=False, crop=False)
    return examination.exit_status


if __name__ == "__main__":
    sys.exit(main())
