"""Roll a policy out, and record what the expert does where it failed or hesitated; in the grove, all it would do.

    python scripts/collect_corrections.py data/demo/finetuned/checkpoints/latest.ckpt --output data/corrections
    python scripts/collect_corrections.py latest.ckpt --output data/corrections --scenes 40 --task distractors
    python scripts/collect_corrections.py vpt.ckpt --simulator grove --task log --output data/corrections
    python scripts/collect_corrections.py --marked data/raw/supervised --output data/corrections     # a person's

The episodes are recordings for the converter (`--append` adds them to the policy's dataset); on the tabletop every step
of them is marked as an intervention. `scripts/dagger.py` runs the whole loop. An interrupted collection keeps the
finished scenes; the same command with --resume continues. Exit status: 0 collected, 2 refused, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_policy.command_line import CommandResult, Stopped, progress, run_command, seed_number
from diffusion_policy.gripper_scale import add_gripper_scale
from diffusion_policy.installation import CONFIG

if TYPE_CHECKING:
    from diffusion_policy.dagger.corrections import Collected, Collection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add = parser.add_argument
    add("checkpoint", type=Path, nargs="?", metavar="CKPT", help="checkpoint to roll out")
    add("--marked", type=Path, metavar="DIR", help="instead of CKPT: recordings in which a person took over")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for corrections.json and the episodes")
    add("--scenes", type=int, default=20, metavar="N", help="scenes to roll out (default %(default)d)")
    add(
        "--seed",
        type=seed_number,
        default=300_000,
        help="seed of the first scene and of the noise (default %(default)d)",
    )
    add("--simulator", default="tabletop", metavar="NAME", help="tabletop (default), or grove for VPT")
    add(
        "--task",
        help="pick_and_place (default), two_in_order, distractors, pose_only; grove: log (default), wool, stone",
    )
    add("--referee", default="physics", help="the tabletop's referee: physics (default) or kinematic, which is faster")
    add("--camera-size", type=int, nargs=2, default=(320, 180), metavar=("WIDTH", "HEIGHT"), help="(default 320 180)")
    add(
        "--env",
        dest="env_words",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an argument of its environment",
    )
    add("--variation", type=float, default=0.3, help="variation of the expert, 0 to 1 (default %(default)g)")
    add("--per-scene", type=int, default=2, metavar="N", help="most takeovers per scene (default %(default)d)")
    add("--first-number", type=int, default=0, metavar="N", help="number of the first episode (default %(default)d)")
    add("--n-action-steps", type=int, metavar="N", help="steps of a chunk that are executed (default 6)")
    add("--device", default="cpu")
    add("--threads", type=int, help="compute threads (default: one per core that other processes leave free)")
    add_gripper_scale(parser)
    add("--resume", action="store_true", help="continue an interrupted collection")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Collects corrections, and prints the result."""
    from diffusion_policy.dagger.corrections import DOCUMENT, collect, read_collected
    from diffusion_policy.errors import WorkspaceError

    folder = arguments.output
    if (arguments.checkpoint is None) == (arguments.marked is None):
        raise WorkspaceError(
            "expected a checkpoint to roll out, or --marked DIR with a robot's recordings, and not both"
        )
    if arguments.marked is not None:
        return cut(arguments)
    try:
        with progress("scenes") as show:
            collected = collect(
                arguments.checkpoint, collection_of(arguments), folder, resume=arguments.resume, show=show
            )
    except KeyboardInterrupt as error:
        if not (folder / DOCUMENT).is_file():
            raise
        done = read_collected(folder)
        kept = f"{len(done.results)} of {done.scenes} scenes are kept in {folder}"
        raise Stopped(kept, added=["--resume"]) from error
    return CommandResult(summary(collected, folder))


def cut(arguments: argparse.Namespace) -> CommandResult:
    """Extracts the corrections that a person made on a robot."""
    from diffusion_policy.dagger.marked import SHORTEST, cut_marked
    from diffusion_policy.gripper_scale import parse_scales

    scale = parse_scales(arguments.gripper_scale)
    cuts = cut_marked(arguments.marked, arguments.output, first_number=arguments.first_number, gripper_scale=scale)
    episodes, frames = sum(len(found.episodes) for found in cuts), sum(found.frames for found in cuts)
    short = sum(found.too_short for found in cuts)
    return CommandResult(
        f"{episodes} corrections of {frames} steps from {len(cuts)} recordings in {arguments.output}\n"
        f"{short} marked parts left out, shorter than {SHORTEST} steps"
    )


def collection_of(arguments: argparse.Namespace) -> Collection:
    """Returns the collection that the command line requests; raises WorkspaceError if it makes no sense."""
    from diffusion_policy.closed_loop.evaluation import Evaluation
    from diffusion_policy.dagger.corrections import Collection
    from diffusion_policy.dagger.simulator_commands import DEFAULT_TASKS, TABLETOP
    from diffusion_policy.env_runner.simulator import Simulator, read_arguments
    from diffusion_policy.errors import WorkspaceError

    if arguments.scenes < 1:
        raise WorkspaceError(f"--scenes is {arguments.scenes}; expected 1 or more")
    if arguments.simulator not in DEFAULT_TASKS:
        raise WorkspaceError(f"--simulator is {arguments.simulator!r}; expected {' or '.join(DEFAULT_TASKS)}")
    chosen = read_arguments(arguments.env_words)
    chosen["task"] = arguments.task or DEFAULT_TASKS[arguments.simulator]
    if arguments.simulator == TABLETOP:
        chosen |= {"referee": arguments.referee, "image_size": list(arguments.camera_size)}
    evaluation = Evaluation(
        Simulator.load(CONFIG / "simulator" / f"{arguments.simulator}.yaml", **chosen),
        arguments.scenes,
        arguments.seed,
        arguments.n_action_steps,
        device=arguments.device,
        threads=arguments.threads,
    )
    return Collection(evaluation, arguments.variation, arguments.per_scene, arguments.first_number)


def summary(collected: Collected, folder: Path) -> str:
    """Returns the result in three lines."""
    lost = len(collected.corrections) - len(collected.episodes)
    frames = sum(taken["frames"] for taken in collected.episodes)
    why = ", ".join(f"{why} {count}" for why, count in collected.reasons.items()) or "nothing to correct"
    return "\n".join(
        [
            f"the policy: {collected.success}",
            f"{len(collected.episodes)} corrections of {frames} steps in {folder} ({why})",
            f"{lost} takeovers left out because the expert failed too",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
