"""What `finetune_study.py` runs: a YAML file read into arms and cells; invalid entries are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from diffusion_policy.errors import WorkspaceError

STARTS = ("scratch", "strip", "grow")
RECORDED, COPIED, NEXT_MEASURED = "recorded", "copied", "next-measured"
LABELS = (RECORDED, COPIED, NEXT_MEASURED)


class StudyError(WorkspaceError):
    """The study's file asks for something that does not exist or cannot be run; the message says what and where."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: name in tables.
        start: scratch, strip or grow; the latter two adapt the study's source.
        labels: labels of the demonstrations: as recorded; copied: the measured gripper *is* the command, as some
            recorders write it; next-measured: the same recordings, converted with --gripper-command next-measured.
        overrides: overrides of the training config, as on the command line.
        set: entries of the composed config that cannot be set on the command line, such as stages.0.steps.
        source: checkpoint to adapt instead of the study's; None for the study's.
        demonstrations, seeds: numbers of demonstrations and seeds that the arm is run with; None for all of the
            study's.
    """

    name: str
    start: str
    labels: str = RECORDED
    overrides: tuple[str, ...] = ()
    set: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    demonstrations: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Scenes:
    """Closed-loop scenes: ``last`` for a cell's last checkpoint, the first ``along`` for earlier ones."""

    along: int
    last: int
    seed: int = 300_000
    n_action_steps: int = 8

    def of(self, *, last: bool) -> int:
        """Returns the number of scenes for a checkpoint."""
        return self.last if last else self.along


@dataclass(frozen=True)
class Cell:
    """One training: an arm, a number of demonstrations, a seed."""

    arm: Arm
    demonstrations: int
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder and files."""
        words = "".join(letter if letter.isalnum() else " " for letter in self.arm.name).split()
        return f"{'_'.join(words)}-{self.demonstrations}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A study.

    Attributes:
        source: the 7-D checkpoint that arms start from.
        device, threads: of training and evaluation; threads None for one per core that other processes leave free.
        seeds: seeds of demonstrations and training.
        demonstrations: numbers of demonstrations to train on.
        held_out: number of demonstrations of each seed that are only measured on.
        updates: number of updates of each training; it is measured every ``look_every`` of them, with the sampler at
            every second time.
        judged_at: updates after which a checkpoint is judged on recordings and in scenes; multiples of look_every.
        scenes: scenes of the closed loop.
        overrides: overrides of every arm's training config.
        arms: the arms to compare.
        tampered_from: names of arms whose last checkpoints, with the most demonstrations, are also judged after each of
            study_data.TAMPERINGS.
    """

    source: str
    seeds: tuple[int, ...]
    demonstrations: tuple[int, ...]
    held_out: int
    updates: int
    look_every: int
    judged_at: tuple[int, ...]
    scenes: Scenes
    arms: tuple[Arm, ...]
    overrides: tuple[str, ...] = ()
    tampered_from: tuple[str, ...] = ()
    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.updates % self.look_every:
            raise StudyError(f"updates is {self.updates}; expected a multiple of look_every, {self.look_every}")
        wrong = [u for u in self.judged_at if u % self.look_every or not 0 < u <= self.updates or not self.samples(u)]
        if wrong or self.updates not in self.judged_at:
            raise StudyError(
                f"judged_at is {list(self.judged_at)}; expected odd multiples of {self.look_every} up to "
                f"{self.updates}, including the last one"
            )
        names = [arm.name for arm in self.arms]
        unknown = set(self.tampered_from) - set(names)
        if unknown or len(set(names)) != len(names):
            raise StudyError(f"arms are {names}; expected each once, and tampered_from among them")

    def samples(self, update: int) -> bool:
        """Whether the sampler is among the measurements after an update: at the first, the third, ... and the last."""
        return update == self.updates or update // self.look_every % 2 == 1

    def cells(self) -> list[Cell]:
        """Returns all trainings, seed by seed, so that a stopped study contains complete comparisons.

        Arms with only some of the seeds come last.
        """
        cells = [
            Cell(arm, count, seed)
            for seed in self.seeds
            for count in self.demonstrations
            for arm in self.arms
            if count in (arm.demonstrations or self.demonstrations) and seed in (arm.seeds or self.seeds)
        ]
        return sorted(cells, key=lambda cell: cell.arm.seeds is not None)


def read_plan(path: Path) -> Plan:
    """Reads a study from its file.

    Raises:
        StudyError: an unknown key, a missing one, or values that do not fit together.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise StudyError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(content, Mapping):
        raise StudyError(f"{path}: holds {type(content).__name__}; expected the entries of a study")
    settings = dict(content)
    arms = settings.pop("arms", None)
    if not isinstance(arms, Mapping) or not arms:
        raise StudyError(f"{path}: arms is {arms!r}; expected the ways to train by name")
    settings["arms"] = [_built(Arm, {"name": name, **entry}, f"{path}: arm {name!r}") for name, entry in arms.items()]
    settings["scenes"] = _built(Scenes, settings.get("scenes", {}), f"{path}: scenes")
    plan: Plan = _built(Plan, settings, str(path))
    for arm in plan.arms:
        for value, choices in ((arm.start, STARTS), (arm.labels, LABELS)):
            if value not in choices:
                raise StudyError(f"{path}: arm {arm.name!r} has {value!r}; expected one of {', '.join(choices)}")
    return plan


def _built(kind: Any, entries: Mapping[str, Any], where: str) -> Any:
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(entries) - known)
    if unknown:
        raise StudyError(f"{where} has {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()}
    try:
        return kind(**plain)
    except TypeError as error:
        raise StudyError(f"{where}: {error}") from error
