"""The loop: which commands a round consists of, and what came of it.

A folder of work holds

    plan.json             what was asked for; --resume refuses another one
    done.json             the commands that have ended
    start.json            the starting checkpoint in closed loop
    corrections/, demonstrations/     an arm each: data.zarr, and of round N recorded_N/, run_N/ and closed_loop_N.json
    rounds.json           the table

The arm ``demonstrations`` is the control: as many ordinary demonstrations a round as the other arm got corrections, and
as many updates. Scenes are seeds of the simulator: those of evaluation, of the rollouts that are corrected and of the
control's demonstrations are three ranges that may not meet.
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
from diffusion_policy.env_runner.document import read_document
from diffusion_policy.env_runner.results import SceneResult, compare, success_of
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.recipe import Ended, Step
from diffusion_policy.run_folder import LATEST, LOG_NAME
from diffusion_policy.storage import whole_folder, write_json
from diffusion_policy.trajectory import find_trajectories

CORRECTIONS, DEMONSTRATIONS = "corrections", "demonstrations"
TABLE_VERSION = 1
_NUMBERS_A_ROUND = 1000  # episodes of round N are numbered from N times this on
_EPOCHS_A_CHECKPOINT = 5  # a fine-tune that is killed loses no more
_SHARE_OF_AN_EPOCH = 0.5  # of the dataset at the start; what is held out, and ends of episodes, are no windows


class RoundError(WorkspaceError):
    """The loop cannot begin, or not go on, as it was asked to."""


@dataclass(frozen=True)
class RoundPlan:
    """What is asked for.

    Attributes:
        checkpoint, dataset: of 8-D actions, and what it was trained on; both are only read.
        rounds: how many.
        scenes: rolled out in a round.
        updates: of a round; equal in both arms.
        evaluation_scenes: in which every checkpoint is evaluated.
        seed: of the first scene that is rolled out to be corrected.
        evaluation_seed: of the first scene of evaluation.
        control_seed: of the control's demonstrations.
        task, referee, camera_size, variation, n_action_steps: of rollouts and demonstrations.
        experiment: of config/experiment, for fine-tuning.
        settings: further settings of train.py.
        control: whether the other arm runs too.
        marked: in place of rollouts, a folder of a robot's recordings in which a person took over; then there is one
            round, and no closed loop.
    """

    checkpoint: str
    dataset: str
    rounds: int = 2
    scenes: int = 20
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
    experiment: str = "demo_finetune"
    settings: tuple[str, ...] = ()
    control: bool = False
    marked: str | None = None

    def __post_init__(self) -> None:
        if self.marked is not None and (self.control or self.rounds != 1):
            raise RoundError(
                "--marked is one round of a robot's recordings: give --rounds 1 and no --control; the next one starts "
                "from the checkpoint and the dataset that this one leaves"
            )
        for name in ("rounds", "scenes", "updates", "evaluation_scenes"):
            if getattr(self, name) < 1:
                raise RoundError(f"{name} is {getattr(self, name)}; expected 1 or more")
        ranges = {
            "evaluation": range(self.evaluation_seed, self.evaluation_seed + self.evaluation_scenes),
            "corrected rollouts": range(self.seed, self.seed + self.rounds * self.scenes),
            "the control's demonstrations": range(self.control_seed, self.control_seed + self.rounds + 1),
        }
        names = list(ranges)
        for at, one in enumerate(names):
            for other in names[at + 1 :]:
                first, second = ranges[one], ranges[other]
                if first.start < second.stop and second.start < first.stop:
                    raise RoundError(
                        f"the scenes of {one} ({first.start} to {first.stop - 1}) and of {other} ({second.start} to "
                        f"{second.stop - 1}) meet; choose seeds that are further apart"
                    )

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, in order."""
        return (CORRECTIONS, DEMONSTRATIONS) if self.control else (CORRECTIONS,)


