"""CogACT trajectories as recordings: one folder per episode, with data.pkl and one file per frame."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.replay_buffer import GRIPPER_KEY, POSE_KEY
from diffusion_policy.gripper_scale import DeclaredScales
from diffusion_policy.paths import reaching, read_bytes, read_together
from diffusion_policy.recording.contract import ArrayNames, EpisodeMetadata, Picture, true_runs
from diffusion_policy.spec import GRIPPER, POSE, POSE_GRIPPER
from diffusion_policy.storage import sha256
from diffusion_policy.timestamps import TimestampUnit
from diffusion_policy.trajectory import Trajectory, TrajectoryError, find_trajectories, open_trajectory

_NAMES = ArrayNames({POSE_KEY: POSE, GRIPPER_KEY: (GRIPPER,)}, POSE_GRIPPER)


@dataclass(frozen=True)
class PictureFiles:
    """Frames with one file each.

    Attributes:
        files: one per step; the same file for steps that show the same frame.
    """

    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    def pictures(self) -> Iterator[Picture]:
        """The files' contents, in order; see `recording.contract.Frames`."""
        try:
            for file, data in zip(self.files, read_together(self.files), strict=True):
                yield Picture(file, data)
        except OSError as error:
            where = error.filename or self.files[0]
            raise TrajectoryError(f"{where}: cannot be read ({error.strerror or error})") from error


@dataclass(frozen=True)
class CogActRecording:
    """One CogACT trajectory; see `recording.contract.Recording` for the attributes."""

    trajectory: Trajectory

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.trajectory.path

    @property
    def number(self) -> int:
        """The number at the end of the folder's name."""
        return self.trajectory.number

    @property
    def n_steps(self) -> int:
        """N."""
        return self.trajectory.n_steps

    @property
    def n_recorded(self) -> int:
        """N, since every step has a command."""
        return self.trajectory.n_steps

    @property
    def names(self) -> ArrayNames:
        """The names of pose and gripper."""
        return _NAMES

    @property
    def states(self) -> Mapping[str, NDArray[np.float32]]:
        """Measured pose (N, 7) and gripper (N, 1)."""
        return {POSE_KEY: self.trajectory.pose, GRIPPER_KEY: self.trajectory.gripper[:, None]}

    @property
    def action(self) -> NDArray[np.float32]:
        """(N, 8) commanded pose and gripper."""
        return np.concatenate([self.trajectory.action, self.trajectory.action_gripper[:, None]], axis=1)

    @property
    def timestamp(self) -> NDArray[np.float64]:
        """(N,) seconds."""
        return self.trajectory.timestamp

    @property
    def image_index(self) -> NDArray[np.int64]:
        """(N,) frame numbers."""
        return self.trajectory.image_index

    @property
    def frame_numbers(self) -> Mapping[str, Collection[int]]:
        """The numbers of each camera's files."""
        return {camera: files.keys() for camera, files in self.trajectory.frames.items()}

    @property
    def metadata(self) -> EpisodeMetadata:
        """Which steps a person drove, if the recorder marked them; the format has no tasks."""
        driven = self.trajectory.intervention
        return EpisodeMetadata(interventions=None if driven is None else tuple(true_runs(driven)))

    @property
    def notes(self) -> tuple[str, ...]:
        """Harmless irregularities."""
        return self.trajectory.notes

    def frames(self, steps: Sequence[int], camera: str, at_most: int) -> Iterator[PictureFiles]:
        """Yields the files of these steps, `at_most` at a time."""
        files = [self.trajectory.frame_path(step, camera) for step in steps]
        return (PictureFiles(tuple(files[start : start + at_most])) for start in range(0, len(files), at_most))

    def content_sha256(self) -> str:
        """Returns the SHA-256 of data.pkl."""
        return sha256(read_bytes(self.path / "data.pkl")).hex()

    def fingerprint(self) -> str:
        """Returns a fingerprint of data.pkl and every frame."""
        lines = []
        frames = (file for files in self.trajectory.frames.values() for file in files.values())
        with reaching(self.path):
            for file in [self.path / "data.pkl", *frames]:
                status = file.stat()
                lines.append(f"{file.relative_to(self.path)} {status.st_size} {status.st_mtime_ns}\n")
        return sha256("".join(lines).encode()).hex()


@dataclass(frozen=True)
class CogActRecordings:
    """The trajectories in a folder or below a URL.

    Attributes:
        folder: holds episode_0000/ and so on.
        gripper_scale: scale in which their grippers are recorded, if not 1 (open) and 0 (closed).
        timestamps: unit in which their time stamps are recorded, if not seconds.
    """

    folder: Path
    gripper_scale: DeclaredScales | None = None
    timestamps: TimestampUnit | None = None

    @property
    def account(self) -> Mapping[str, object]:
        """Empty: everything becomes part of the dataset."""
        return {}

    def find(self) -> list[Path]:
        """See `find_trajectories`."""
        return find_trajectories(self.folder)

    def open(self, path: Path) -> CogActRecording:
        """See `open_trajectory`."""
        return CogActRecording(open_trajectory(path, self.gripper_scale, self.timestamps))
