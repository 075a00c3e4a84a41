"""The whole path on data it generates: a pose policy that cannot grasp learns when to close, and then it grasps.

    python scripts/demo.py

The pose policy (7-D) ships with the project (scripts/pretrain_demo_policy.py made it). The demo rolls it out, grows it
to 8-D, fine-tunes it on 30 demonstrations of a steady expert, trains the same network from scratch for as long, and
rolls all of them out in the same scenes with the physics referee. Every command is printed first; those between
recording and rollout are the README's recipe with other paths. Exit status: 0 the gripper opens and closes in every
held-out episode, 1 the verdict differs, otherwise the status of the command that failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_policy.command_line import CommandResult, run_command, seed_number
from diffusion_policy.commands import command
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.evaluate.verdicts import FORMER_VERDICTS, OPENS_AND_CLOSES
from diffusion_policy.installation import PRETRAINED
from diffusion_policy.intervals import wilson_interval
from diffusion_policy.recipe import RecipeResult, Step, prepare, run_recipe
from diffusion_policy.tables import Printable, Table, Text

GOAL = 34 / 40  # share of the scenes that the grown and fine-tuned policy should succeed in
MARKER = ".made_by_demo"
DEMONSTRATIONS, SCENES = 30, 40
SCENES_COMPARED = 20  # of these scenes, for the policies that it is compared with
JUDGING = "Judge the gripper's commands"
EXECUTED = 8  # steps of a chunk; chosen in scenes with other seeds, where 6 did worse


def recipe(work: Path, seed: int, *, quick: bool) -> list[Step]:
    """Returns the commands, in order; ``quick`` makes them too small to learn anything."""
    data, grown, logs, ledger = (f"{work}/{name}" for name in ("tabletop.zarr", "grown.ckpt", "logs", "ledger.json"))
    recordings, scratch, tuned = (f"{work}/{name}" for name in ("trajectories", "scratch", "finetuned"))
    size = ("training.num_epochs=1", "training.max_train_steps=2") if quick else ()
    record = ("scripts/make_demo_trajectories.py", "--output", recordings, "--seed", str(seed), "--variation", "0")
    scene = ("--episodes", "3" if quick else str(DEMONSTRATIONS), "--resolution", "320", "180")
    convert = ("scripts/convert_cogact_to_zarr.py", "--input", recordings, "--output", data)
    pose = str(PRETRAINED / "tabletop_7d.ckpt")
    grow = ("--old_ckpt", pose, "--new_ckpt", grown, "--dataset", data, "--ledger", ledger)
    train = ("train.py", "--config-name=train_cogact_robot", f"task.dataset_path={data}", f"training.seed={seed}")
    from_grown = ("experiment=demo_finetune", f"pretrained.path={grown}", f"hydra.run.dir={tuned}")
    from_scratch = ("experiment=demo_scratch", f"hydra.run.dir={scratch}")
    infer = ("scripts/run_offline_inference.py", f"{tuned}/checkpoints/latest.ckpt", data, "--output", logs)
    scenes_compared, scenes = (1, 1) if quick else (SCENES_COMPARED, SCENES)
    pictures = ("--output", f"{work}/rollouts", "--picture", "--video", "2")
    paired = ("--compare", f"{work}/rollouts_finetuned.json")
    judge = ("scripts/validate_gripper.py", logs, "--json", f"{work}/verdicts.json")
    seen = (f"{work}/rollouts_{name}.json" for name in ("finetuned", "scratch"))
    judged = ("--run", tuned, "--checkpoint", f"{tuned}/checkpoints/latest.ckpt", "--dataset", data, "--log", logs)
    page = ("scripts/report.py", *judged, "--closed-loop", *seen, "--out", f"{work}/report.html")
    return [
        Step("Roll out the pose policy", rollout(pose, work, "pose", scenes_compared)),
        Step("Record demonstrations", (*record, *scene, "--referee", "physics")),
        Step("Convert the recordings", (*convert, "--resolution", "160", "90")),
        Step("Grow the policy to 8-D", ("scripts/finetune_from_7d_to_8d.py", *grow)),
        Step("Fine-tune it", (*train, *from_grown, *size)),
        Step("Train the same network from scratch", (*train, *from_scratch, *size)),
        Step("Roll out the fine-tuned policy", rollout(tuned, work, "finetuned", scenes, *pictures)),
        Step("Roll out the policy from scratch", rollout(scratch, work, "scratch", scenes_compared, *paired)),
        Step("Run the fine-tuned policy on held-out episodes", infer),
        Step(JUDGING, judge, accepted=(0, 1)),
        Step("Put all of it on one page", page, accepted=(0, 1)),
    ]


def rollout(policy: str, work: Path, name: str, scenes: int, *options: str) -> tuple[str, ...]:
    """Returns the command that rolls out a checkpoint, or a run folder's latest one, in the scenes that all share."""
    checkpoint = policy if policy.endswith(".ckpt") else f"{policy}/checkpoints/latest.ckpt"
    words = ("scripts/evaluate_closed_loop.py", checkpoint, "--scenes", str(scenes), "--n-action-steps", str(EXECUTED))
    return (*words, "--json", f"{work}/rollouts_{name}.json", *options)


