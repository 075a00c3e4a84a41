"""Sequences for policies with memory: row r of a batch continues where row r of the previous batch ended.

    row 0   episode 4 ......|episode 7 ....|episode 0 ..........|padding
    row 1   episode 2 ................|episode 5 .........|episode 1 ....
            |  batch 0  |  batch 1  |  batch 2  |  ...      `horizon` frames each

Whole episodes are dealt to rows, the longest first and always to the shortest row, so rows end nearly together and
every epoch has the same number of batches; each epoch shuffles the order of the episodes in each row. Each frame occurs
once per epoch. `first` is true where an episode starts, `valid` where there is a frame and not padding.

Legend of shapes: R rows, T frames of a chunk, N recorded steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import Dataset

from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.dataset.windows import IndexArray, Mask
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.batches import Batch, Positioned, TensorTree, derived_seed, make_loader, to_device
from diffusion_policy.workspace.interruption import block_stop_signals_in_children

_SEQUENCES = 5  # stream number of derived_seed


class Chunk(NamedTuple):
    """What one batch reads.

    Attributes:
        steps: (R, T) recorded steps; beyond a row's end, its last one.
        first: (R, T) bool, where an episode starts.
        valid: (R, T) bool, where `steps` is not padding.
    """

    steps: IndexArray
    first: Mask
    valid: Mask


class SequenceOrder:
    """The chunks of every epoch.

    Args:
        episodes: (start, exclusive end) of each.
        rows: in a batch; never more than there are episodes.
        horizon: T.
        seed: of the order; epoch e is shuffled by its own generator, derived from (seed, e).
        shuffle: False keeps the order of the episodes in each row.
        max_batches: most batches per epoch; None: no limit.
    """

    weights: Tensor | None = None

    def __init__(
        self,
        episodes: Sequence[tuple[int, int]],
        rows: int,
        horizon: int,
        *,
        seed: int,
        shuffle: bool,
        max_batches: int | None = None,
    ):
        if rows < 1 or horizon < 1:
            raise TrainingError(f"batch_size is {rows} and horizon {horizon}; expected at least 1")
        if not episodes:
            raise TrainingError("the dataset has no episode to train on")
        self.n_windows = sum(end - start for start, end in episodes)
        self.batch_size, self.horizon = min(rows, len(episodes)), horizon
        self.seed, self.shuffle = seed, shuffle
        self._rows = _dealt(episodes, self.batch_size)
        longest = max(sum(end - start for start, end in row) for row in self._rows)
        whole = -(-longest // horizon)
        self._batches = whole if max_batches is None else min(whole, max_batches)

    def __len__(self) -> int:
        return self._batches

    def settings(self) -> dict[str, int]:
        """What determines the order."""
        return {
            "n_windows": self.n_windows, "batch_size": self.batch_size, "horizon": self.horizon, "seed": self.seed,
            "batches": len(self),
        }  # fmt: skip

    def chunks(self, epoch: int) -> list[Chunk]:
        """All batches of that epoch."""
        random = np.random.default_rng(derived_seed(self.seed, _SEQUENCES, epoch))
        length = len(self) * self.horizon
        streams = []
        for row in self._rows:
            order = random.permutation(len(row)) if self.shuffle else np.arange(len(row))
            streams.append(_stream([row[number] for number in order], length))
        steps, first, valid = (np.stack(part) for part in zip(*streams, strict=True))
        cuts = [slice(start, start + self.horizon) for start in range(0, length, self.horizon)]
        return [Chunk(steps[:, cut], first[:, cut], valid[:, cut]) for cut in cuts]


def _dealt(episodes: Sequence[tuple[int, int]], rows: int) -> list[list[tuple[int, int]]]:
    """Episodes by row, in order within each row."""
    dealt: list[list[tuple[int, int]]] = [[] for _ in range(rows)]
    lengths = np.zeros(rows, dtype=np.int64)
    for start, end in sorted(episodes, key=lambda episode: episode[0] - episode[1]):
        shortest = int(lengths.argmin())
        dealt[shortest].append((start, end))
        lengths[shortest] += end - start
    return [sorted(row) for row in dealt]


def _stream(row: Sequence[tuple[int, int]], length: int) -> tuple[IndexArray, Mask, Mask]:
    """(length,) steps of a row's episodes in succession, where episodes start, and what is not padding."""
    steps = np.concatenate([np.arange(start, end) for start, end in row])[:length]
    starts = np.cumsum([0, *(end - start for start, end in row[:-1])])
    first = np.zeros(length, dtype=bool)
    first[starts[starts < length]] = True
    padding = length - len(steps)
    return np.pad(steps, (0, padding), mode="edge"), first, np.arange(length) < len(steps)


@dataclass(frozen=True)
class _Chunks(Dataset[TensorTree]):
    """A dataset whose items are the data of chunks.

    Attributes:
        read: recorded steps (R, T) -> {"obs": {key: (R, T, ...)}, "action": (R, T, Da)}.
    """

    read: Callable[[IndexArray], TensorTree]

    def __getitem__(self, chunk: Chunk) -> TensorTree:
        masks = {"first": torch.from_numpy(chunk.first), "valid": torch.from_numpy(chunk.valid)}
        return {**self.read(chunk.steps), **masks}


class SequenceBatches:
    """Chunks on the training device; `Batch.indices` are the recorded steps that count.

    Args:
        read: see `_Chunks`; from a dataset, or from steps kept in memory.
        settings: of the loader.
        order: of the chunks.
        device: where batches are needed.
    """

    def __init__(
        self, read: Callable[[IndexArray], TensorTree], settings: DictConfig, order: SequenceOrder, device: torch.device
    ):
        self.order, self.device = order, device
        self._position = Positioned()
        self._loader = make_loader(_Chunks(read), self._position, settings, device)

    def epoch(self, epoch: int, first: int = 0, end: int | None = None) -> Iterator[Batch]:
        """The batches of that epoch from number `first` on, up to number `end`."""
        chunks = self.order.chunks(epoch)[first:end]
        self._position.lists = chunks
        with block_stop_signals_in_children():
            read = iter(self._loader)
        for number, (chunk, data) in enumerate(zip(chunks, read, strict=True), start=first):
            steps = chunk.steps[chunk.valid].tolist()
            yield Batch(to_device(data, self.device), steps, range(len(steps)), number)

    def close(self) -> None:
        """End the worker processes, as `LoaderBatches.close`."""
        del self._loader


def kept_steps(steps: TensorTree) -> Callable[[IndexArray], TensorTree]:
    """Reads steps (R, T) out of tensors that hold each recorded step once (`data.read_all_steps`)."""

    def read(wanted: IndexArray) -> TensorTree:
        rows = torch.from_numpy(wanted).to(steps["action"].device)
        return {"obs": {key: kept[rows] for key, kept in steps["obs"].items()}, "action": steps["action"][rows]}

    return read


def spans(dataset: CogActImageDataset, episodes: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(start, exclusive end) of the episodes (E,) of a dataset."""
    starts = np.concatenate([[0], dataset.episode_ends[:-1]])
    return [(int(starts[number]), int(dataset.episode_ends[number])) for number in np.flatnonzero(episodes)]
