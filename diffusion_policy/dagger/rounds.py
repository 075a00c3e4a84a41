"""The DAgger loop: the commands of each round, and the table of results.

A work folder holds

    plan.json             the plan; --resume refuses a different one
    done.json             the commands that have ended
    start.json            closed-loop evaluation of the initial checkpoint
    corrections/, demonstrations/
                          one arm of the experiment each: data.zarr, and for each round N recorded_N/, run_N/ and
                          closed_loop_N.json
    rounds.json           the table of results

The arm ``demonstrations`` is the control: in each round it gets as many ordinary demonstrations as the other arm gets
corrections, and as many updates. Scenes are seeds of the simulator: the seeds of the evaluation, of the corrected
rollouts and of the control's demonstrations are three ranges that must not overlap.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffusion_policy.convert.existing import ExistingDataset
from diffusion_policy.dagger.corrections import read_collected
from diffusion_policy.dagger.simulator_commands import COMMANDS, TABLETOP, SimulatorCommands, option_words
from diffusion_policy.env_runner.document import read_document
from diffusion_policy.env_runner.results import SceneResult, compare, success_of
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.recipe import FinishedSteps, Step
from diffusion_policy.run_folder import LATEST, LOG_NAME
from diffusion_policy.storage import atomic_folder, write_json

CORRECTIONS, DEMONSTRATIONS = "corrections", "demonstrations"
TABLE_VERSION = 1
_NUMBERS_A_ROUND = 1000  # the episodes of round N are numbered from N times this number
_EPOCHS_A_CHECKPOINT = 5  # epochs that a killed fine-tuning run loses at most
# For plans written before these settings existed.
_BEFORE: Mapping[str, Any] = {"simulator": TABLETOP, "env": []}
_SHARE_OF_AN_EPOCH = 0.5  # of the initial dataset; held-out episodes and ends of episodes give no windows


class RoundError(WorkspaceError):
    """The loop cannot start or resume with these settings."""


@dataclass(frozen=True)
class RoundPlan:
    """The plan of a loop.

    Attributes:
        checkpoint, dataset: a policy with 8-D actions, or VPT's, and its training data; both are only read.
        rounds: number of rounds.
        scenes: scenes rolled out in a round; several numbers: one per round.
        updates: updates of a round; equal in both arms.
        evaluation_scenes: number of scenes in which every checkpoint is evaluated.
        seed: seed of the first scene rolled out for correction.
        evaluation_seed: seed of the first scene of the evaluation.
        control_seed: seed of the control's demonstrations.
        task, referee, camera_size, variation, n_action_steps: settings of rollouts and demonstrations.
        experiment: name in config/experiment, for fine-tuning; None: the simulator's own.
        settings: further settings of train.py.
        control: whether the control arm runs, too.
        marked: a folder of a robot's recordings in which a person took over, in place of rollouts; then there is one
            round, and no closed-loop evaluation.
        simulator: "tabletop" or "grove", of ``simulator_commands.COMMANDS``.
        env: arguments of its environment as KEY=VALUE.
    """

    checkpoint: str
    dataset: str
    rounds: int = 2
    scenes: int | tuple[int, ...] = 20
    updates: int = 400
    evaluation_scenes: int = 40
    seed: int = 300_000
    evaluation_seed: int = 100_000
    control_seed: int = 400_000
    task: str = "pick_and_place"
    referee: str = "physics"
    camera_size: tuple[int, int] = (320, 180)
    variation: float = 0.3
    n_action_steps: int | None = None
    experiment: str | None = None
    settings: tuple[str, ...] = ()
    control: bool = False
    marked: str | None = None
    simulator: str = TABLETOP
    env: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.marked is not None and (self.control or self.rounds != 1):
            raise RoundError(
                "--marked is one round of a robot's recordings: give --rounds 1 and no --control; the next one starts "
                "from the checkpoint and the dataset that this one leaves"
            )
        if self.simulator not in COMMANDS:
            raise RoundError(f"simulator is {self.simulator!r}; expected {' or '.join(COMMANDS)}")
        for name in ("rounds", "updates", "evaluation_scenes"):
            if getattr(self, name) < 1:
                raise RoundError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if isinstance(self.scenes, tuple) and len(self.scenes) != self.rounds:
            raise RoundError(f"scenes are of {len(self.scenes)} rounds; expected one number, or {self.rounds}")
        if min(map(self.scenes_of, range(1, self.rounds + 1))) < 1:
            raise RoundError(f"scenes is {self.scenes}; expected 1 or more")
        ranges = {
            "evaluation": range(self.evaluation_seed, self.evaluation_seed + self.evaluation_scenes),
            "corrected rollouts": range(self.seed, self.first_seed(self.rounds + 1)),
            "the control's demonstrations": range(self.control_seed, self.control_seed + self.rounds + 1),
        }
        names = list(ranges)
        for at, one in enumerate(names):
            for other in names[at + 1 :]:
                first, second = ranges[one], ranges[other]
                if first.start < second.stop and second.start < first.stop:
                    raise RoundError(
                        f"the scenes of {one} ({first.start} to {first.stop - 1}) and of {other} ({second.start} to "
                        f"{second.stop - 1}) overlap; choose seeds that are further apart"
                    )

    @property
    def commands(self) -> SimulatorCommands:
        """What the commands need to know about the simulator."""
        return COMMANDS[self.simulator](self)

    def scenes_of(self, number: int) -> int:
        """Scenes that are rolled out in a round, from 1."""
        return self.scenes[number - 1] if isinstance(self.scenes, tuple) else self.scenes

    def first_seed(self, number: int) -> int:
        """Seed of the first scene that is rolled out in a round."""
        return self.seed + sum(self.scenes_of(past) for past in range(1, number))

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, in order."""
        return (CORRECTIONS, DEMONSTRATIONS) if self.control else (CORRECTIONS,)


