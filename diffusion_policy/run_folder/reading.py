"""Reads a training run from disk, including runs of the users' code base."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_policy.dataset.joined_datasets import dataset_paths
from diffusion_policy.dataset.opening import dataset_exists
from diffusion_policy.dataset.sampling import Share
from diffusion_policy.gripper_scale import CONFIG_KEY
from diffusion_policy.resolvers import check_interpolations, flat_config, register_resolvers
from diffusion_policy.run_folder import BEST, LATEST, LOG_NAME, SAMPLING_NAME, STATUS_NAME, RunFolderError
from diffusion_policy.run_folder.resuming import command_line, command_to_resume, setting_of, started_with

Metrics = dict[str, Any]
Curve = list[tuple[int, float]]
# Metrics of held-out errors: of positions in mm, and of joints, each metric with its unit.
POSITION_ERROR = "val_position_error_mm"
JOINT_ERRORS = {"val_joint_error_rad": "rad", "val_joint_error_deg": "degrees", "val_joint_error": ""}


@dataclass(frozen=True)
class RunFolder:
    """One run.

    Attributes:
        path: path of the folder.
        config: the config as composed by Hydra; None if it was not kept.
        metrics: lines of the log, in order.
        checkpoints: checkpoints by file name.
        logs: inference logs in it.
        closed_loop: documents of closed-loop evaluations in it.
        sampling: share of each dataset or task in an epoch; empty if there was only one, and in older folders.
        started_with: arguments of its command line; empty if they were not kept.
        status: the run's state: "state", "signal", "error", "epochs", "of_epochs", "updates", "of_updates"; None in
            older folders.
    """

    path: Path
    config: DictConfig | None
    metrics: tuple[Metrics, ...]
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    logs: tuple[Path, ...] = ()
    started_with: tuple[str, ...] = ()
    status: Mapping[str, Any] | None = None
    closed_loop: tuple[Path, ...] = ()
    sampling: tuple[Share, ...] = ()

    @property
    def learns_from_rewards(self) -> bool:
        """Whether it plays, and learns from rewards: reinforcement learning."""
        return bool(self.curve("success_share")) or "ppo" in (self.config or {})

    @property
    def unfinished(self) -> bool:
        """Whether it is known to have completed fewer epochs than planned."""
        return self.status is not None and self.status["state"] != "finished"

    def again(self, *changes: str) -> str:
        """Returns the command line that repeats this run with changed settings, in a new folder."""
        kept = [word for word in self.started_with if setting_of(word) not in ("hydra.run.dir", "training.resume")]
        return command_line(kept, *changes)

    def resumed(self, *changes: str) -> str:
        """Returns the command line that continues this run."""
        return command_to_resume(self.started_with, self.path, *changes)

    @property
    def name(self) -> str:
        """The run's name: its folder, by date and name."""
        return self.path.name if len(self.path.name) > 6 else "/".join(self.path.parts[-2:])

    @property
    def first(self) -> Metrics:
        """The log line before the first update; empty in logs of the users' code base."""
        head = self.metrics[0] if self.metrics else {}
        return head if "train_loss_before_first_update" in head else {}

    @property
    def deployable(self) -> Path | None:
        """The checkpoint to deploy: best.ckpt, else latest.ckpt, else None."""
        return next((self.checkpoints[name] for name in (BEST, LATEST) if name in self.checkpoints), None)

    @property
    def datasets(self) -> tuple[Path, ...]:
        """The datasets that it was trained on and that still exist."""
        if self.config is None:
            return ()
        try:
            named = OmegaConf.select(self.config, "task.dataset.zarr_path")
        except OmegaConfBaseException:
            return ()
        return tuple(Path(path) for path in dataset_paths(named) if dataset_exists(path)) if named else ()

    @property
    def updates(self) -> int:
        """Updates made."""
        return int(self.metrics[-1].get("global_step", 0)) if self.metrics else 0

    @property
    def planned_epochs(self) -> int | None:
        """Epochs that the config asks for; None if it does not say."""
        epochs = self.flat_config().get("training.num_epochs")
        return epochs if isinstance(epochs, int) else None

    def curve(self, key: str) -> Curve:
        """Returns (update, value) of one figure where it was finite."""
        return [
            (int(line["global_step"]), float(line[key]))
            for line in self.metrics
            if is_finite(line.get(key)) and "global_step" in line
        ]

    def last(self, key: str) -> float | None:
        """Returns the newest value of a figure."""
        curve = self.curve(key)
        return curve[-1][1] if curve else None

    def newest(self, keys: Iterable[str]) -> dict[str, Any]:
        """Returns the newest recorded value of each figure, as logged; None if not logged."""
        return {key: next((line[key] for line in reversed(self.metrics) if key in line), None) for key in keys}

    @property
    def tolerance(self) -> str | None:
        """The last tolerance of gripper F1, such as "1 s"; older runs counted steps. None if unknown."""
        seconds = self.last("val_gripper_tolerance_s")
        steps = self.flat_config().get("sampler.tolerance_steps")
        if seconds is not None:
            return f"{seconds:.3g} s"
        return None if steps is None else f"{steps} steps"

    @property
    def gripper_scale(self) -> str | None:
        """The scale declared for its datasets; None without a declaration, or with different ones."""
        configured = None if self.config is None else OmegaConf.select(self.config, CONFIG_KEY, default=None)
        return configured if isinstance(configured, str) else None

    def flat_config(self) -> dict[str, Any]:
        """Returns settings by dotted name, with references resolved where possible."""
        return {} if self.config is None else flat_config(self.config)