@dataclass(frozen=True)
class Work:
    """The folder of a loop."""

    folder: Path
    plan: RoundPlan

    def dataset(self, arm: str) -> Path:
        """What the arm has gathered so far."""
        return self.folder / arm / "data.zarr"

    def recorded(self, arm: str, number: int) -> Path:
        """The episodes of a round."""
        return self.folder / arm / f"recorded_{number}"

    def run(self, arm: str, number: int) -> Path:
        """The run of a round."""
        return self.folder / arm / f"run_{number}"

    def checkpoint(self, arm: str, number: int) -> Path:
        """What a round starts from (0: the loop's start) and what comes out of it."""
        if number == 0:
            return Path(self.plan.checkpoint)
        return self.run(arm, number) / "checkpoints" / LATEST

    def closed_loop(self, arm: str, number: int) -> Path:
        """How that checkpoint does."""
        return self.folder / "start.json" if number == 0 else self.folder / arm / f"closed_loop_{number}.json"

    def begin(self, *, resume: bool) -> None:
        """Write down what is asked for.

        Raises:
            RoundError: the folder is of another loop, or not empty.
        """
        asked = json.loads(json.dumps(asdict(self.plan)))
        file = self.folder / "plan.json"
        if resume and file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            differing = [key for key in asked if found.get(key) != asked[key]]
            if differing:
                key = differing[0]
                raise RoundError(f"{file}: {key} is {found.get(key)!r}; here it is {asked[key]!r}")
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise RoundError(f"{self.folder} is not empty; name another --workdir, or go on with --resume")
        else:
            write_json(file, asked)

    def copy_dataset(self, arm: str) -> None:
        """What the arm starts with, if it is not there yet: a copy of the plan's dataset, whole or not at all."""
        target = self.dataset(arm)
        if not target.exists():
            with whole_folder(target) as beside:
                shutil.copytree(self.plan.dataset, beside, dirs_exist_ok=True)


def evaluation(work: Work, arm: str, number: int) -> Step:
    """The command that evaluates a checkpoint in the scenes that all share."""
    plan, out = work.plan, work.closed_loop(arm, number)
    words = ["scripts/evaluate_closed_loop.py", str(work.checkpoint(arm, number))]
    words += ["--scenes", str(plan.evaluation_scenes), "--seed", str(plan.evaluation_seed)]
    words += ["--task", plan.task, "--referee", plan.referee, "--camera-size", *map(str, plan.camera_size)]
    words += [*_executed(plan), "--json", str(out), *(["--resume"] if out.is_file() else [])]
    name = "the start" if number == 0 else f"round {number}, {arm}"
    return Step(f"Evaluate {name}", tuple(words))


def gathering(work: Work, arm: str, number: int) -> Step:
    """The command that records what a round adds."""
    plan, out = work.plan, work.recorded(arm, number)
    camera = list(map(str, plan.camera_size))
    first = ("--first-number", str(_NUMBERS_A_ROUND * number))
    if plan.marked is not None:
        scale = ExistingDataset.open(Path(plan.dataset)).report.settings["gripper_scale"]
        words = ["scripts/collect_corrections.py", "--marked", plan.marked, "--output", str(out), *first]
        return Step(f"Round {number}: cut out what is marked", (*words, *(["--gripper-scale", scale] if scale else [])))
    if arm == DEMONSTRATIONS:
        count = len(read_collected(work.recorded(CORRECTIONS, number)).episodes)
        words = ["scripts/make_demo_trajectories.py", "--output", str(out), "--episodes", str(count)]
        words += ["--seed", str(plan.control_seed + number), "--resolution", *camera, "--task", plan.task]
        words += ["--variation", str(plan.variation), "--referee", plan.referee]
        return Step(f"Round {number}, {arm}: record as many", tuple(words))
    words = ["scripts/collect_corrections.py", str(work.checkpoint(arm, number - 1)), "--output", str(out)]
    words += ["--scenes", str(plan.scenes), "--seed", str(plan.seed + (number - 1) * plan.scenes)]
    words += ["--task", plan.task, "--referee", plan.referee, "--camera-size", *camera]
    words += ["--variation", str(plan.variation), *first, *_executed(plan), "--resume"]
    return Step(f"Round {number}, {arm}: roll out, and correct", tuple(words))


def learning(work: Work, arm: str, number: int) -> list[Step]:
    """The commands that add a round's episodes to the dataset and fine-tune on all of it."""
    plan, data = work.plan, work.dataset(arm)
    add = ("scripts/convert_cogact_to_zarr.py", "--input", str(work.recorded(arm, number)), "--output", str(data))
    epochs, batches = split_updates(plan)
    train = [
        *training_words(plan, data),
        f"pretrained.path={work.checkpoint(arm, number - 1)}",
        "pretrained.which=ema_model",
        f"hydra.run.dir={work.run(arm, number)}",
        f"training.num_epochs={epochs}",
        f"training.max_train_steps={batches}",
        f"training.seed={number}",
        f"training.checkpoint_every={_EPOCHS_A_CHECKPOINT}",
        "training.resume=True",
    ]
    return [
        Step(f"Round {number}, {arm}: add to the dataset", (*add, *conversion_words(data), "--append", "--resume")),
        Step(f"Round {number}, {arm}: fine-tune", tuple(train)),
    ]