@dataclass(frozen=True)
class Work:
    """The folder of a loop, and the paths in it."""

    folder: Path
    plan: RoundPlan

    def dataset(self, arm: str) -> Path:
        """Returns the dataset of an arm."""
        return self.folder / arm / "data.zarr"

    def recorded(self, arm: str, number: int) -> Path:
        """Returns the folder of the episodes of a round."""
        return self.folder / arm / f"recorded_{number}"

    def run(self, arm: str, number: int) -> Path:
        """Returns the run folder of a round."""
        return self.folder / arm / f"run_{number}"

    def checkpoint(self, arm: str, number: int) -> Path:
        """Returns the checkpoint that a round produced; of round 0, the initial checkpoint."""
        if number == 0:
            return Path(self.plan.checkpoint)
        return self.run(arm, number) / "checkpoints" / LATEST

    def closed_loop(self, arm: str, number: int) -> Path:
        """Returns the file with the closed-loop result of that checkpoint."""
        return self.folder / "start.json" if number == 0 else self.folder / arm / f"closed_loop_{number}.json"

    def begin(self, *, resume: bool) -> None:
        """Writes the plan, or checks the one of an interrupted loop.

        Raises:
            RoundError: the folder belongs to another loop, or is not empty.
        """
        asked = json.loads(json.dumps(asdict(self.plan)))
        file = self.folder / "plan.json"
        if resume and file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            differing = [key for key in asked if found.get(key, _BEFORE.get(key)) != asked[key]]
            if differing:
                key = differing[0]
                raise RoundError(f"{file}: {key} is {found.get(key)!r}; here it is {asked[key]!r}")
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise RoundError(f"{self.folder} is not empty; name another --workdir, or continue with --resume")
        else:
            write_json(file, asked)

    def copy_dataset(self, arm: str) -> None:
        """Copies the plan's dataset as the arm's initial one, unless the arm has one; it is never left incomplete."""
        target = self.dataset(arm)
        if not target.exists():
            with atomic_folder(target) as partial:
                shutil.copytree(self.plan.dataset, partial, dirs_exist_ok=True)


def evaluation(work: Work, arm: str, number: int) -> Step:
    """Returns the command that evaluates a checkpoint in the scenes of the evaluation."""
    plan, out = work.plan, work.closed_loop(arm, number)
    words = ["scripts/evaluate_closed_loop.py", str(work.checkpoint(arm, number))]
    words += ["--scenes", str(plan.evaluation_scenes), "--seed", str(plan.evaluation_seed)]
    words += [
        *plan.commands.evaluating(),
        *_executed(plan),
        "--json",
        str(out),
        *(["--resume"] if out.is_file() else []),
    ]
    name = "the start" if number == 0 else f"round {number}, {arm}"
    return Step(f"Evaluate {name}", tuple(words))