def headline(rollouts: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns what the rollouts show."""
    before, after = (rollouts[name]["success"] for name in ("pose", "finetuned"))
    return (
        f"Block in the tray: {before['count']} of {before['of']} scenes before, {after['count']} of {after['of']} after"
    )


def rollout_table(rollouts: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns a row per policy, in the same scenes: success with its interval, grasps, and reasons for failure."""
    table = Table("policy", "block in the tray", "95 % interval", "grasped", "what went wrong", framed=True)
    titles = {"pose": "7-D, as shipped", "finetuned": "grown to 8-D and fine-tuned", "scratch": "from scratch, as long"}
    for name, title in titles.items():
        rollout = rollouts[name]
        success, grasped = rollout["success"], rollout["grasped"]
        low, high = success["interval"]
        reasons = ", ".join(f"{reason} {count}" for reason, count in rollout["reasons"].items()) or "-"
        share = f"{success['count']} of {success['of']}"
        table.add(title, share, f"{low:.0%}-{high:.0%}", f"{grasped['count']} of {grasped['of']}", reasons)
    return table


def is_good(verdict: Mapping[str, Any]) -> bool:
    """Whether the gripper opens and closes in a log, including files of earlier versions."""
    return FORMER_VERDICTS.get(verdict["verdict"], verdict["verdict"]) == OPENS_AND_CLOSES


def leading(verdicts: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Returns the number of changes commanded before they were measured (0 if not judged), and of all changes."""
    return sum(verdict["leads_measurement"] or 0 for verdict in verdicts), sum(len(v["events"]) for v in verdicts)


def how_firm(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Returns what the verdicts show, how firmly, and what they do not show."""
    count, (ahead, events) = sum(map(is_good, verdicts)), leading(verdicts)
    low, high = wilson_interval(count, len(verdicts))
    return (
        f"opens and closes in {count} of {len(verdicts)} held-out episodes (95 % interval {low:.0%}-{high:.0%}), "
        f"{ahead} of {events} changes before they were measured.\nThat is when it would close; the rollouts show "
        "whether it then holds anything"
    )


def outcome(
    work: Path, rollouts: Mapping[str, Mapping[str, Any]], verdicts: Sequence[Mapping[str, Any]]
) -> list[Printable]:
    """Returns what was inherited, measured, commanded and done, from the files in ``work``."""
    ledger = json.loads((work / "ledger.json").read_text())
    first, *_, last = (json.loads(line) for line in (work / "finetuned" / "logs.json.txt").read_text().splitlines())
    facts = Table("", "")
    facts.add("weights", weights_line(first, ledger))
    for note in ledger["notes"]:
        if "agree within" in note:
            facts.add("proof", note)
    before, after = first["val_loss_before_first_update"], last["val_loss"]
    facts.add("held-out loss", f"{before:.4f} before the first update, {after:.4f} after update {last['global_step']}")
    if "val_position_error_mm" in last:
        facts.add("held-out poses", f"{last['val_position_error_mm']:.0f} mm mean error of the predicted positions")
    facts.add("gripper", how_firm(verdicts))
    facts.add("goal", goal_text(rollouts["finetuned"]["success"]))
    facts.add("look at", f"{work}/report.html: one page with all of it; videos in {work}/rollouts")
    referee = f"Rollouts with the physics referee, {rollouts['finetuned']['n_action_steps']} steps of a chunk executed"
    return [facts, "", referee, rollout_table(rollouts), "", "On recordings", verdict_table(work, verdicts)]


def goal_text(success: Mapping[str, Any]) -> str:
    """Returns whether the fine-tuned policy reached the demo's goal, and whether the count can tell."""
    reached, (low, high) = success["count"] / success["of"], success["interval"]
    if reached >= GOAL:
        return f"{GOAL:.0%} of the scenes: reached"
    held = "its interval contains it" if low <= GOAL <= high else "its interval does not contain it"
    return f"{GOAL:.0%} of the scenes: not reached ({success['count']} of {success['of']}; {held})"


def weights_line(first: Mapping[str, Any], ledger: Mapping[str, Any]) -> str:
    """Returns what the fine-tuning started from."""
    return (
        f"{first['inherited_tensors']} tensors inherited ({first['inherited_parameters']:,} numbers), "
        f"{first['grown_tensors']} grown ({first['grown_parameters']} new numbers), {first['fresh_tensors']} fresh; "
        f"the ledger accounts for {len(ledger['entries'])} keys"
    )


def verdict_table(work: Path, verdicts: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a row per held-out episode: the expert's commands, the policy's, and the verdict."""
    import numpy as np

    from diffusion_policy.dataset.replay_buffer import ACTION_KEY, ReplayBuffer
    from diffusion_policy.diagnose.playback import gripper_column
    from diffusion_policy.gripper_events import gripper_events

    dataset = ReplayBuffer.open(work / "tabletop.zarr")
    recorded = gripper_column(dataset, ACTION_KEY)
    assert recorded is not None, "the demonstrations command a gripper"
    commands = np.split(recorded, dataset.episode_ends[:-1])
    table = Table(
        "held-out episode", "expert's gripper", "policy's gripper", "ahead of the measured one", "verdict", framed=True
    )
    for verdict in verdicts:
        episode = json.loads((work / "logs" / verdict["file"]).read_text())["meta"]["episode"]
        table.add(
            str(episode),
            events_text(gripper_events(commands[episode])),
            events_text(verdict["events"]),
            f"{verdict['leads_measurement']} of {len(verdict['events'])}",
            verdict["verdict"],
        )
    return table


def events_text(events: Sequence[Sequence[Any]]) -> str:
    """Formats [(19, "close"), (49, "open")] as "close 19, open 49"."""
    return ", ".join(f"{kind} {step}" for step, kind in events) or "never moves"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--workdir", type=Path, default=Path("data/demo"), help="folder for everything, recreated (default: data/demo)"
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of the episodes and of training (default: 0)")
    parser.add_argument("--quick", action="store_true", help="run every step, with far too little to learn from")


def work(arguments: argparse.Namespace) -> CommandResult:
    """Runs the recipe and prints its results."""
    folder = arguments.workdir
    steps = recipe(folder, arguments.seed, quick=arguments.quick)
    if not (PRETRAINED / "tabletop_7d.ckpt").is_file():
        absent = f"{PRETRAINED / 'tabletop_7d.ckpt'}: the pose policy does not exist"
        raise WorkspaceError(f"{absent}; make it with {command('pretrain_demo_policy')}")
    prepare(folder, MARKER)
    played = run_recipe(steps)
    if played.failure is not None:
        return CommandResult(Text(played.failure, style="red"), played.statuses[-1])
    verdicts = json.loads((folder / "verdicts.json").read_text())
    names = ("pose", "finetuned", "scratch")
    rollouts = {name: json.loads((folder / f"rollouts_{name}.json").read_text()) for name in names}
    title, times = Text(headline(rollouts), style="bold"), Text(times_text(steps, played), style="dim")
    return CommandResult(
        ["", title, "", *outcome(folder, rollouts, verdicts), "", times],
        played.statuses[[step.title for step in steps].index(JUDGING)],
    )


def times_text(steps: Sequence[Step], played: RecipeResult) -> str:
    """Returns where the time went."""
    slowest = max(range(len(steps)), key=played.seconds.__getitem__)
    longest = played.seconds[slowest]
    return f"{sum(played.seconds):.0f} s, of which {longest:.0f} s: {steps[slowest].title.lower()}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
