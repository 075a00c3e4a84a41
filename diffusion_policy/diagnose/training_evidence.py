"""Evidence from a config, gathered before it is run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_policy.dataset.joined_datasets import dataset_paths
from diffusion_policy.dataset.opening import dataset_exists
from diffusion_policy.diagnose import ReportError
from diffusion_policy.errors import PathError
from diffusion_policy.hub import local_copy
from diffusion_policy.run_folder.reading import RunFolder
from diffusion_policy.run_folder.resuming import command_line
from diffusion_policy.shape_meta import find_step_spec
from diffusion_policy.spec import StepSpec
from diffusion_policy.training_config import RATES, rate_setting


@dataclass(frozen=True)
class ConfigEvidence:
    """The settings that runs fail on.

    Attributes:
        name: name of the config with its overrides, or of the run folder.
        spec: what the policy reads and predicts.
        dataset: path of the dataset; None if the config names none.
        dataset_exists: whether that path exists.
        pretrained: path of the checkpoint to start from, or None.
        pretrained_exists: whether it exists.
        load_weights: whether it is used.
        learning_rate, warm_up, epochs, batch_size, steps_of_epoch: settings of training; None where the config gives
            none.
        val_ratio: share of the episodes held out.
        device: the device to train on.
        device_exists: whether this machine has it.
        finished: whether it is the config of a past run, whose files may have moved since.
        started_with: words of the command line that trains it.
        rate_setting: the entry that holds the learning rate.
    """

    name: str
    spec: StepSpec | None
    dataset: str | None
    dataset_exists: bool
    pretrained: str | None
    pretrained_exists: bool
    load_weights: bool
    learning_rate: float | None
    warm_up: int | None
    epochs: int | None
    batch_size: int | None
    steps_of_epoch: int | None
    val_ratio: float
    device: str
    device_exists: bool
    finished: bool = False
    started_with: tuple[str, ...] = ()
    rate_setting: str = RATES[0]

    def again(self, *changes: str) -> str:
        """Returns the command line that trains this config with changed settings."""
        return command_line(self.started_with, *changes)

    def updates(self, n_windows: int | None) -> int | None:
        """Returns the number of updates that the run makes on this many windows; None if unknown."""
        if not self.epochs or not self.batch_size:
            return None
        of_epoch = None if n_windows is None else math.ceil(n_windows / self.batch_size)
        known = [steps for steps in (of_epoch, self.steps_of_epoch) if steps is not None]
        return self.epochs * min(known) if known else None


def look_at_config(
    config: DictConfig, name: str, *, finished: bool = False, started_with: tuple[str, ...] = ()
) -> ConfigEvidence:
    """Gathers the evidence.

    Raises:
        ReportError: an entry cannot be resolved.
        SpecError: shape_meta is wrong, or cannot be resolved.
    """
    named = _select(config, "task.dataset.zarr_path")
    datasets = dataset_paths(named) if named else []
    pretrained = _text(_select(config, "pretrained.path"))
    device = str(_select(config, "training.device") or "cpu")
    return ConfigEvidence(
        name=name,
        spec=find_step_spec(config),
        dataset=", ".join(datasets) or None,
        dataset_exists=bool(datasets) and all(dataset_exists(path) for path in datasets),
        pretrained=pretrained,
        pretrained_exists=pretrained is not None and _is_there(pretrained),
        load_weights=_select(config, "pretrained.load_weights") is not False,
        learning_rate=_number(_select(config, rate_setting(config))),
        rate_setting=rate_setting(config),
        warm_up=_whole(_select(config, "training.lr_warmup_steps")),
        epochs=_whole(_select(config, "training.num_epochs")),
        batch_size=_whole(_select(config, "dataloader.batch_size")),
        steps_of_epoch=_whole(_select(config, "training.max_train_steps")),
        val_ratio=_number(_select(config, "task.dataset.val_ratio")) or 0.0,
        device=device,
        device_exists=not device.startswith("cuda") or torch.cuda.is_available(),
        finished=finished,
        started_with=started_with,
    )


def config_of_run(run: RunFolder) -> ConfigEvidence | None:
    """Returns the evidence from a run's config; None if it was not kept."""
    if run.config is None:
        return None
    return look_at_config(run.config, run.name, finished=True, started_with=run.started_with)


def _is_there(checkpoint: str) -> bool:
    """Whether a checkpoint exists: as a file, or in a repository that can be read."""
    try:
        return local_copy(checkpoint).is_file()
    except PathError:
        return False


def _select(config: DictConfig, entry: str) -> Any:
    try:
        return OmegaConf.select(config, entry)
    except OmegaConfBaseException as error:
        raise ReportError(f"the config's {entry} cannot be resolved: {str(error).splitlines()[0]}") from error


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
