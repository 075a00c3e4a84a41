"""VPT on data it generates: load pretrained weights, play without training, clone an expert, play again.

    python scripts/demo_vpt.py

The weights ship with the project (scripts/pretrain_demo_vpt.py made them): a small VPT that has cloned the grove's wool
and stone tasks and has never seen the log task. The demo loads them, plays the log task as they are, clones 30 episodes
of the scripted expert, and plays the same episodes again. Every command is printed first. Exit status: 0 all commands
ran, otherwise the status of the command that failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_policy.command_line import CommandResult, run_command, seed_number
from diffusion_policy.commands import command, in_grove
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.installation import PRETRAINED
from diffusion_policy.recipe import Step, prepare, run_recipe
from diffusion_policy.tables import Table, Text

MARKER = ".made_by_demo_vpt"
WEIGHTS = PRETRAINED / "grove_vpt.weights"
EPISODES, PLAYED, EPOCHS = 30, 20, 10
MOST_TICKS = 200  # of a played episode; the expert needs 79 in the median, 174 at most


def recipe(work: Path, seed: int, *, quick: bool) -> list[Step]:
    """Returns the commands, in order; ``quick`` makes them too small to learn anything."""
    recordings, data, run = (f"{work}/{name}" for name in ("recordings", "log.zarr", "clone"))
    size = ("training.num_epochs=1", "training.max_train_steps=2") if quick else (f"training.num_epochs={EPOCHS}",)
    record = ("--task", "log", "--episodes", "2" if quick else str(EPISODES), "--seed", str(seed), "--variation", "0")
    train = ("train.py", "--config-name=train_vpt_bc", "experiment=vpt_grove", f"task.dataset_path={data}")
    start = (f"pretrained.path={WEIGHTS}", f"hydra.run.dir={run}", f"training.seed={seed}")
    compared = ("--compare", f"{work}/zero_shot.json", "--output", f"{work}/played", "--video", "2")
    return [
        Step("Load the weights", ("scripts/load_vpt.py", str(WEIGHTS))),
        Step("Play as they are", played(str(WEIGHTS), work, "zero_shot", quick=quick)),
        Step("Record the expert", ("scripts/record_grove.py", "--output", recordings, *record)),
        Step(
            "Convert the recordings",
            ("scripts/convert_dataset.py", "--input", recordings, "--output", data, "--resolution", "128", "128"),
        ),
        Step("Clone the expert", (*train, *start, *size)),
        Step("Play again", (*played(f"{run}/checkpoints/latest.ckpt", work, "cloned", quick=quick), *compared)),
    ]


def played(policy: str, work: Path, name: str, *, quick: bool) -> tuple[str, ...]:
    """Returns the command that plays a policy in the episodes that all share."""
    ticks, count = (20, 2) if quick else (MOST_TICKS, PLAYED)
    words = ("scripts/evaluate_closed_loop.py", policy, *in_grove())
    limits = ("--env", f"max_steps={ticks}", "--scenes", str(count), "--weights", "model")
    return (*words, *limits, "--json", f"{work}/{name}.json")


def outcome(work: Path) -> list[Any]:
    """Returns what was measured: held-out accuracies compared with trivial policies, and episodes played."""
    from diffusion_policy.run_folder.reading import open_run

    run = open_run(work / "clone")
    facts = Table("held-out actions right", "the clone", "most frequent", "the action before", framed=True)
    for head in ("buttons", "camera"):
        key = f"val_accuracy_{head}"
        shares = run.newest((key, f"{key}_majority", f"{key}_previous")).values()
        facts.add(head, *(f"{share:.0%}" for share in shares))
    table = Table("log task", "done", "95 % interval", "median ticks", framed=True)
    for title, name in (("as loaded", "zero_shot"), ("cloned", "cloned")):
        table.add(title, *row(json.loads((work / f"{name}.json").read_text())))
    return [facts, "", table, "", f"videos: {work}/played"]


def row(document: Mapping[str, Any]) -> list[str]:
    """Returns the counts of a closed-loop result."""
    success = document["success"]
    low, high = success["interval"]
    ticks = sorted(scene["steps"] for scene in document["scenes"] if scene["success"])
    median = str(ticks[len(ticks) // 2]) if ticks else "-"
    return [f"{success['count']} of {success['of']}", f"{low:.0%}-{high:.0%}", median]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--workdir",
        type=Path,
        default=Path("data/demo_vpt"),
        help="folder for everything, recreated (default data/demo_vpt)",
    )
    parser.add_argument(
        "--seed", type=seed_number, default=0, help="seed of the recordings and of training (default 0)"
    )
    parser.add_argument("--quick", action="store_true", help="run every step, with far too little to learn from")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Runs the recipe and prints its results."""
    if not WEIGHTS.is_file():
        raise WorkspaceError(f"{WEIGHTS}: the weights are missing; make them with {command('pretrain_demo_vpt')}")
    folder = arguments.workdir
    steps = recipe(folder, arguments.seed, quick=arguments.quick)
    prepare(folder, MARKER)
    ran = run_recipe(steps)
    if ran.failure is not None:
        return CommandResult(Text(ran.failure, style="red"), ran.statuses[-1])
    seconds = Text(f"{sum(ran.seconds):.0f} s", style="dim")
    return CommandResult(["", *outcome(folder), seconds])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