def training_words(plan: RoundPlan, data: Path) -> list[str]:
    """The words of every fine-tune of the loop; what differs between rounds comes after them."""
    start = ["train.py", "--config-name=train_cogact_robot", f"experiment={plan.experiment}"]
    return [*start, f"task.dataset_path={data}", *plan.settings]


def split_updates(plan: RoundPlan) -> tuple[int, int]:
    """Epochs, and updates of each, that make ``plan.updates`` or a few more; the same for every dataset of the loop.

    An epoch is cut at a number of updates that the dataset of the start has already, so that a dataset that has grown
    gives no more of them.
    """
    from diffusion_policy.training_config import compose_arguments

    cfg = compose_arguments(training_words(plan, Path(plan.dataset))[1:])
    frames = int(ExistingDataset.open(Path(plan.dataset)).buffer.episode_ends[-1])
    whole = max(1, math.floor(_SHARE_OF_AN_EPOCH * frames / int(cfg.dataloader.batch_size)))
    epochs = math.ceil(plan.updates / whole)
    return epochs, math.ceil(plan.updates / epochs)


def conversion_words(data: Path) -> list[str]:
    """The converter's settings that a dataset was made with, as words of its command line."""
    made = ExistingDataset.open(data).report.settings
    words = ["--resolution", *map(str, made["resolution"]), "--compressor", str(made["codec"])]
    options = {
        "--compression-level": made["level"],
        "--zarr-format": made["zarr_format"],
        "--shard": made["shard"],
        "--gaps": made["gaps"],
        "--decode": made["decode"],
        "--quaternion-sign": made["quaternion_sign"],
        "--gripper-command": made["gripper_command"],
        "--gripper-scale": made["gripper_scale"],
        "--gripper-lead": made["gripper_lead"],
    }
    for name, value in options.items():
        words += [] if value is None else [name, str(value)]
    return words


def _executed(plan: RoundPlan) -> list[str]:
    return [] if plan.n_action_steps is None else ["--n-action-steps", str(plan.n_action_steps)]


def stages(work: Work, number: int, ended: Ended) -> Iterator[list[Step]]:
    """The commands of a round, in parts: what a part consists of depends on what the one before found.

    Args:
        work: of which loop.
        number: of the round; 0 evaluates the start.
        ended: what is not run again.
    """
    if work.plan.marked is not None:
        if number:
            work.copy_dataset(CORRECTIONS)
            yield [_anew(gathering(work, CORRECTIONS, number), work.recorded(CORRECTIONS, number), ended)]
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
            rest.append(_anew(gathering(work, arm, number), work.recorded(arm, number), ended))
        rest += [*learning(work, arm, number), evaluation(work, arm, number)]
    yield rest


def _anew(step: Step, output: Path, ended: Ended) -> Step:
    """The step; what is there of a command that was killed, and does not go on, is removed."""
    if step not in ended:
        shutil.rmtree(output, ignore_errors=True)
    return step


def rows_of(work: Work, number: int) -> list[dict[str, Any]]:
    """The rows of a round, one for each arm; none if there was nothing to correct."""
    if number == 0:
        return [_row(work, CORRECTIONS, 0)]
    if work.plan.marked is None and not read_collected(work.recorded(CORRECTIONS, number)).episodes:
        return []
    return [_row(work, arm, number) for arm in work.plan.arms]


def _row(work: Work, arm: str, number: int) -> dict[str, Any]:
    """What a round came to, as plain data, from what its commands wrote."""
    content = ExistingDataset.open(work.dataset(arm)) if number else ExistingDataset.open(Path(work.plan.dataset))
    gathered = [len(find_trajectories(work.recorded(arm, past))) for past in range(1, number + 1)]
    ends = [*content.buffer.episode_ends.tolist()]
    # An arm's dataset holds the rounds in order, so a row can be made again when later rounds have been added.
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
    """Updates that a run has made, by its own log."""
    lines = (run / LOG_NAME).read_text(encoding="utf-8").splitlines()
    return int(json.loads(lines[-1])["global_step"])


def document(work: Work, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The loop's table as plain data."""
    return {"format": "dagger", "version": TABLE_VERSION, "plan": asdict(work.plan), "rounds": list(rows)}