def gathering(work: Work, arm: str, number: int) -> Step:
    """Returns the command that records the episodes of a round."""
    plan, out = work.plan, work.recorded(arm, number)
    first = ("--first-number", str(_NUMBERS_A_ROUND * number))
    if plan.marked is not None:
        scale = ExistingDataset.open(Path(plan.dataset)).report.settings["gripper_scale"]
        words = ["scripts/collect_corrections.py", "--marked", plan.marked, "--output", str(out), *first]
        return Step(f"Round {number}: cut out what is marked", (*words, *(["--gripper-scale", scale] if scale else [])))
    if arm == DEMONSTRATIONS:
        count = len(read_collected(work.recorded(CORRECTIONS, number)).episodes)
        words = plan.commands.demonstrating(out, count, plan.control_seed + number)
        return Step(f"Round {number}, {arm}: record as many", tuple(words))
    words = ["scripts/collect_corrections.py", str(work.checkpoint(arm, number - 1)), "--output", str(out)]
    words += ["--scenes", str(plan.scenes_of(number)), "--seed", str(plan.first_seed(number))]
    words += [*plan.commands.correcting(), "--variation", str(plan.variation), *first, *_executed(plan), "--resume"]
    return Step(f"Round {number}, {arm}: roll out, and correct", tuple(words))


def learning(work: Work, arm: str, number: int) -> list[Step]:
    """Returns the commands that add a round's episodes to the dataset and fine-tune on the whole dataset."""
    plan, data = work.plan, work.dataset(arm)
    add = (plan.commands.script, "--input", str(work.recorded(arm, number)), "--output", str(data))
    epochs, batches = split_updates(plan)
    train = [
        *training_words(plan, data),
        f"pretrained.path={work.checkpoint(arm, number - 1)}",
        *plan.commands.starts_from,
        f"hydra.run.dir={work.run(arm, number)}",
        f"training.num_epochs={epochs}",
        f"training.max_train_steps={batches}",
        f"training.seed={number}",
        f"training.checkpoint_every={_EPOCHS_A_CHECKPOINT}",
        "training.resume=True",
    ]
    return [
        Step(
            f"Round {number}, {arm}: add to the dataset", (*add, *conversion_words(plan, data), "--append", "--resume")
        ),
        Step(f"Round {number}, {arm}: fine-tune", tuple(train)),
    ]


def training_words(plan: RoundPlan, data: Path) -> list[str]:
    """Returns the arguments that all fine-tuning runs of the loop share."""
    return ["train.py", *plan.commands.training(), f"task.dataset_path={data}", *plan.settings]


def first_training(plan: RoundPlan) -> list[str]:
    """Returns arguments of train.py by which to check, before any rollout, that training could start."""
    words = training_words(plan, Path(plan.dataset))[1:]
    return [*words, f"pretrained.path={plan.checkpoint}", *plan.commands.starts_from]


def split_updates(plan: RoundPlan) -> tuple[int, int]:
    """Returns (epochs, updates per epoch) with a product of ``plan.updates`` or slightly more, for every dataset.

    The updates of an epoch are limited to what the initial dataset has, so that a larger dataset gives no more of them.
    """
    from diffusion_policy.training_config import compose_arguments

    cfg = compose_arguments(training_words(plan, Path(plan.dataset))[1:])
    frames = int(ExistingDataset.open(Path(plan.dataset)).buffer.episode_ends[-1])
    whole = max(1, math.floor(_SHARE_OF_AN_EPOCH * frames / plan.commands.frames_an_update(cfg)))
    epochs = math.ceil(plan.updates / whole)
    return epochs, math.ceil(plan.updates / epochs)


def conversion_words(plan: RoundPlan, data: Path) -> list[str]:
    """Returns the converter's settings that a dataset was made with, as command-line arguments."""
    made = ExistingDataset.open(data).report.settings
    words = ["--resolution", *map(str, made["resolution"]), "--compressor", str(made["codec"])]
    options = {
        "--compression-level": made["level"],
        "--zarr-format": made["zarr_format"],
        "--shard": made["shard"],
        "--gaps": made["gaps"],
        "--decode": made["decode"],
    }
    return [*words, *option_words(options), *plan.commands.converting(made)]


