"""Opens, checks and splits the dataset of a run, and builds its batches."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from torch import Tensor

from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.dataset.content_hash import content_sha256
from diffusion_policy.dataset.sampling import Share
from diffusion_policy.dataset.split import EpisodeIdentity, Split
from diffusion_policy.dataset.windows import Mask
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.model.normalizer import LinearNormalizer
from diffusion_policy.run_folder import SAMPLING_NAME
from diffusion_policy.shape_meta import trained_spec_of
from diffusion_policy.storage import write_json
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.batches import Batches, CachedBatches, EpochOrder, LoaderBatches, TensorTree
from diffusion_policy.workspace.episode_roles import History, divide_episodes
from diffusion_policy.workspace.processes import Processes
from diffusion_policy.workspace.sequence_batches import SequenceBatches, SequenceOrder, kept_steps, spans

logger = logging.getLogger(__name__)

CACHES = ("none", "memory", "device")
_READ_AT_ONCE = 64
_SHARES_LOGGED = 20


@dataclass(frozen=True)
class Data:
    """Training and validation data of a run.

    Attributes:
        dataset: training windows.
        held_out: validation windows; may be empty.
        train: batches of the training windows, shuffled.
        validation: batches of the validation windows in their order; None if there are none.
        normalizer: fitted to the dataset.
        split: which episodes are trained on and held out, for checkpoints.
        identities: (E,) of every episode of the dataset.
        in_sequences: whether batches are chunks of episodes in order, with recorded steps as indices.
    """

    dataset: CogActImageDataset
    held_out: CogActImageDataset
    train: Batches
    validation: Batches | None
    normalizer: LinearNormalizer
    split: Split
    identities: tuple[EpisodeIdentity, ...]
    in_sequences: bool = False

    def close(self) -> None:
        """End the worker processes that read batches; no batch can be read afterwards."""
        for batches in (self.train, self.validation):
            if batches is not None:
                batches.close()

    def figures(self) -> dict[str, Any]:
        """For the first line of metrics: how many episodes are trained on and held out, which the latter are, and the
        addresses of datasets from a hub.
        """
        keys = sorted(identity.key for identity in self.split.held_out)
        digest = content_sha256(keys) if keys else None
        counts = {"episodes_trained": len(self.split.trained), "episodes_held_out": len(keys)}
        addresses = {"dataset_addresses": list(self.dataset.addresses)} if self.dataset.addresses else {}
        return {**counts, "held_out_sha256": digest, **addresses}

    def shares(self) -> tuple[Share, ...]:
        """The share of each dataset or task in an epoch; empty if there is only one, without a weight."""
        order = self.train.order
        found = self.dataset.shares(min(order.n_windows, len(order) * order.batch_size))
        return found if len(found) > 1 or order.weights is not None else ()

    def report_shares(self, folder: Path) -> None:
        """Log the share of each dataset or task in an epoch, and write it into the run folder."""
        shares = self.shares()
        for share in shares[:_SHARES_LOGGED]:
            logger.info("%s", share)
        if len(shares) > _SHARES_LOGGED:
            logger.info("%d more are in %s", len(shares) - _SHARES_LOGGED, folder / SAMPLING_NAME)
        for share in shares:
            if share.weight and not share.windows:
                logger.warning(
                    "%s %s has weight %g but no window to train on: the others get its share",
                    share.by, share.name, share.weight,
                )  # fmt: skip
        if shares:
            write_json(folder / SAMPLING_NAME, [asdict(share) for share in shares])

    def order(self) -> dict[str, Any]:
        """The settings that determine the order of the data."""
        return self.train.order.settings()

    def episodes_of(self, windows: list[int]) -> list[int]:
        """Numbers of the episodes that training windows, or steps of sequences, come from, each once."""
        ends, asked = torch.from_numpy(self.dataset.episode_ends), torch.tensor(windows, dtype=torch.long)
        if self.in_sequences:
            return sorted(set(torch.searchsorted(ends, asked, right=True).tolist()))
        return sorted(set(torch.searchsorted(ends, torch.from_numpy(self.dataset.windows.high)[asked]).tolist()))

    def batch_of(self, windows: list[int]) -> TensorTree:
        """The data of training windows, or of steps of sequences."""
        return (
            self.dataset.get_steps(np.array(windows)[:, None]) if self.in_sequences else self.dataset.get_batch(windows)
        )


def open_data(
    cfg: DictConfig, processes: Processes, history: History | None = None, *, in_sequences: bool = False
) -> Data:
    """Open the dataset of `task.dataset`.

    Args:
        cfg: of the run.
        processes: that share the work.
        history: episodes known to the checkpoint that the run starts from; None: none.
        in_sequences: whether episodes are read in order, for a policy with memory.

    Raises:
        DatasetError, SpecError: it is missing, lacks something, or its numbers mean something else.
        TrainingError: it does not fit the task, or the settings of loading are wrong.
    """
    spec = trained_spec_of(cfg)
    if cfg.training.cache not in CACHES:
        raise TrainingError(f"training.cache is {cfg.training.cache!r}; expected one of {', '.join(CACHES)}")
    dataset = instantiate(cfg.task.dataset, "task.dataset")
    if spec.relative and dataset.n_obs_steps != cfg.policy.n_obs_steps:
        raise TrainingError(
            f"relative actions are relative to the newest observation, step {cfg.policy.n_obs_steps} of a window; the "
            f"dataset gives {dataset.n_obs_steps}; leave dataset_obs_steps at ${{n_obs_steps}} (observations as a "
            "condition), or set task.dataset.relative_actions=false"
        )
    split, identities = divide_episodes(dataset, cfg, history or History("scratch"))
    held_out = dataset.get_validation_dataset()
    logger.info(
        "dataset %s: %d training windows, %d held out, of %d episodes",
        cfg.task.dataset.zarr_path, len(dataset), len(held_out), len(dataset.episode_ends),
    )  # fmt: skip
    train: Batches
    validation: Batches | None
    if in_sequences:
        train, validation = _sequences(cfg, processes, dataset)
    else:
        train, validation = _windows(cfg, processes, dataset, held_out)
    return Data(dataset, held_out, train, validation, dataset.get_normalizer(), split, identities, in_sequences)


def _windows(
    cfg: DictConfig, processes: Processes, dataset: CogActImageDataset, held_out: CogActImageDataset
) -> tuple[Batches, Batches | None]:
    """Batches of training windows, shuffled, and of held-out ones, in order."""
    settings = cfg.training
    train_order = EpochOrder(
        len(dataset),
        cfg.dataloader.batch_size,
        seed=settings.seed,
        shuffle=cfg.dataloader.shuffle,
        max_batches=settings.max_train_steps,
        weights=dataset.sample_weights,
    )
    validation_order = None
    if len(held_out):
        validation_order = EpochOrder(
            len(held_out), cfg.val_dataloader.batch_size, seed=0, shuffle=False, max_batches=settings.max_val_steps
        )
    return _batches(cfg, processes, dataset, held_out, train_order, validation_order)


def _sequences(
    cfg: DictConfig, processes: Processes, dataset: CogActImageDataset
) -> tuple[SequenceBatches, SequenceBatches | None]:
    """Chunks of the training episodes, and of the held-out ones."""
    if processes.world_size > 1:
        raise TrainingError(
            f"{processes.world_size} processes: a policy with memory is trained by one; start one process"
        )
    if dataset.sample_weights is not None:
        raise TrainingError("task.dataset.weights draws windows, but sequences are read once each: set it to null")
    device, home = processes.device, processes.device if cfg.training.cache == "device" else torch.device("cpu")
    read = dataset.get_steps if cfg.training.cache == "none" else kept_steps(read_all_steps(cfg, home))

    def batches(episodes: Mask, loader: DictConfig, most: int | None, seed: int) -> SequenceBatches | None:
        found = spans(dataset, episodes)
        if not found:
            return None
        order = SequenceOrder(
            found, loader.batch_size, cfg.horizon, seed=seed, shuffle=bool(loader.shuffle), max_batches=most
        )
        return SequenceBatches(read, loader, order, device)

    settings = cfg.training
    train = batches(dataset.train_episodes, cfg.dataloader, settings.max_train_steps, settings.seed)
    assert train is not None  # the dataset refuses to have no window
    return train, batches(dataset.validation_episodes, cfg.val_dataloader, settings.max_val_steps, 0)


def instantiate(settings: DictConfig, where: str, **more: Any) -> Any:
    """Instantiate the class of a config section; a wrong option raises a TrainingError.

    Raises:
        TrainingError: the class does not exist or does not have that option.
    """
    if "_target_" not in settings:
        raise TrainingError(f"{where} has no _target_, the class to build; it has {', '.join(map(str, settings))}")
    try:
        return hydra.utils.instantiate(settings, **more)
    except HydraException as error:
        cause = error.__cause__
        if isinstance(cause, WorkspaceError):
            raise cause from error
        raise TrainingError(f"{where} cannot be built: {cause or error}") from error


def _batches(
    cfg: DictConfig,
    processes: Processes,
    dataset: CogActImageDataset,
    held_out: CogActImageDataset,
    train_order: EpochOrder,
    validation_order: EpochOrder | None,
) -> tuple[Batches, Batches | None]:
    device, rank, world_size = processes.device, processes.rank, processes.world_size
    if cfg.training.cache == "none":
        train: Batches = LoaderBatches(dataset, cfg.dataloader, train_order, device, rank, world_size)
        if validation_order is None:
            return train, None
        return train, LoaderBatches(held_out, cfg.val_dataloader, validation_order, device, rank, world_size)
    home = processes.device if cfg.training.cache == "device" else torch.device("cpu")
    steps = read_all_steps(cfg, home)
    train = CachedBatches(*_cached(dataset, steps, home), train_order, device, rank, world_size)
    if validation_order is None:
        return train, None
    return train, CachedBatches(*_cached(held_out, steps, home), validation_order, device, rank, world_size)


def _cached(dataset: CogActImageDataset, steps: TensorTree, home: torch.device) -> tuple[TensorTree, Tensor, Tensor]:
    """Cached steps, and the rows that each window observes and acts in; relative actions are kept per window."""
    observed, acted = window_rows(dataset)
    if not dataset.relative_actions:
        return steps, observed, acted
    actions = dataset.window_actions().to(home)
    rows = torch.arange(acted.numel()).reshape(acted.shape)
    return {"obs": steps["obs"], "action": actions.flatten(0, 1)}, observed, rows


def read_all_steps(cfg: DictConfig, home: torch.device) -> TensorTree:
    """Every recorded step once, {"obs": {key: (N, ...)}, "action": (N, Da)}, in memory or on the device.

    Read as windows of one step, so that the observations take the same path as those of any window.
    """
    single: CogActImageDataset = instantiate(
        cfg.task.dataset, "task.dataset", horizon=1, pad_before=0, pad_after=0, n_obs_steps=1, n_latency_steps=0,
        val_ratio=0.0, max_train_episodes=None, only_episodes=None, exclude_episodes=(),
    )  # fmt: skip
    first = single.get_batch([0])
    steps: TensorTree = {
        "obs": {key: _allocate(value, len(single), home) for key, value in first["obs"].items()},
        "action": _allocate(first["action"], len(single), home),
    }
    for start in range(0, len(single), _READ_AT_ONCE):
        rows = range(start, min(start + _READ_AT_ONCE, len(single)))
        part = single.get_batch(rows)
        steps["action"][rows.start : rows.stop] = part["action"][:, 0].to(home)
        for key, value in part["obs"].items():
            steps["obs"][key][rows.start : rows.stop] = value[:, 0].to(home)
    size = sum(value.numel() * value.element_size() for value in (*steps["obs"].values(), steps["action"]))
    logger.info("cached %d steps, %.2f GiB, on %s", len(single), size / 2**30, home)
    return steps


def _allocate(example: Tensor, n_steps: int, home: torch.device) -> Tensor:
    return torch.empty((n_steps, *example.shape[2:]), dtype=example.dtype, device=home)


def window_rows(dataset: CogActImageDataset) -> tuple[Tensor, Tensor]:
    """(W, To) and (W, T): numbers of the steps that each window observes and acts in."""
    every = torch.arange(len(dataset)).numpy()
    observed = dataset.windows.steps(every, dataset.n_obs_steps)
    acted = dataset.windows.steps(every)[:, dataset.n_latency_steps :]
    return torch.from_numpy(observed), torch.from_numpy(acted)
