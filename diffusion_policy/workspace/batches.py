"""Which windows make up which update: a function of seed and epoch, so that a run can stop and resume anywhere.

The config's batch size is that of one batch over all processes. Each process takes every world_size-th window of
it, so data order, learning-rate schedule and epoch do not depend on how many processes share the work.

Legend of shapes: B batch, T horizon, To observation steps, N recorded steps of a dataset.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion_policy.cpu import usable_cores
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.interruption import block_stop_signals_in_children, stop_only_with_parent

logger = logging.getLogger(__name__)

TensorTree = dict[str, Any]


def derived_seed(seed: int, *stream: int) -> int:
    """An independent 63-bit seed for one stream (such as purpose, epoch), derived by NumPy's SeedSequence."""
    return int(np.random.SeedSequence((seed, *stream)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class EpochOrder:
    """The batches of every epoch as lists of window indices.

    Args:
        n_windows: windows of the dataset.
        batch_size: windows of one batch over all processes; the last batch of an epoch holds what is left.
        seed: of the order; epoch e is shuffled by its own generator, derived from (seed, e).
        shuffle: False keeps the dataset's order.
        max_batches: most batches per epoch; None: no limit.
        weights: (W,) how often each window is drawn, with replacement; None: each once per epoch.
    """

    def __init__(
        self,
        n_windows: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        max_batches: int | None = None,
        weights: NDArray[np.float64] | None = None,
    ):
        if n_windows < 1:
            raise TrainingError("the dataset has no window to train on; record longer episodes or lower horizon")
        if batch_size < 1:
            raise TrainingError(f"batch_size is {batch_size}; expected at least 1")
        self.n_windows, self.batch_size = n_windows, batch_size
        if weights is not None and not shuffle:
            raise TrainingError("windows with weights are drawn at random; set dataloader.shuffle=True")
        self.seed, self.shuffle, self.max_batches = seed, shuffle, max_batches
        self.weights = None if weights is None else torch.from_numpy(weights)

    def __len__(self) -> int:
        n_batches = -(-self.n_windows // self.batch_size)
        return n_batches if self.max_batches is None else min(n_batches, self.max_batches)

    def settings(self) -> dict[str, Any]:
        """What determines the order."""
        return {"n_windows": self.n_windows, "batch_size": self.batch_size, "seed": self.seed, "batches": len(self)}

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of that epoch: each window once, or as drawn by weight (unless max_batches cuts it short)."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, _ORDER, epoch))
        if self.weights is not None:
            order = _drawn(self.weights, self.n_windows, generator)
        elif self.shuffle:
            order = torch.randperm(self.n_windows, generator=generator).tolist()
        else:
            order = list(range(self.n_windows))
        starts = range(0, len(self) * self.batch_size, self.batch_size)
        return [order[start : start + self.batch_size] for start in starts]


def _drawn(weights: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Numbers of windows, drawn with replacement in proportion to their weights (W,)."""
    if len(weights) <= MOST_CATEGORIES:
        return list(torch.multinomial(weights, count, replacement=True, generator=generator).tolist())
    reached = np.cumsum(weights.numpy(), dtype=np.float64)
    # Below the sum despite rounding: each draw finds a window, and none whose weight is 0.
    at = torch.rand(count, dtype=torch.float64, generator=generator).numpy() * reached[-1]
    found = np.searchsorted(reached, np.minimum(at, np.nextafter(reached[-1], 0)), side="right")
    return list(found.tolist())


# Most categories that torch.multinomial draws from.
MOST_CATEGORIES = 2**24

_ORDER = 1  # stream numbers of derived_seed
NOISE = 2
VALIDATION = 3
PROCESS = 4


@dataclass(frozen=True)
class Batch:
    """Windows on the training device.

    Attributes:
        data: {"obs": {key: (B, To, ...)}, "action": (B, T, Da)}, images uint8.
        indices: the windows of all processes that make up this batch.
        share: positions in `indices` that this process holds, in the order of `data`.
        number: of the batch in its epoch.
    """

    data: TensorTree
    indices: Sequence[int]
    share: Sequence[int]
    number: int

    @property
    def weight(self) -> float:
        """Share of the batch that this process holds; 0 if its one window only keeps the processes in step."""
        return 0.0 if self.is_filler else len(self.share) / len(self.indices)

    @property
    def is_filler(self) -> bool:
        """Whether the batch was too small to give this process its own window."""
        return len(self.share) == 0


def process_share(n_windows: int, rank: int, world_size: int) -> range:
    """Positions in a batch that belong to this process; empty if the batch has fewer windows than processes."""
    return range(rank, n_windows, world_size)


class Order(Protocol):
    """The batches of every epoch: as many in each.

    Attributes:
        n_windows: windows in an epoch; for sequences, frames.
        batch_size: windows in a batch; for sequences, rows.
        weights: (W,) how often each window is drawn; None: each once per epoch.
    """

    n_windows: int
    batch_size: int
    weights: Tensor | None

    def __len__(self) -> int:
        """Batches in an epoch."""

    def settings(self) -> dict[str, Any]:
        """What determines the order."""


class Batches(Protocol):
    """Yields the batches of an epoch, from a position in it."""

    @property
    def order(self) -> Order:
        """The order of its batches."""

    def epoch(self, epoch: int, first: int = 0, end: int | None = None) -> Iterator[Batch]:
        """The batches of that epoch from number `first` on, up to number `end`."""

    def close(self) -> None:
        """End the worker processes, if any; nothing can be read afterwards."""


class WindowDataset(Protocol):
    """What batches are read from."""

    def __len__(self) -> int:
        """Windows."""

    def get_batch(self, indices: Sequence[int]) -> TensorTree:
        """Several windows at once, stacked."""


class Positioned(torch.utils.data.Sampler[Any]):
    """What the loader's workers read: the contents of the batches of one epoch, from one position on."""

    def __init__(self) -> None:
        self.lists: Sequence[Any] = []

    def __iter__(self) -> Iterator[Any]:
        return iter(self.lists)

    def __len__(self) -> int:
        return len(self.lists)


@dataclass(frozen=True)
class _WholeBatches(Dataset[TensorTree]):
    """A dataset whose items are batches: observations are prepared once per batch, not once per window."""

    windows: WindowDataset

    def __getitem__(self, indices: Sequence[int]) -> TensorTree:
        return self.windows.get_batch(indices)


@dataclass(frozen=True)
class _Worker:
    """The initialization of a loader worker.

    Attributes:
        parent: id of the process that starts it.
    """

    parent: int

    def __call__(self, number: int) -> None:
        stop_only_with_parent(self.parent)


def make_loader(
    dataset: Dataset[TensorTree], position: Positioned, settings: DictConfig, device: torch.device
) -> DataLoader[TensorTree]:
    """A loader of whole batches, read by the number of workers in `settings`, but at most one per core."""
    workers = min(int(settings.num_workers), usable_cores())
    if workers < settings.num_workers:
        logger.debug("%d loader workers instead of %d: as many as there are cores", workers, settings.num_workers)
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=position,
        num_workers=workers,
        pin_memory=bool(settings.pin_memory) and device.type == "cuda",
        persistent_workers=bool(settings.persistent_workers) and workers > 0,
        worker_init_fn=_Worker(os.getpid()) if workers else None,
        # Without its own generator the loader would draw from training's.
        generator=torch.Generator().manual_seed(0),
    )


class LoaderBatches:
    """Batches read by a DataLoader; for datasets that do not fit into memory.

    The number of workers changes only how fast batches come.
    """

    def __init__(
        self,
        dataset: WindowDataset,
        settings: DictConfig,
        order: EpochOrder,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.order, self.device, self.rank, self.world_size = order, device, rank, world_size
        self._position = Positioned()
        self._loader = make_loader(_WholeBatches(dataset), self._position, settings, device)

    def epoch(self, epoch: int, first: int = 0, end: int | None = None) -> Iterator[Batch]:
        """The batches of that epoch from number `first` on, up to number `end`, on the device."""
        batches = self.order.batches(epoch)[first:end]
        shares = [process_share(len(indices), self.rank, self.world_size) for indices in batches]
        self._position.lists = [
            [indices[i] for i in share] or indices[:1] for indices, share in zip(batches, shares, strict=True)
        ]
        with block_stop_signals_in_children():
            read = iter(self._loader)
        loaded = zip(batches, shares, read, strict=True)
        for number, (indices, share, data) in enumerate(loaded, start=first):
            yield Batch(to_device(data, self.device), indices, share, number)

    def close(self) -> None:
        """End the worker processes; nothing can be read afterwards.

        Workers that garbage collection finds later get no request to end: it waits five seconds for each and kills it.
        """
        del self._loader


class CachedBatches:
    """Batches gathered from tensors that hold the whole dataset, in memory or on the GPU.

    Args:
        steps: {"obs": {key: (N, ...)}, "action": (N, Da)}; each recorded step once.
        obs_rows: (n_windows, To) numbers of the observed steps of each window.
        action_rows: (n_windows, T) numbers of the action steps of each window.
        order: batches of the epochs.
        device: where batches are needed; `steps` may be elsewhere.
    """

    def __init__(
        self,
        steps: TensorTree,
        obs_rows: Tensor,
        action_rows: Tensor,
        order: EpochOrder,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.order, self.device, self.rank, self.world_size = order, device, rank, world_size
        self._steps = steps
        home = steps["action"].device
        self._obs_rows, self._action_rows = obs_rows.to(home), action_rows.to(home)

    def epoch(self, epoch: int, first: int = 0, end: int | None = None) -> Iterator[Batch]:
        """The batches of that epoch from number `first` on, up to number `end`, on the device."""
        for number, indices in enumerate(self.order.batches(epoch)[first:end], start=first):
            share = process_share(len(indices), self.rank, self.world_size)
            own = torch.tensor([indices[i] for i in share] or indices[:1]).to(self._obs_rows.device)
            yield Batch(to_device(self._gather(own), self.device), indices, share, number)

    def close(self) -> None:
        """Nothing ends: this process reads."""

    def _gather(self, windows: Tensor) -> TensorTree:
        obs_rows, action_rows = self._obs_rows[windows], self._action_rows[windows]
        obs = {key: steps[obs_rows] for key, steps in self._steps["obs"].items()}
        return {"obs": obs, "action": self._steps["action"][action_rows]}


def to_device(data: TensorTree, device: torch.device) -> TensorTree:
    """A nested batch on the device; copies from pinned memory do not block."""
    return {
        key: to_device(value, device) if isinstance(value, dict) else value.to(device, non_blocking=True)
        for key, value in data.items()
    }
