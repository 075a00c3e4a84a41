"""Pre-train the 7-D pose policy that ships with the project: record, convert, train, pack.

    python scripts/pretrain_demo_policy.py --output data/pretrained/tabletop_7d.ckpt

It knows the way to the block and to the tray, but cannot command the gripper: the commands of its demonstrations are
cut to the pose. The average of the weights is packed in float16, once for model and average, with the commands and
versions that made it. About 40 minutes on one core. Exit status: 0 written, otherwise that of the command that failed.
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

MARKER = ".made_by_pretrain_demo_policy"
FIGURES = ("global_step", "train_loss", "val_loss", "val_position_error_mm", "val_rotation_error_deg")


def recipe(folder: Path, episodes: int, seed: int, epochs: int) -> list[Step]:
    """Returns the commands, in order."""
    recordings, dataset, run = (f"{folder}/{name}" for name in ("trajectories", "poses.zarr", "run"))
    record = ("scripts/make_demo_trajectories.py", "--output", recordings, "--episodes", str(episodes))
    scenes = ("--seed", str(seed), "--resolution", "320", "180", "--task", "pick_and_place", "--variation", "0")
    convert = ("scripts/convert_cogact_to_zarr.py", "--input", recordings, "--output", dataset)
    train = (
        "train.py",
        "--config-name=train_cogact_robot",
        "experiment=demo_pretrain",
        "task=cogact_robot_7d",
    )
    where = (f"task.dataset_path={dataset}", f"hydra.run.dir={run}", f"training.num_epochs={epochs}")
    return [
        Step("Record the way to block and tray", (*record, *scenes)),
        Step("Convert the recordings", (*convert, "--resolution", "160", "90")),
        Step("Train the pose policy", (*train, *where)),
    ]


def pack(source: Path, output: Path, provenance: dict[str, Any]) -> None:
    """Writes the average of a run's checkpoint as a small one: the same tensors for model and average, in float16.

    The normalizer stays in float32: its offsets are positions, which float16 would move by half a millimeter.
    """
    import torch

    from diffusion_policy.checkpoint import NORMALIZER, read_checkpoint, write_checkpoint

    checkpoint = read_checkpoint(source)
    packed: dict[int, torch.Tensor] = {}
    weights = {}
    for name, tensor in checkpoint.state_dict("ema_model").items():
        small = tensor.is_floating_point() and not name.startswith(NORMALIZER)
        weights[name] = packed.setdefault(id(tensor), tensor.half() if small else tensor)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(
        output,
        cfg=checkpoint.cfg,
        state_dicts={"model": weights, "ema_model": weights},
        pickles=checkpoint.pickles,
        provenance={**(checkpoint.provenance or {}), "pretraining": provenance},
    )


def origin(steps: Sequence[Step], run: Path) -> dict[str, Any]:
    """Returns where the weights come from: commands, versions, last figures of the run."""
    from importlib.metadata import version

    from diffusion_policy.run_folder.reading import open_run

    figures = open_run(run).newest(FIGURES)
    versions = {name: version(name) for name in ("torch", "diffusers", "numpy", "opencv-python")}
    return {"commands": [" ".join(step.words) for step in steps], "figures": figures, "versions": versions}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--output", type=Path, default=Path("data/pretrained/tabletop_7d.ckpt"))
    parser.add_argument("--workdir", type=Path, default=Path("data/demo_pretraining"), help="made anew")
    parser.add_argument("--episodes", type=int, default=400, help="demonstrations (default: 400)")
    parser.add_argument("--epochs", type=int, default=12, help="passes over them (default: 12)")
    parser.add_argument("--seed", type=seed_number, default=7, help="seed of the demonstrations (default: 7)")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Runs the commands and packs what they made."""
    folder = arguments.workdir
    steps = recipe(folder, arguments.episodes, arguments.seed, arguments.epochs)
    prepare(folder, MARKER)
    played = run_recipe(steps)
    if played.failure is not None:
        return CommandResult(played.failure, played.statuses[-1])
    run = folder / "run"
    provenance = origin(steps, run)
    pack(run / "checkpoints" / "latest.ckpt", arguments.output, provenance)
    size = arguments.output.stat().st_size / 1e6
    return CommandResult(f"wrote {arguments.output}, {size:.1f} MB: {json.dumps(provenance['figures'])}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv, outputs=["output"])


if __name__ == "__main__":
    sys.exit(main())
