"""A custom recording format: a folder with one NumPy archive per episode, including frames."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.replay_buffer import GRIPPER_KEY, POSE_KEY
from diffusion_policy.recording import ArrayNames, EpisodeMetadata, Picture
from diffusion_policy.spec import GRIPPER, POSE, POSE_GRIPPER
from diffusion_policy.trajectory import TrajectoryError

ARRAYS = ("pose", "gripper", "command", "time", "frames")


@dataclass(frozen=True)
class NpzFrames:
    """Frames of some steps; hashable, and small on its way to another process."""

    file: Path
    steps: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.steps)

    def pictures(self) -> Iterator[Picture]:
        with np.load(self.file, allow_pickle=False) as archive:
            frames = archive["frames"]
        for step in self.steps:
            yield Picture(self.file.with_name(f"{self.file.name}#{step}"), frames[step])


@dataclass(frozen=True)
class NpzRecording:
    """One episode; see `recording.contract.Recording` for the attributes."""

    path: Path  # the archive's without its suffix: names end in their number
    arrays: Mapping[str, NDArray[Any]]
    names = ArrayNames({POSE_KEY: POSE, GRIPPER_KEY: (GRIPPER,)}, POSE_GRIPPER)
    metadata = EpisodeMetadata()
    notes = ()

    @property
    def number(self) -> int:
        return int(self.path.name.rpartition("_")[2])

    @property
    def file(self) -> Path:
        return self.path.with_suffix(".npz")

    @property
    def n_steps(self) -> int:
        return len(self.arrays["time"])

    n_recorded = n_steps  # every step has a command

    @property
    def states(self) -> Mapping[str, NDArray[np.float32]]:
        return {POSE_KEY: self.arrays["pose"], GRIPPER_KEY: self.arrays["gripper"][:, None]}

    @property
    def action(self) -> NDArray[np.float32]:
        return self.arrays["command"]

    @property
    def timestamp(self) -> NDArray[np.float64]:
        return self.arrays["time"]

    @cached_property
    def image_index(self) -> NDArray[np.int64]:
        return np.arange(self.n_steps)  # every step shows a frame of its own

    @property
    def frame_numbers(self) -> Mapping[str, Collection[int]]:
        return {"image": range(self.n_steps)}

    def frames(self, steps: Sequence[int], camera: str, at_most: int) -> Iterator[NpzFrames]:
        pieces = (steps[start : start + at_most] for start in range(0, len(steps), at_most))
        return (NpzFrames(self.file, tuple(piece)) for piece in pieces)

    def content_sha256(self) -> str:
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    def fingerprint(self) -> str:
        status = self.file.stat()
        return f"{self.file.name} {status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True)
class NpzRecordings:
    """The episodes in a folder."""

    folder: Path
    account = {}  # noqa: RUF012

    def find(self) -> list[Path]:
        found = sorted(file.with_suffix("") for file in self.folder.glob("episode_*.npz"))
        if not found:
            raise TrajectoryError(f"{self.folder}: holds no episode_0000.npz")
        return found

    def open(self, path: Path) -> NpzRecording:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as archive:
            missing = sorted(set(ARRAYS) - set(archive.files))
            if missing:
                raise TrajectoryError(f"{path}.npz: lacks {missing}; it has {sorted(archive.files)}")
            return NpzRecording(path, {name: archive[name] for name in ARRAYS[:-1]})
