"""What public guides promise about VPT, measured in the grove with a small VPT: arms, seeds, the same episodes for all.

    python benchmarks/vpt_study.py WORK [--arms cloned scratch] [--seeds 3] [--json OUT]
    python benchmarks/vpt_study.py WORK --quick

    zero_shot   the weights that ship, which know wool and stone, play the log task
    cloned      50 episodes of the expert, from these weights
    scratch     as many updates from random weights
    slots       a linear head for each of MineDojo's slots on the frozen trunk, as in a public guide
    ppo         the cloned policy improves by its own rewards (experiment=vpt_grove_ppo)

Every command is printed; finished results are kept, and the same command continues. Training runs on one thread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_policy.command_line import positive_number
from diffusion_policy.commands import in_grove
from diffusion_policy.env_runner.document import read_document
from diffusion_policy.env_runner.results import SceneResult, compare
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.installation import PRETRAINED
from diffusion_policy.intervals import wilson_interval
from diffusion_policy.recipe import FinishedSteps, Step, run_recipe
from diffusion_policy.run_folder.reading import open_run
from diffusion_policy.serve.engine import processor_name
from diffusion_policy.storage import file_sha256, write_json
from diffusion_policy.tables import Table
from diffusion_policy.terminal import show

WEIGHTS = PRETRAINED / "grove_vpt.weights"
ARMS = ("zero_shot", "cloned", "scratch", "slots", "ppo")
EPISODES, SCENES, MOST_TICKS, EPOCHS, ITERATIONS = 50, 40, 200, 6, 60


def steps_of(work: Path, arms: Sequence[str], seeds: int, *, quick: bool) -> list[Step]:
    """Returns the commands, in order: recordings, then arm by arm and seed by seed."""
    episodes = 3 if quick else EPISODES
    record = ("--task", "log", "--episodes", str(episodes), "--variation", "0", "--resume")
    resolution = ("--resolution", "128", "128")
    found = [
        Step("Record", ("scripts/record_grove.py", "--output", f"{work}/recordings", *record)),
        Step(
            "Convert",
            ("scripts/convert_dataset.py", "--input", f"{work}/recordings", "--output", data(work), *resolution),
        ),
    ]
    for arm in arms:
        if arm == "zero_shot":
            found.append(Step("zero_shot: play", play(str(WEIGHTS), work, arm, 0, quick=quick)))
            continue
        for seed in range(seeds):
            run = f"{work}/{arm}_{seed}"
            found.append(Step(f"{arm} {seed}: train", (*train(work, arm, seed, quick=quick), f"hydra.run.dir={run}")))
            words = play(f"{run}/checkpoints/latest.ckpt", work, arm, seed, quick=quick)
            found.append(Step(f"{arm} {seed}: play", words))
    return found


def data(work: Path) -> str:
    """The dataset."""
    return f"{work}/log.zarr"


def train(work: Path, arm: str, seed: int, *, quick: bool) -> tuple[str, ...]:
    """Returns the command that trains an arm."""
    if arm == "ppo":
        start = f"pretrained.path={work}/cloned_{seed}/checkpoints/latest.ckpt"
        count = 1 if quick else ITERATIONS
        small = ("ppo.frames=16", "ppo.chunk_frames=16", "ppo.environments=2") if quick else ()
        size = (f"training.iterations={count}", f"simulator.env.max_steps={MOST_TICKS}", *small)
        words = ("train.py", "--config-name=train_ppo_from_vpt_with_expert_warmstart", "experiment=vpt_grove_ppo")
        return (*words, start, f"training.seed={seed}", *size)
    options: dict[str, tuple[str, ...]] = {
        "cloned": (f"pretrained.path={WEIGHTS}",),
        "scratch": (),
        "slots": (
            f"pretrained.path={WEIGHTS}",
            "pretrained.min_coverage=0.5",
            "policy.head=minedojo",
            "policy.learns=heads",
        ),
    }
    length = ("training.num_epochs=1", "training.max_train_steps=2") if quick else (f"training.num_epochs={EPOCHS}",)
    clone = ("train.py", "--config-name=train_vpt_bc", "experiment=vpt_grove", f"task.dataset_path={data(work)}")
    return (*clone, *options[arm], f"training.seed={seed}", "training.threads=1", *length)


def play(policy: str, work: Path, arm: str, seed: int, *, quick: bool) -> tuple[str, ...]:
    """Returns the command that plays a policy in the episodes that all share."""
    ticks, count = (20, 2) if quick else (MOST_TICKS, SCENES)
    words = ("scripts/evaluate_closed_loop.py", policy, *in_grove())
    limits = ("--env", f"max_steps={ticks}", "--scenes", str(count), "--weights", "model", "--threads", "1")
    return (*words, *limits, "--json", f"{work}/{arm}_{seed}.json")


def summary(work: Path, arms: Sequence[str], seeds: int) -> dict[str, Any]:
    """Returns, by arm, episodes done by seed, in total, and compared with the cloned policies by scene."""
    found: dict[str, Any] = {}
    for arm in arms:
        results = [read(work / f"{arm}_{seed}.json") for seed in range(1 if arm == "zero_shot" else seeds)]
        done = [sum(scene.success for scene in scenes) for scenes in results]
        count, total = sum(done), sum(map(len, results))
        entry: dict[str, Any] = {"done": done, "of": total, "interval": wilson_interval(count, total)}
        if arm not in ("cloned", "zero_shot") and (work / "cloned_0.json").is_file():
            pairs = [compare(read(work / f"cloned_{seed}.json"), scenes) for seed, scenes in enumerate(results)]
            entry["against_cloned"] = [pair.to_json() for pair in pairs]
        found[arm] = entry | accuracies(work / f"{arm}_0")
    return found


def read(path: Path) -> list[SceneResult]:
    """Returns the scenes of a closed-loop result."""
    return read_document(path)[1]


def accuracies(run: Path) -> dict[str, float]:
    """Returns held-out accuracies of a run's last validation; empty for a run that does not clone."""
    lines = reversed(open_run(run).metrics) if run.is_dir() else ()
    last: Mapping[str, Any] = next((line for line in lines if "val_accuracy_buttons" in line), {})
    return {key: value for key, value in last.items() if key.startswith("val_accuracy_")}