def _executed(plan: RoundPlan) -> list[str]:
    return [] if plan.n_action_steps is None else ["--n-action-steps", str(plan.n_action_steps)]


def stages(work: Work, number: int, ended: FinishedSteps) -> Iterator[list[Step]]:
    """Yields the commands of a round in parts; each part depends on the results of the one before.

    Args:
        work: the loop.
        number: number of the round; 0 evaluates the initial checkpoint.
        ended: commands that have finished, and are not run again.
    """
    if work.plan.marked is not None:
        if number:
            work.copy_dataset(CORRECTIONS)
            yield [_from_scratch(gathering(work, CORRECTIONS, number), work.recorded(CORRECTIONS, number), ended)]
            yield learning(work, CORRECTIONS, number)
        return
    if number == 0:
        yield [evaluation(work, CORRECTIONS, 0)]
        return
    yield [gathering(work, CORRECTIONS, number)]
    if not read_collected(work.recorded(CORRECTIONS, number)).episodes:
        return
    rest: list[Step] = []
    for arm in work.plan.arms:
        work.copy_dataset(arm)
        if arm == DEMONSTRATIONS:
            rest.append(_from_scratch(gathering(work, arm, number), work.recorded(arm, number), ended))
        rest += [*learning(work, arm, number), evaluation(work, arm, number)]
    yield rest


def _from_scratch(step: Step, output: Path, ended: FinishedSteps) -> Step:
    """Returns the step after removing the output of a killed command that cannot be resumed."""
    if step not in ended:
        shutil.rmtree(output, ignore_errors=True)
    return step


def rows_of(work: Work, number: int) -> list[dict[str, Any]]:
    """Returns the rows of a round, one for each arm; none if there was nothing to correct."""
    if number == 0:
        return [_row(work, CORRECTIONS, 0)]
    if work.plan.marked is None and not read_collected(work.recorded(CORRECTIONS, number)).episodes:
        return []
    return [_row(work, arm, number) for arm in work.plan.arms]


def _row(work: Work, arm: str, number: int) -> dict[str, Any]:
    """Returns the result of a round as plain data, read from the files that its commands wrote."""
    content = ExistingDataset.open(work.dataset(arm)) if number else ExistingDataset.open(Path(work.plan.dataset))
    gathered = [work.plan.commands.recorded(work.recorded(arm, past)) for past in range(1, number + 1)]
    ends = [*content.buffer.episode_ends.tolist()]
    # An arm's dataset holds the rounds in order, so the row of a round can be computed after later rounds, too.
    at_start = len(ExistingDataset.open(Path(work.plan.dataset)).buffer.episode_ends)
    episodes = at_start + sum(gathered)
    found = {
        "arm": arm if number else "start",
        "round": number,
        "demonstrations": episodes if arm == DEMONSTRATIONS else at_start,
        "corrections": sum(gathered) if arm == CORRECTIONS else 0,
        "frames": int(ends[episodes - 1]),
        "updates": sum(_updates(work.run(arm, past)) for past in range(1, number + 1)),
        "success": None,
        "before": None,
        "against_demonstrations": None,
    }
    if work.plan.marked is not None:
        return found
    results = _results(work, arm, number)
    found["success"] = success_of(results).to_json()
    if number:
        found["before"] = compare(_results(work, arm, number - 1), results).to_json()
        if arm == CORRECTIONS and work.closed_loop(DEMONSTRATIONS, number).is_file():
            found["against_demonstrations"] = compare(_results(work, DEMONSTRATIONS, number), results).to_json()
    return found


def _results(work: Work, arm: str, number: int) -> list[SceneResult]:
    return read_document(work.closed_loop(arm, number))[1]


def _updates(run: Path) -> int:
    """Returns the number of updates of a run, from its log."""
    lines = (run / LOG_NAME).read_text(encoding="utf-8").splitlines()
    return int(json.loads(lines[-1])["global_step"])


def document(work: Work, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the loop's table as plain data."""
    return {"format": "dagger", "version": TABLE_VERSION, "plan": asdict(work.plan), "rounds": list(rows)}