def open_run(path: str | Path) -> RunFolder:
    """Opens a run folder.

    Raises:
        RunFolderError: there is no run, or its config or log is torn.
    """
    path = Path(path)
    config_file = path / ".hydra" / "config.yaml"
    if not path.is_dir() or not (config_file.is_file() or (path / LOG_NAME).is_file()):
        raise RunFolderError(f"{path}: not a run; expected a folder with .hydra/config.yaml and {LOG_NAME}")
    return RunFolder(
        path=path,
        config=read_config(config_file) if config_file.is_file() else None,
        metrics=tuple(_read_metrics(path / LOG_NAME)),
        checkpoints={file.name: file for file in sorted((path / "checkpoints").glob("*.ckpt"))},
        logs=tuple(sorted((path / "logs").glob("inference_log_*.json"))),
        started_with=started_with(path),
        status=_read_status(path / STATUS_NAME),
        closed_loop=tuple(sorted([*path.glob("closed_loop*.json"), *path.glob("closed_loop/*.json")])),
        sampling=_read_sampling(path / SAMPLING_NAME),
    )


def read_config(path: Path) -> DictConfig:
    """Reads a run's config file, in which interpolations may only be references and sums.

    Raises:
        RunFolderError: the file is missing or is not a config.
        InterpolationError: it contains other interpolations.
    """
    try:
        config = OmegaConf.load(path)
    except (OSError, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read as a config ({error})") from error
    if not isinstance(config, DictConfig):
        raise RunFolderError(f"{path}: holds a list; expected a config")
    check_interpolations(OmegaConf.to_container(config, resolve=False), str(path))
    register_resolvers()
    return config


def _read_status(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
        numbers = [int(status[key]) for key in ("epochs", "of_epochs", "updates", "of_updates")]
        texts = [status[key] for key in ("state", "signal", "error")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path}: not as training writes it ({error!r}); remove it") from error
    if min(numbers) < 0 or not all(text is None or isinstance(text, str) for text in texts):
        raise RunFolderError(f"{path}: not as training writes it ({status}); remove it")
    return dict(status)


def _read_sampling(path: Path) -> tuple[Share, ...]:
    if not path.is_file():
        return ()
    try:
        shares = [Share(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
        for share in shares:
            str(share)  # fails unless its numbers are numbers
    except (OSError, ValueError, TypeError) as error:
        raise RunFolderError(f"{path}: not as training writes it ({error!r}); remove it") from error
    return tuple(shares)


def _read_metrics(path: Path) -> list[Metrics]:
    """Reads the complete lines of a log; the last one may have been cut short by a kill."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    result = []
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise RunFolderError(f"{path}: line {number} is not JSON ({error})") from error
        if not isinstance(entry, dict):
            raise RunFolderError(f"{path}: line {number} holds a {type(entry).__name__}; expected an object")
        result.append(_without_invented(entry))
    return result


def _without_invented(line: Metrics) -> Metrics:
    """Returns the line without the F1 of 1 that older programs wrote if no gripper event was recorded."""
    if line.get("val_gripper_events_recorded") != 0:
        return line
    return {key: value for key, value in line.items() if not key.startswith("val_gripper_f1")}


def motion_error(metrics: Mapping[str, Any]) -> tuple[float, str] | None:
    """Returns the held-out motion error used for ranking, and its unit; None if it was not measured.

    This is the position error in mm or, for a layout without a pose, the joint error in its own unit ("" if unknown).
    """
    units = {POSITION_ERROR: "mm", **JOINT_ERRORS}
    return next(((float(metrics[key]), unit) for key, unit in units.items() if is_finite(metrics.get(key))), None)


def ranked_by(metrics: Mapping[str, Any], key: str) -> Any:
    """Returns a metric's value for ranking epochs and checkpoints; for the position error, see `motion_error`."""
    error = motion_error(metrics) if key == POSITION_ERROR else None
    return metrics.get(key) if error is None else error[0]


def is_finite(value: Any) -> bool:
    """Whether a figure was measured and is defined."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