def table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns a table with a row per arm."""
    shown = Table("arm", "done by seed", "together", "95 %", "buttons right", "camera right")
    for arm, entry in found.items():
        low, high = entry["interval"]
        right = [
            f"{entry[key]:.0%}" if key in entry else "-" for key in ("val_accuracy_buttons", "val_accuracy_camera")
        ]
        together = f"{sum(entry['done'])} of {entry['of']}"
        shown.add(arm, ", ".join(map(str, entry["done"])), together, f"{low:.0%}-{high:.0%}", *right)
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK", help="folder of runs and results; finished ones are kept")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=positive_number, default=3)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument(
        "--quick", action="store_true", help="one seed, two updates, two short episodes: learns nothing"
    )
    arguments = parser.parse_args(argv)
    seeds = 1 if arguments.quick else arguments.seeds
    arguments.work.mkdir(parents=True, exist_ok=True)
    try:
        ended = FinishedSteps(arguments.work / "done.json")
        ran = run_recipe(steps_of(arguments.work, arguments.arms, seeds, quick=arguments.quick), ended)
    except WorkspaceError as error:
        parser.exit(2, f"{error}\n")
    if any(ran.statuses):
        return ran.statuses[-1]
    found = summary(arguments.work, arguments.arms, seeds)
    show(table(found))
    if arguments.json:
        about = {
            "weights_sha256": file_sha256(WEIGHTS),
            "episodes": EPISODES,
            "epochs": EPOCHS,
            "most_ticks": MOST_TICKS,
        }
        write_json(arguments.json, {"processor": processor_name(), **about, "arms": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
