"""Learn from corrections: roll out, let the expert take over where the policy failed, add that to the data, fine-tune.

    python scripts/dagger.py data/demo/finetuned/checkpoints/latest.ckpt --dataset data/demo/tabletop.zarr
    python scripts/dagger.py latest.ckpt --dataset tabletop.zarr --rounds 2 --control --json dagger.json
    python scripts/dagger.py vpt.ckpt --dataset vpt.zarr --simulator grove --task log --scenes 30 20
    python scripts/dagger.py latest.ckpt --dataset mine.zarr --marked data/raw/supervised --experiment finetune_8d

Each round is a row: demonstrations, corrections, updates, success in closed loop with its Wilson interval, and a paired
comparison with the previous round in the same scenes. --control runs a second arm: as many ordinary
demonstrations as there were corrections, and as many updates. Checkpoint and dataset are only read; everything is
written into --workdir. After an interruption the same command with --resume continues and repeats nothing. Exit
status: 0 all rounds ran, or nothing was left to correct; 2 refused; otherwise that of the command that failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_policy.command_line import CommandResult, Stopped, run_command, seed_number

if TYPE_CHECKING:
    from diffusion_policy.dagger.rounds import Work
    from diffusion_policy.recipe import FinishedSteps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CKPT", help="with 8-D actions (the loop starts from its average), or VPT's")
    add("--dataset", type=Path, required=True, metavar="ZARR", help="what it was trained on; copied, never changed")
    add("--workdir", type=Path, default=Path("data/dagger"), metavar="DIR", help="output folder (default data/dagger)")
    add("--rounds", type=int, metavar="N", help="number of rounds (default 2; with --marked 1)")
    add(
        "--scenes",
        type=int,
        nargs="+",
        default=[20],
        metavar="N",
        help="scenes per round, one number or one for each round (default 20)",
    )
    add("--updates", type=int, default=400, metavar="N", help="least updates per round (default %(default)d)")
    add("--evaluation-scenes", type=int, default=40, metavar="N", help="(default %(default)d)")
    add("--seed", type=seed_number, default=300_000, help="seed of the first scene to correct (default %(default)d)")
    add(
        "--evaluation-seed",
        type=seed_number,
        default=100_000,
        help="seed of the first scene to evaluate (default %(default)d)",
    )
    add(
        "--control-seed",
        type=seed_number,
        default=400_000,
        help="seed of the control's demonstrations (default %(default)d)",
    )
    add("--simulator", default="tabletop", metavar="NAME", help="tabletop (default), or grove for VPT")
    add("--task", help="pick_and_place (default), two_in_order, distractors; in the grove log (default), wool, stone")
    add("--env", action="append", default=[], metavar="KEY=VALUE", help="an argument of the simulator's environment")
    add("--referee", default="physics", help="the tabletop's referee: physics (default) or kinematic, which is faster")
    add("--camera-size", type=int, nargs=2, default=(320, 180), metavar=("WIDTH", "HEIGHT"), help="(default 320 180)")
    add("--variation", type=float, default=0.3, help="variation of the expert, 0 to 1 (default %(default)g)")
    add("--n-action-steps", type=int, metavar="N", help="steps of a chunk that are executed (default 6)")
    add("--experiment", help="in config/experiment, for fine-tuning (default demo_finetune; none in the grove)")
    add("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="a setting of train.py")
    add("--control", action="store_true", help="also run a second arm with as many ordinary demonstrations and updates")
    add("--marked", metavar="DIR", help="instead of rollouts: a robot's recordings in which a person took over")
    add("--resume", action="store_true", help="continue the work in --workdir")
    add("--json", type=Path, metavar="OUT", help="write the table (also in DIR/rounds.json)")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Runs the rounds; the table is written after each, and printed at the end."""
    from diffusion_policy.dagger.rounds import first_training
    from diffusion_policy.recipe import FinishedSteps
    from diffusion_policy.workspace.preflight import check_start

    loop = loop_of(arguments)
    check_start(first_training(loop.plan))  # asked now, not after minutes of rollouts
    loop.begin(resume=arguments.resume)
    ended = FinishedSteps(loop.folder / "done.json")
    try:
        return played(loop, ended)
    except Stopped:
        raise
    except KeyboardInterrupt as error:
        raise Stopped(ended.kept, added=["--resume"]) from error


def played(loop: Work, ended: FinishedSteps) -> CommandResult:
    """Runs the rounds, and returns the table of those that ran."""
    from diffusion_policy.dagger.rounds import document, rows_of, stages
    from diffusion_policy.dagger.table import rounds_table
    from diffusion_policy.recipe import run_recipe
    from diffusion_policy.storage import write_json
    from diffusion_policy.terminal import show_line

    rows: list[dict[str, Any]] = []
    for number in range(loop.plan.rounds + 1):
        for steps in stages(loop, number, ended):
            status = max(run_recipe(steps, ended).statuses, default=0)
            if status:
                return CommandResult("a command failed; its message is above", status)
        new = rows_of(loop, number)
        if not new:
            show_line(f"round {number}: nothing to correct in {loop.plan.scenes_of(number)} scenes; the loop ends here")
            break
        rows += new
        write_json(loop.folder / "rounds.json", document(loop, rows))
    return CommandResult(rounds_table(rows), document=document(loop, rows))


def loop_of(arguments: argparse.Namespace) -> Work:
    """Returns the loop that the command line requests; raises WorkspaceError if it makes no sense."""
    from diffusion_policy.dagger.rounds import RoundPlan, Work
    from diffusion_policy.dagger.simulator_commands import DEFAULT_TASKS, DEMO_EXPERIMENT, TABLETOP

    options = {**vars(arguments), "checkpoint": str(arguments.checkpoint), "dataset": str(arguments.dataset)}
    if arguments.rounds is None:
        options["rounds"] = max(len(arguments.scenes), 2 if arguments.marked is None else 1)
    options["task"] = arguments.task or DEFAULT_TASKS.get(arguments.simulator, "")
    options["scenes"] = arguments.scenes[0] if len(arguments.scenes) == 1 else tuple(arguments.scenes)
    options["env"] = tuple(arguments.env)
    if arguments.simulator == TABLETOP and arguments.experiment is None:
        options["experiment"] = DEMO_EXPERIMENT
    chosen = {name: options[name] for name in RoundPlan.__dataclass_fields__}
    camera, settings = tuple(arguments.camera_size), tuple(arguments.settings)
    return Work(arguments.workdir, RoundPlan(**{**chosen, "camera_size": camera, "settings": settings}))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
