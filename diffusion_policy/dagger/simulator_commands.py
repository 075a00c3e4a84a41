"""What the commands of a round need to know about a simulator: its names, recording, conversion and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from diffusion_policy.commands import in_grove
from diffusion_policy.trajectory import find_trajectories

GROVE, TABLETOP = "grove", "tabletop"
DEFAULT_TASKS = {TABLETOP: "pick_and_place", GROVE: "log"}
DEMO_EXPERIMENT = "demo_finetune"


class RolloutPlan(Protocol):
    """The settings of a loop that are used here; see ``rounds.RoundPlan``."""

    @property
    def task(self) -> str:
        """Of the simulator."""

    @property
    def referee(self) -> str:
        """Of the tabletop."""

    @property
    def camera_size(self) -> tuple[int, int]:
        """Of the tabletop."""

    @property
    def variation(self) -> float:
        """Of the expert."""

    @property
    def experiment(self) -> str | None:
        """Of config/experiment; None: the simulator's own."""

    @property
    def env(self) -> tuple[str, ...]:
        """Arguments of the environment as KEY=VALUE."""


class SimulatorCommands(Protocol):
    """The words that differ between simulators.

    Attributes:
        script: the script that converts its recordings.
        starts_from: arguments of train.py that go with
            ``pretrained.path``.
    """

    script: str
    starts_from: tuple[str, ...]

    def evaluating(self) -> list[str]:
        """Arguments of evaluate_closed_loop.py."""

    def correcting(self) -> list[str]:
        """Arguments of collect_corrections.py."""

    def demonstrating(self, output: Path, episodes: int, seed: int) -> list[str]:
        """The command that records ordinary demonstrations."""

    def converting(self, made: Mapping[str, Any]) -> list[str]:
        """Arguments of the converter that only this format has, from a dataset's settings."""

    def training(self) -> list[str]:
        """Arguments of train.py."""

    def frames_an_update(self, cfg: DictConfig) -> int:
        """The number of the dataset's frames that an update uses."""

    def recorded(self, folder: Path) -> int:
        """Number of episodes in a folder of recordings."""


class TabletopCommands:
    """Commands for the built-in tabletop, and for a robot's recordings."""

    script = "scripts/convert_cogact_to_zarr.py"
    starts_from: tuple[str, ...] = ("pretrained.which=ema_model",)

    def __init__(self, plan: RolloutPlan) -> None:
        self._plan = plan

    def evaluating(self) -> list[str]:
        """Task, referee and camera."""
        plan = self._plan
        camera = ["--camera-size", *map(str, plan.camera_size)]
        return ["--task", plan.task, "--referee", plan.referee, *camera, *_env_words(plan)]

    def correcting(self) -> list[str]:
        """The same as for the evaluation."""
        return self.evaluating()

    def demonstrating(self, output: Path, episodes: int, seed: int) -> list[str]:
        """By the scripted expert."""
        plan = self._plan
        words = ["scripts/make_demo_trajectories.py", "--output", str(output), "--episodes", str(episodes)]
        words += ["--seed", str(seed), "--resolution", *map(str, plan.camera_size), "--task", plan.task]
        return [*words, "--variation", str(plan.variation), "--referee", plan.referee]

    def converting(self, made: Mapping[str, Any]) -> list[str]:
        """Grippers and quaternions."""
        options = {
            "--quaternion-sign": made["quaternion_sign"],
            "--gripper-command": made["gripper_command"],
            "--gripper-scale": made["gripper_scale"],
            "--gripper-lead": made["gripper_lead"],
        }
        return option_words(options)

    def training(self) -> list[str]:
        """The robot's config with its experiment."""
        return ["--config-name=train_cogact_robot", f"experiment={self._plan.experiment or DEMO_EXPERIMENT}"]

    def frames_an_update(self, cfg: DictConfig) -> int:
        """A window for each frame."""
        return int(cfg.dataloader.batch_size)

    def recorded(self, folder: Path) -> int:
        """Folders of trajectories."""
        return len(find_trajectories(folder))


class GroveCommands:
    """Commands for the grove, where VPT plays."""

    script = "scripts/convert_dataset.py"
    starts_from: tuple[str, ...] = ()

    def __init__(self, plan: RolloutPlan) -> None:
        self._plan = plan

    def evaluating(self) -> list[str]:
        """The simulator's settings and the task."""
        return [*in_grove(), "--task", self._plan.task, *_env_words(self._plan)]

    def correcting(self) -> list[str]:
        """The same, by the simulator's name."""
        return ["--simulator", GROVE, "--task", self._plan.task, *_env_words(self._plan)]

    def demonstrating(self, output: Path, episodes: int, seed: int) -> list[str]:
        """By the scripted expert."""
        words = ["scripts/record_grove.py", "--output", str(output), "--episodes", str(episodes), "--seed", str(seed)]
        return [*words, "--task", self._plan.task, "--variation", str(self._plan.variation)]

    def converting(self, made: Mapping[str, Any]) -> list[str]:
        """Whether ticks without action are kept."""
        return option_words({"--null-actions": made.get("null_actions")})

    def training(self) -> list[str]:
        """Behavior cloning; an experiment only if one is named."""
        experiment = self._plan.experiment
        return ["--config-name=train_vpt_bc", *([] if experiment is None else [f"experiment={experiment}"])]

    def frames_an_update(self, cfg: DictConfig) -> int:
        """A chunk of each row."""
        return int(cfg.dataloader.batch_size) * int(cfg.horizon)

    def recorded(self, folder: Path) -> int:
        """Videos with their lines."""
        return sum(file.with_suffix(".jsonl").is_file() for file in folder.glob("*.mp4"))


COMMANDS: Mapping[str, type[TabletopCommands] | type[GroveCommands]] = {
    TABLETOP: TabletopCommands,
    GROVE: GroveCommands,
}


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options that have a value, as words."""
    return [word for name, value in options.items() if value is not None for word in (name, str(value))]


def _env_words(plan: RolloutPlan) -> Sequence[str]:
    return [word for setting in plan.env for word in ("--env", setting)]
