"""What training reads: windows of converted datasets, as batches of tensors.

    window    |<------------------- horizon + n_latency_steps ------------------->|
    obs       o o ...                    the first n_obs_steps
    action    . . ... a a a a a a a a    after the first n_latency_steps

Observations go through `spec.policy_observation`, like those that a robot sends; images stay uint8.

Legend: E episodes, W windows, B batch, To observation steps, T horizon, Da action dimensions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_policy.dataset.gripper_columns import ScaleSetting, scale_of_each
from diffusion_policy.dataset.joined_datasets import dataset_paths
from diffusion_policy.dataset.observations import prepare
from diffusion_policy.dataset.replay_buffer import ACTION_KEY, DatasetError
from diffusion_policy.dataset.sampling import Share, read_sampling
from diffusion_policy.dataset.sources import Source, open_source
from diffusion_policy.dataset.window_actions import WindowActions, with_differences
from diffusion_policy.dataset.windows import IndexArray, Mask, Windows, cut_windows, thin_episodes, validation_episodes
from diffusion_policy.hub import address_of
from diffusion_policy.model.normalizer import (
    LinearNormalizer,
    SingleFieldLinearNormalizer,
    get_image_range_normalizer,
)
from diffusion_policy.spec import SpecError, StepSpec, StepTransform, read_shape_meta

Sample = dict[str, Any]


class CogActImageDataset(torch.utils.data.Dataset[Sample]):
    """Windows of the training episodes of one or several datasets on disk, checked against `shape_meta`.

    Args:
        shape_meta: keys, shapes and (optionally) names of what the policy reads and predicts.
        zarr_path: the dataset, or several that are joined.
        horizon: T, steps in a window.
        pad_before: most steps by which a window may begin before its episode.
        pad_after: most steps by which it may end after it.
        n_obs_steps: To, how many of a window's observations are returned; all by default.
        n_latency_steps: how many steps the action lags behind the observation.
        seed: of the validation split and of thinning.
        val_ratio: share of each dataset's episodes that is held out.
        max_train_episodes: most training episodes per dataset, drawn at random.
        cache: where prepared observations are kept: none, memory, mmap or device (see `observations`).
        device: of cache: device.
        weights: share of the draws of each dataset (a list) or task (a mapping; "others" for those not named); by
            number of windows if not given (see `sampling`).
        only_episodes: names ("episode_0066") of the episodes to use; all by default.
        exclude_episodes: names of episodes to leave out. Neither filter changes the validation split.
        gripper_scale: the stored scale of a gripper that is not 0 (closed) to 1 (open) (`gripper_scale`): one name, or
            one or None for each dataset; it is converted.
        rotation: representation that quaternions of actions and observed poses are converted to: rotation_vector,
            rotation_6d_rows, rotation_6d_columns, or quaternion; None: everything is as recorded.
        relative_actions: every step of a window's actions is relative to its newest observed pose; grippers are not.
            Both must match `shape_meta.action` of the policy (``rotation``, ``relative``).
        action_differences: actions are the differences of an episode's successive recorded commands, column by column,
            the first zero. Their names must say so: names of positions and rotations are refused.
        names_from_shape_meta: arrays without names take those of shape_meta, column by column.

    Attributes:
        action_differences: as given.
        spec: one step, from shape_meta, as the policy sees it (``spec.robot``: as recorded).
        episode_ends: (E,) int64, exclusive end of every episode, over all datasets.
        episode_names: (E,) as recorded.
        semantics: what the action's numbers mean when read; None for files that do not say.
        gripper_scale: names of the scales that a gripper was converted from; empty if it is stored as 0..1.
        windows: those of the episodes in use.
        train_episodes: (E,) bool.
        validation_episodes: (E,) bool.
        sample_weights: (W,) float64, how often to draw each window; None if all count equally.

    Raises:
        DatasetError: no dataset, a missing key or dimension, another image size, an unknown episode, not enough memory
            or disk for the cache, or no window fits.
        SpecError: shape_meta is wrong, or the dataset's numbers mean something else.
    """

    def __init__(
        self,
        shape_meta: Mapping[str, Any],
        zarr_path: str | Path | Sequence[str | Path],
        horizon: int = 1,
        pad_before: int = 0,
        pad_after: int = 0,
        n_obs_steps: int | None = None,
        n_latency_steps: int = 0,
        seed: int = 42,
        val_ratio: float = 0.0,
        max_train_episodes: int | None = None,
        cache: str = "none",
        device: str = "cuda",
        weights: Sequence[float] | Mapping[str, float] | None = None,
        only_episodes: Sequence[str] | None = None,
        exclude_episodes: Sequence[str] = (),
        gripper_scale: ScaleSetting = None,
        rotation: str | None = None,
        relative_actions: bool = False,
        action_differences: bool = False,
        names_from_shape_meta: bool = False,
    ) -> None:
        self.spec = read_shape_meta(shape_meta)
        _check_conversions(self.spec, rotation, relative_actions)
        transform = StepTransform(self.spec)
        self.n_obs_steps = horizon if n_obs_steps is None else n_obs_steps
        self.n_latency_steps = n_latency_steps
        self.action_differences = action_differences
        self._span = {"horizon": horizon + n_latency_steps, "pad_before": pad_before, "pad_after": pad_after}
        recorded = _opened(dataset_paths(zarr_path), gripper_scale, transform.robot, is_named=not names_from_shape_meta)
        if action_differences:
            recorded = [with_differences(source, self.spec) for source in recorded]
        self._sources = [replace(source, low_dim=transform.observed(source.low_dim)) for source in recorded]
        self.gripper_scale = tuple(source.gripper_scale for source in self._sources if source.gripper_scale)
        self.semantics = next((source.semantics for source in self._sources if source.semantics), None)
        self.episode_names = tuple(name for source in self._sources for name in source.episode_names)
        lengths = [np.diff(source.episode_ends, prepend=0) for source in self._sources]
        self.episode_ends: IndexArray = np.cumsum(np.concatenate(lengths))
        self._wanted = self._filter(only_episodes, exclude_episodes)
        self._thinning = max_train_episodes, seed
        drawn = [validation_episodes(len(source.episode_ends), val_ratio, seed) for source in self._sources]
        self._divide(np.concatenate(drawn))
        self._sampling = read_sampling(weights, self._sources)
        self._use(self.train_episodes)
        self._refuse_no_window()
        self._observations = prepare(self.spec, self._sources, cache, device)
        self._actions = WindowActions(transform, recorded, device if cache == "device" else "cpu")

    def _refuse_no_window(self) -> None:
        if len(self) == 0:
            raise DatasetError(
                f"{self.where}: no window of {self._span['horizon']} steps (padded by {self._span['pad_before']} "
                f"before and {self._span['pad_after']} after) fits into {self.train_episodes.sum()} training episodes"
            )

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Sample:
        """{"obs": {key: (To, ...)}, "action": (T, Da) float32}; images (To, 3, H, W) uint8."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        batch = self.get_batch([index])
        return {"obs": {key: value[0] for key, value in batch["obs"].items()}, "action": batch["action"][0]}

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples, read together, as a DataLoader requests them."""
        batch = self.get_batch(indices)
        return [
            {"obs": {key: value[i] for key, value in batch["obs"].items()}, "action": batch["action"][i]}
            for i in range(len(indices))
        ]

    def get_batch(self, indices: Sequence[int] | IndexArray) -> Sample:
        """Several samples at once, stacked: {"obs": {key: (B, To, ...)}, "action": (B, T, Da)}."""
        index = np.asarray(indices, dtype=np.int64)
        obs = self._observations.at(self.windows.steps(index, self.n_obs_steps))
        return {"obs": obs, "action": self._actions_of(self.windows, index)}

    def get_steps(self, steps: IndexArray) -> Sample:
        """Any recorded steps (B, T), counted over all episodes: {"obs": {key: (B, T, ...)}, "action": (B, T, Da)}."""
        return {"obs": self._observations.at(steps), "action": self.actions_at(steps)}

    def actions_at(self, steps: IndexArray) -> Tensor:
        """(B, T, Da) the actions of recorded steps (B, T); relative ones relate to the first step of each row."""
        return self._actions.at(steps[:, 0], steps)

    @property
    def relative_actions(self) -> bool:
        """Whether the actions of a window depend on what it observes, and not only on their steps."""
        return self._actions.relative

    def window_actions(self) -> Tensor:
        """(W, T, Da) the actions of all windows in use."""
        return self._actions_of(self.windows, np.arange(len(self.windows)))

    def _actions_of(self, windows: Windows, index: IndexArray) -> Tensor:
        newest = windows.steps(index, self.n_obs_steps)[:, -1]
        return self._actions.at(newest, windows.steps(index)[:, self.n_latency_steps :])

    def get_validation_dataset(self) -> CogActImageDataset:
        """The windows of the held-out episodes; empty if none is held out."""
        held_out = copy.copy(self)
        held_out._use(self.validation_episodes)
        return held_out

    def get_normalizer(self) -> LinearNormalizer:
        """Fitted to all episodes: actions and low-dimensional keys to [-1, 1] by their limits, images from [0, 1].

        All are in the policy's numbers; for relative actions these are the actions of all windows.
        """
        normalizer = LinearNormalizer()
        normalizer[ACTION_KEY] = SingleFieldLinearNormalizer.create_fit(self._all_actions())
        for field in self.spec.low_dim:
            normalizer[field.key] = SingleFieldLinearNormalizer.create_fit(self._low_dim(field.key))
        for field in self.spec.rgb:
            normalizer[field.key] = get_image_range_normalizer()
        return normalizer

    def _all_actions(self) -> Tensor:
        if not self._actions.relative:
            return self._actions.rows.cpu()
        windows = cut_windows(self.episode_ends, episodes=np.ones(len(self.episode_ends), dtype=bool), **self._span)
        return self._actions_of(windows, np.arange(len(windows))).flatten(0, 1).cpu()

    def hold_out(self, episodes: Mask) -> None:
        """Hold these episodes (E,) out instead of those that were drawn; filters and thinning are unchanged.

        Raises:
            DatasetError: no window is left to train on.
        """
        self._divide(episodes)
        self._use(self.train_episodes)
        if len(self) == 0:
            raise DatasetError(
                f"{self.where}: with {int(episodes.sum())} episodes held out no window is left to train on"
            )

    def of_each_dataset(self, episodes: NDArray[Any]) -> list[NDArray[Any]]:
        """An array (E,) over all episodes, split by dataset."""
        return np.split(episodes, np.cumsum([len(source.episode_ends) for source in self._sources])[:-1])

    def _divide(self, held_out: Mask) -> None:
        """Split the episodes into those trained on and those held out."""
        trained = [thin_episodes(~mask, *self._thinning) for mask in self.of_each_dataset(held_out)]
        self.validation_episodes: Mask = held_out & self._wanted
        self.train_episodes: Mask = np.concatenate(trained) & self._wanted

    @property
    def where(self) -> str:
        """Paths of the datasets."""
        return ", ".join(source.path for source in self._sources)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses of the datasets read from a hub, each with its commit."""
        return tuple(filter(None, (address_of(source.path) for source in self._sources)))

    @property
    def frame_sizes(self) -> dict[str, list[tuple[int, int]]]:
        """Per camera, (width, height) of its pictures as recorded, before a conversion resized them.

        Cameras whose size a dataset does not record are left out.
        """
        return {
            camera.key: sorted({size for source in self._sources for size in source.frame_sizes[camera.key]})
            for camera in self.spec.rgb
            if all(camera.key in source.frame_sizes for source in self._sources)
        }

    @property
    def sample_weights(self) -> NDArray[np.float64] | None:
        """(W,) how often to draw each window, so that each dataset or task has its share; None if all count equally.

        Raises:
            DatasetError: no window is left in any group with a weight.
        """
        return self._sampling.of_windows(self._episode_of)

    def shares(self, draws: int) -> tuple[Share, ...]:
        """The share of each dataset or task in an epoch of this many draws; one entry if no weights are set."""
        return self._sampling.shares(self._episode_of, draws)

    @property
    def _episode_of(self) -> IndexArray:
        """(W,) number of each window's episode."""
        return np.searchsorted(self.episode_ends, self.windows.low, side="right")

    def _use(self, episodes: Mask) -> None:
        self.windows = cut_windows(self.episode_ends, episodes=episodes, **self._span)

    def _low_dim(self, key: str) -> NDArray[np.float32]:
        return np.concatenate([source.low_dim[key] for source in self._sources])

    def _filter(self, only: Sequence[str] | None, exclude: Sequence[str]) -> Mask:
        """(E,) which episodes pass the filters."""
        unknown = sorted({*(only or ()), *exclude} - set(self.episode_names))
        if unknown:
            raise DatasetError(f"no episode is called {', '.join(unknown)}; there are {_some(self.episode_names)}")
        wanted = [(only is None or name in only) and name not in exclude for name in self.episode_names]
        return np.asarray(wanted, dtype=bool)


def _opened(paths: Sequence[str], scale: ScaleSetting, spec: StepSpec, *, is_named: bool) -> list[Source]:
    """The datasets as recorded, each with its gripper's scale."""
    scales = scale_of_each(scale, len(paths))
    return [open_source(path, spec, one, is_named=is_named) for path, one in zip(paths, scales, strict=True)]


def _check_conversions(spec: StepSpec, rotation: str | None, relative_actions: bool) -> None:
    """Refuse dataset settings that contradict the policy's shape_meta."""
    for setting, asked, entry, declared in (
        ("rotation", rotation, "rotation", spec.rotation),
        ("relative_actions", relative_actions, "relative", spec.relative),
    ):
        if asked != declared:
            raise SpecError(
                f"task.dataset.{setting} is {asked} and shape_meta.action.{entry} is {declared}; the dataset must give "
                f"what the policy predicts: leave shape_meta.action.{entry} at ${{task.dataset.{setting}}}, as in "
                "config/task/"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
