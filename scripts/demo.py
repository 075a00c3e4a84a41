"""The whole way on data it makes itself: record, convert, train 7-D, grow to 8-D, fine-tune, infer, judge the gripper.

    python scripts/demo.py

Every command it runs is printed first; they are those of the README's recipe with other paths. Exit status: 0 the
gripper opens and closes in every held-out episode, 1 the verdict is another one, else the status of the command that
failed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from diffusion_policy.command_line import Answer, Stopped, run_child, run_command
from diffusion_policy.commands import script_words
from diffusion_policy.evaluate.verdicts import FORMER_VERDICTS, OPENS_AND_CLOSES
from diffusion_policy.installation import script_path
from diffusion_policy.intervals import wilson_interval
from diffusion_policy.spec import WorkspaceError

MARKER = ".made_by_demo"


@dataclass(frozen=True)
class Step:
    """One command of the recipe: what it is for, and its words; the first is the script, as README names it."""

    title: str
    words: tuple[str, ...]

    @property
    def script(self) -> str:
        """Name of the script."""
        return Path(self.words[0]).stem


def recipe(work: Path, seed: int, *, quick: bool) -> list[Step]:
    """The commands, in order; ``quick`` makes them so small that nothing can be learned."""
    data, grown, logs, ledger = (f"{work}/{name}" for name in ("tabletop.zarr", "grown.ckpt", "logs", "ledger.json"))
    recordings, pose, tuned = (f"{work}/{name}" for name in ("trajectories", "pose_policy", "finetuned"))
    episodes = "3" if quick else "32"
    size = ("training.num_epochs=1", "training.max_train_steps=2") if quick else ()
    record = ("scripts/make_demo_trajectories.py", "--output", recordings, "--episodes", episodes)
    scene = ("--seed", str(seed), "--resolution", "320", "180")
    convert = ("scripts/convert_cogact_to_zarr.py", "--input", recordings, "--output", data, "--resolution", "96", "54")
    train = ("train.py", "--config-name=train_cogact_robot", f"task.dataset_path={data}", f"training.seed={seed}")
    poses = ("experiment=demo", "task=cogact_robot_7d", f"hydra.run.dir={pose}")
    grow = ("--old_ckpt", f"{pose}/checkpoints/latest.ckpt", "--new_ckpt", grown, "--dataset", data, "--ledger", ledger)
    gripper = ("experiment=demo_finetune", f"pretrained.path={grown}", f"hydra.run.dir={tuned}")
    infer = ("scripts/run_offline_inference.py", f"{tuned}/checkpoints/latest.ckpt", data, "--output", logs)
    return [
        Step("Record a scripted pick and place", (*record, *scene)),
        Step("Convert the recordings", convert),
        Step("Train a 7-D policy on the poses", (*train, *poses, *size)),
        Step("Grow it to 8-D", ("scripts/finetune_from_7d_to_8d.py", *grow)),
        Step("Fine-tune it", (*train, *gripper, *size)),
        Step("Run it over the held-out episodes", infer),
        Step("Judge the gripper", ("scripts/validate_gripper.py", logs, "--json", f"{work}/verdicts.json")),
    ]


def prepare(work: Path) -> None:
    """Make ``work`` empty; what is in it is removed only if an earlier demo made it.

    Raises:
        WorkspaceError: it holds somebody else's files.
    """
    if work.exists() and any(work.iterdir()):
        if not (work / MARKER).is_file():
            raise WorkspaceError(f"{work} is not empty and was not made by the demo; name another --workdir")
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    (work / MARKER).touch()


def play(steps: Sequence[Step], console: Console) -> tuple[int, list[float]]:
    """Run the commands, stopping at the first that fails; the last exit status and the seconds of each.

    A negative verdict (status 1 of the judge) is a result, not a failure: it is the last command.
    """
    seconds = []
    for number, step in enumerate(steps, start=1):
        console.rule(f"[bold]{number}/{len(steps)}  {step.title}", align="left")
        line = f"$ {shlex.join([*script_words(step.script), *step.words[1:]])}"
        console.print(line, style="cyan", markup=False, highlight=False, soft_wrap=True)
        begun = time.monotonic()
        try:
            status = run_child([sys.executable, str(script_path(step.script)), *step.words[1:]], Path())
        except KeyboardInterrupt as error:
            raise Stopped(f"step {number} of {len(steps)} was under way, and all of them are made anew") from error
        seconds.append(time.monotonic() - begun)
        console.print(f"{seconds[-1]:.0f} s", style="dim")
        if status != 0:
            return status, seconds
    return 0, seconds


def headline(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """The verdict on all episodes; a policy that mostly moves after the measured gripper did may only copy it."""
    count = sum(is_good(verdict) for verdict in verdicts)
    if count < len(verdicts):
        return f"The gripper opens and closes in {count} of {len(verdicts)} held-out episodes"
    ahead, events = leading(verdicts)
    if 2 * ahead < events:
        return f"The gripper moves, but only {ahead} of {events} times before the measured one: it may be a copy"
    return "The gripper opens and closes, by its commands on recordings"


def is_good(verdict: Mapping[str, Any]) -> bool:
    """Whether the gripper opens and closes in a log; in files of earlier versions, too."""
    return FORMER_VERDICTS.get(verdict["verdict"], verdict["verdict"]) == OPENS_AND_CLOSES


def leading(verdicts: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Changes that were commanded before they were measured (0 where that was not judged), and all changes."""
    return sum(verdict["leads_measurement"] or 0 for verdict in verdicts), sum(len(v["events"]) for v in verdicts)


