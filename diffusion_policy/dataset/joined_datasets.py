"""Several datasets concatenated into one: their episodes and rows of numbers (for frames see `sources.Frames`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.gripper_columns import ScaleSetting, scale_of_each
from diffusion_policy.dataset.replay_buffer import DatasetError, ReplayBuffer


def dataset_paths(zarr_path: Any) -> list[str]:
    """The datasets that a config or a caller names: one, or a list.

    Raises:
        DatasetError: the list is empty.
    """
    paths = [str(zarr_path)] if isinstance(zarr_path, str | Path) else [str(path) for path in zarr_path]
    if not paths:
        raise DatasetError("zarr_path is empty; expected a dataset or several")
    return paths


class JoinedDatasets:
    """One dataset, or several of one kind as one.

    Attributes:
        where: their paths.
        episode_ends: (E,) int64, exclusive end of every episode, counted over all of them.
    """

    def __init__(self, zarr_path: str | Path | Sequence[str | Path], gripper_scale: ScaleSetting = None) -> None:
        """Open them; ``gripper_scale`` as in `CogActImageDataset`.

        Raises:
            DatasetError: there is none, or one of them is not a dataset.
        """
        paths = dataset_paths(zarr_path)
        scales = scale_of_each(gripper_scale, len(paths))
        self._buffers = [
            ReplayBuffer.open(path, gripper_scale=scale) for path, scale in zip(paths, scales, strict=True)
        ]
        self.where = ", ".join(buffer.where for buffer in self._buffers)
        lengths = [np.diff(buffer.episode_ends, prepend=0) for buffer in self._buffers]
        self.episode_ends: NDArray[np.int64] = np.cumsum(np.concatenate(lengths))

    def __contains__(self, key: str) -> bool:
        return all(key in buffer for buffer in self._buffers)

    @property
    def buffers(self) -> tuple[ReplayBuffer, ...]:
        """The joined datasets."""
        return tuple(self._buffers)

    @property
    def n_steps(self) -> int:
        """Steps of all episodes."""
        return sum(buffer.n_steps for buffer in self._buffers)

    @property
    def n_episodes(self) -> int:
        """E, the number of episodes."""
        return len(self.episode_ends)

    @property
    def semantics(self) -> Mapping[str, Any] | None:
        """What the action's numbers mean as `rows` gives them; None in files that do not declare it."""
        return next((buffer.semantics for buffer in self._buffers if buffer.semantics is not None), None)

    @property
    def needs_gripper_scale(self) -> bool:
        """Whether a gripper's scale is unknown in one of them."""
        return any(scales.unknown for buffer in self._buffers for scales in buffer.scales_by_gripper.values())

    def names(self, key: str) -> tuple[str, ...]:
        """Names of the dimensions of a vector array (N, D), as the first dataset orders them."""
        return self._buffers[0].names(key)

    def rows(self, key: str) -> NDArray[Any]:
        """All rows (N, ...) of an array of numbers; the columns of a vector in the first dataset's order.

        Raises:
            DatasetError: a dataset lacks the array, or a dimension of it.
            SpecError: it holds a gripper whose scale is unknown.
        """
        if self._buffers[0][key].ndim != 2:
            return np.concatenate([buffer.read(key) for buffer in self._buffers])
        names = self.names(key)
        return np.concatenate([buffer.columns(key, names) for buffer in self._buffers])
