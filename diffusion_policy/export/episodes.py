"""What is exported: the episodes of a dataset, as named numbers, frames, tasks and flags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.episode_metadata import EpisodeMetadata, episode_metadata
from diffusion_policy.dataset.errors import DatasetError
from diffusion_policy.dataset.frame_files import FrameFiles
from diffusion_policy.dataset.replay_buffer import ACTION_KEY, TIMESTAMP_KEY, ReplayBuffer
from diffusion_policy.gripper_scale import DeclaredScales
from diffusion_policy.spec import ActionLayout

_FRAMES_AT_A_TIME = 32
# Rates are rounded to whole numbers of Hz within this distance.
_WHOLE = 0.01


@dataclass(frozen=True)
class Episode:
    """One episode of N steps.

    Attributes:
        state, action: (N, D) float32; grippers 0 closed to 1 open.
        metadata: tasks and flags.
        number: its number in the dataset, from 0.
        first: its first row in the dataset.
    """

    state: NDArray[np.float32]
    action: NDArray[np.float32]
    metadata: EpisodeMetadata
    number: int
    first: int

    @property
    def n_steps(self) -> int:
        """N."""
        return len(self.action)


@dataclass
class DatasetEpisodes:
    """The episodes of a dataset, in order.

    Args:
        path: path of the dataset.
        gripper_scale: scale in which its grippers are stored, if declared.
        metadata: metadata by episode number, to be exported instead of the dataset's own.

    Raises:
        DatasetError: there is no dataset, it is damaged, or it has no episode, no action or no camera.
        SpecError: the scale of a gripper is unknown.
    """

    path: Path
    gripper_scale: DeclaredScales | None = None
    metadata: Mapping[int, EpisodeMetadata] = field(default_factory=dict)
    buffer: ReplayBuffer = field(init=False)

    def __post_init__(self) -> None:
        self.buffer = ReplayBuffer.open(self.path, gripper_scale=self.gripper_scale)
        if not self.buffer.n_episodes or not self.buffer.cameras or ACTION_KEY not in self.buffer:
            raise DatasetError(f"{self.path}: has no episode, no camera or no action; convert recordings first")

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the action's numbers."""
        return self.buffer.names(ACTION_KEY)

    @property
    def state_keys(self) -> tuple[str, ...]:
        """Keys of the measured arrays, in the order of their numbers in the state."""
        keys = [key for key in self.buffer.keys if key != ACTION_KEY and self.buffer.vector_names(key)]
        order = ("robot_eef_pose", "robot_joints")
        return tuple(sorted(keys, key=lambda key: (order.index(key) if key in order else len(order), key)))

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the state's numbers."""
        return tuple(name for key in self.state_keys for name in self.buffer.names(key))

    def units(self, names: tuple[str, ...]) -> list[str]:
        """Returns the unit of each number; "unknown" if not given."""
        label = self.buffer.label or {}
        units = dict(zip(label.get("names", ()), label.get("units", ()), strict=False))
        return list(ActionLayout.of(names, {name: unit for name, unit in units.items() if unit != "unknown"}).units)

    @property
    def rate(self) -> float:
        """Steps per second, from the median step.

        Raises:
            DatasetError: there are no time stamps, or they do not increase.
        """
        ends = self.buffer.episode_ends
        stamps = self.buffer.read(TIMESTAMP_KEY) if TIMESTAMP_KEY in self.buffer else np.zeros(0)
        steps = np.delete(np.diff(stamps), ends[:-1] - 1) if len(stamps) > 1 else stamps
        period = float(np.median(steps)) if len(steps) else 0.0
        if period <= 0:
            raise DatasetError(f"{self.path}: its time stamps give no rate; set it with --fps HZ")
        hz = 1 / period
        return round(hz) if abs(hz - round(hz)) <= _WHOLE * hz and round(hz) > 0 else round(hz, 3)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(width, height) of each camera."""
        return {camera: (self.buffer[camera].shape[2], self.buffer[camera].shape[1]) for camera in self.buffer.cameras}

    def frames(self, camera: str, episode: Episode) -> Iterator[NDArray[np.uint8]]:
        """Yields the frames (H, W, 3) RGB of an episode."""
        files = FrameFiles(self.buffer[camera])
        end = episode.first + episode.n_steps
        for start in range(episode.first, end, _FRAMES_AT_A_TIME):
            yield from files.read(start, min(start + _FRAMES_AT_A_TIME, end))

    def all_frames(self, camera: str) -> Iterator[NDArray[np.uint8]]:
        """Yields the frames of all episodes in order."""
        files = FrameFiles(self.buffer[camera])
        for start in range(0, self.buffer.n_steps, _FRAMES_AT_A_TIME):
            yield from files.read(start, min(start + _FRAMES_AT_A_TIME, self.buffer.n_steps))

    def __iter__(self) -> Iterator[Episode]:
        action = self.buffer.columns(ACTION_KEY, self.action_names)
        states = [self.buffer.columns(key, self.buffer.names(key)) for key in self.state_keys]
        state = np.concatenate(states, axis=1) if states else np.zeros((len(action), 0))
        metadata, first = episode_metadata(self.buffer), 0
        for number, end in enumerate(self.buffer.episode_ends.tolist()):
            rows = slice(first, end)
            metadata_of = self.metadata.get(number, metadata[number])
            yield Episode(state[rows].astype(np.float32), action[rows].astype(np.float32), metadata_of, number, first)
            first = end