def how_firm(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """What the verdicts show, how firmly, and what they do not."""
    count, (ahead, events) = sum(map(is_good, verdicts)), leading(verdicts)
    low, high = wilson_interval(count, len(verdicts))
    return (
        f"opens and closes in {count} of {len(verdicts)} held-out episodes (95 % interval {low:.0%}-{high:.0%}), "
        f"{ahead} of {events} changes before they were measured.\nThat is when it would close; whether it then holds "
        "anything, only a rollout shows"
    )


def outcome(work: Path, verdicts: Sequence[Mapping[str, Any]]) -> Group:
    """What the files in ``work`` say was inherited, measured and commanded."""
    ledger = json.loads((work / "ledger.json").read_text())
    first, *_, last = (json.loads(line) for line in (work / "finetuned" / "logs.json.txt").read_text().splitlines())
    facts = Table.grid(padding=(0, 2))
    facts.add_row("weights", weights_line(first, ledger))
    for note in ledger["notes"]:
        if "agree within" in note:
            facts.add_row("proof", note)
    before, after = first["val_loss_before_first_update"], last["val_loss"]
    facts.add_row(
        "held-out loss", f"{before:.4f} before the first update, {after:.4f} after update {last['global_step']}"
    )
    if "val_position_error_mm" in last:
        facts.add_row("held-out poses", f"{last['val_position_error_mm']:.0f} mm mean error of the predicted positions")
    facts.add_row("gripper", how_firm(verdicts))
    return Group(facts, "", verdict_table(work, verdicts))


def weights_line(first: Mapping[str, Any], ledger: Mapping[str, Any]) -> str:
    """What the fine-tune started from."""
    return (
        f"{first['inherited_tensors']} tensors inherited ({first['inherited_parameters']:,} numbers), "
        f"{first['grown_tensors']} grown ({first['grown_parameters']} new numbers), {first['fresh_tensors']} fresh; "
        f"the ledger accounts for {len(ledger['entries'])} keys"
    )


def verdict_table(work: Path, verdicts: Sequence[Mapping[str, Any]]) -> Table:
    """One held-out episode a row: what the expert commanded, what the policy does, and the verdict."""
    import numpy as np

    from diffusion_policy.dataset.replay_buffer import ReplayBuffer
    from diffusion_policy.gripper_events import gripper_events

    dataset = ReplayBuffer.open(work / "tabletop.zarr")
    commands = np.split(np.asarray(dataset["action"][:, -1]), dataset.episode_ends[:-1])
    table = Table("held-out episode", "expert's gripper", "policy's gripper", "ahead of the measured one", "verdict")
    for verdict in verdicts:
        episode = json.loads((work / "logs" / verdict["file"]).read_text())["meta"]["episode"]
        table.add_row(
            str(episode),
            events_text(gripper_events(commands[episode])),
            events_text(verdict["events"]),
            f"{verdict['leads_measurement']} of {len(verdict['events'])}",
            verdict["verdict"],
        )
    return table


def events_text(events: Sequence[Sequence[Any]]) -> str:
    """[(19, "close"), (49, "open")] as "close 19, open 49": kinds and steps."""
    return ", ".join(f"{kind} {step}" for step, kind in events) or "never moves"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--workdir", type=Path, default=Path("data/demo"), help="made anew (default: data/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the episodes and of training (default: 0)")
    parser.add_argument("--quick", action="store_true", help="see every step run; far too little to learn from")


def work(arguments: argparse.Namespace) -> Answer:
    """Run the recipe and tell what came of it."""
    console = Console()
    folder = arguments.workdir
    steps = recipe(folder, arguments.seed, quick=arguments.quick)
    prepare(folder)
    status, seconds = play(steps, console)
    judged = len(seconds) == len(steps) and status in (0, 1)
    if not judged:
        failed = f"{steps[len(seconds) - 1].title!r} failed with status {status}; its message is above"
        return Answer(Text(failed, style="red"), status)
    verdicts = json.loads((folder / "verdicts.json").read_text())
    result = outcome(folder, verdicts)
    return Answer(Panel(result, title=headline(verdicts), subtitle=times_text(steps, seconds), expand=False), status)


def times_text(steps: Sequence[Step], seconds: Sequence[float]) -> str:
    """Where the time went."""
    slowest = max(range(len(steps)), key=seconds.__getitem__)
    return f"{sum(seconds):.0f} s, of which {seconds[slowest]:.0f} s: {steps[slowest].title.lower()}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(__doc__, add_arguments, work, argv)


if __name__ == "__main__":
    sys.exit(main())
