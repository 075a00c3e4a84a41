"""Pre-train the small VPT that ships with the project: record the grove's wool and stone tasks, convert, clone, pack.

    python scripts/pretrain_demo_vpt.py --output data/pretrained/grove_vpt.weights

The weights are packed in float16 under the released names, a flat state dict like upstream's, with OUTPUT.json: the
commands and figures behind them. About 15 minutes on one core. Exit status: 0 written, otherwise that of the command
that failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_policy.command_line import CommandResult, run_command, seed_number
from diffusion_policy.recipe import Step, prepare, run_recipe

MARKER = ".made_by_pretrain_demo_vpt"
TASKS = ("stone", "wool")
FIGURES = ("global_step", "train_loss", "val_loss", "val_accuracy_buttons", "val_accuracy_camera")


def recipe(folder: Path, episodes: int, seed: int, epochs: int) -> list[Step]:
    """Returns the commands, in order."""
    recordings, data, run = (f"{folder}/{name}" for name in ("recordings", "data.zarr", "run"))
    record = ("scripts/record_grove.py", "--output", recordings, "--episodes", str(episodes), "--seed", str(seed))
    convert = ("scripts/convert_dataset.py", "--input", recordings, "--output", data, "--resolution", "128", "128")
    train = ("train.py", "--config-name=train_vpt_bc", "experiment=vpt_grove", f"task.dataset_path={data}")
    return [
        *(Step(f"Record {task}", (*record, "--variation", "0", "--task", task)) for task in TASKS),
        Step("Convert the recordings", convert),
        Step("Clone them", (*train, f"hydra.run.dir={run}", f"training.num_epochs={epochs}", "training.threads=1")),
    ]


def pack(run: Path, output: Path) -> None:
    """Writes the weights of a run's last checkpoint in float16."""
    from diffusion_policy.checkpoint import load_policy
    from diffusion_policy.policy.vpt_weights import write_weights

    policy = load_policy(run / "checkpoints" / "latest.ckpt", which="model")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_weights(policy.half(), output)


def origin(folder: Path, steps: Sequence[Step]) -> dict[str, Any]:
    """Returns where the weights come from: the commands, with WORKDIR for the folder, and the run's last figures."""
    from diffusion_policy.run_folder.reading import open_run

    commands = [" ".join(step.words).replace(str(folder), "WORKDIR") for step in steps]
    return {"commands": commands, "figures": open_run(folder / "run").newest(FIGURES)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--output", type=Path, default=Path("data/pretrained/grove_vpt.weights"))
    parser.add_argument("--workdir", type=Path, default=Path("data/demo_vpt_pretraining"), help="made anew")
    parser.add_argument("--episodes", type=int, default=100, help="episodes of each task (default 100)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over them (default 10)")
    parser.add_argument("--seed", type=seed_number, default=7, help="seed of the recordings (default 7)")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Runs the commands and packs what they made."""
    from diffusion_policy.storage import write_json

    folder = arguments.workdir
    steps = recipe(folder, arguments.episodes, arguments.seed, arguments.epochs)
    prepare(folder, MARKER)
    ran = run_recipe(steps)
    if ran.failure is not None:
        return CommandResult(ran.failure, ran.statuses[-1])
    pack(folder / "run", arguments.output)
    described = origin(folder, steps)
    write_json(arguments.output.with_name(f"{arguments.output.name}.json"), described)
    size = arguments.output.stat().st_size / 1e6
    return CommandResult(f"wrote {arguments.output}, {size:.1f} MB: {json.dumps(described['figures'])}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv, outputs=["output"])


if __name__ == "__main__":
    sys.exit(main())
