"""Episodes of all formats whose numbers a mapping names, with the same checks and hashes whatever their files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.replay_buffer import ACTION_KEY
from diffusion_policy.paths import reaching
from diffusion_policy.pose_check import order_fault, pose_faults
from diffusion_policy.recording.contract import ArrayNames, EpisodeMetadata, Frames
from diffusion_policy.recording.errors import RecordingError
from diffusion_policy.recording.mapped import MappedArrays, values_of
from diffusion_policy.recording.scales import GripperScales, gripper_numbers, scales_of
from diffusion_policy.spec import ActionLayout, SpecError
from diffusion_policy.storage import sha256

Rows = Mapping[str, NDArray[Any]]
"""(N, width) recorded numbers of each feature."""


class CameraFrames(Frames, Protocol):
    """All frames that one camera shows in an episode."""

    def pieces(self, steps: Sequence[int], at_most: int) -> Iterator[Frames]:
        """Yields the frames of these steps in pieces of suitable size; of one step if `at_most` is 1."""

    def sample_sha256(self) -> str:
        """Returns the SHA-256 of the beginning, as stored."""


@dataclass(frozen=True)
class MappedRecording:
    """One episode; see `recording.contract.Recording` for the attributes.

    Attributes:
        n_recorded: N, plus the steps after them that have no command.
        files: the files that hold it.
        numbers_sha256: hash of all that is read except frames.
        shown: the frames shown, by camera.
    """

    path: Path
    number: int
    n_recorded: int
    names: ArrayNames
    states: Mapping[str, NDArray[np.float32]]
    action: NDArray[np.float32]
    timestamp: NDArray[np.float64]
    metadata: EpisodeMetadata
    image_index: NDArray[np.int64]
    frame_numbers: Mapping[str, Collection[int]]
    files: tuple[Path, ...]
    numbers_sha256: str
    notes: tuple[str, ...] = ()
    camera_frames: Mapping[str, CameraFrames] = field(default_factory=dict, repr=False)

    @property
    def n_steps(self) -> int:
        """N."""
        return len(self.timestamp)

    def frames(self, steps: Sequence[int], camera: str, at_most: int) -> Iterator[Frames]:
        """Yields pieces that suit the camera's storage."""
        return self.camera_frames[camera].pieces(steps, at_most)

    def content_sha256(self) -> str:
        """Returns the hash of its numbers, its tasks, and the beginning of each camera's frames."""
        camera_frames = "".join(
            f"{camera} {frames.sample_sha256()}\n" for camera, frames in sorted(self.camera_frames.items())
        )
        return sha256(self.numbers_sha256.encode(), camera_frames.encode()).hex()

    def fingerprint(self) -> str:
        """Returns a fingerprint of its numbers and the files that hold it."""
        lines = [self.numbers_sha256]
        with reaching(self.path):
            for file in self.files:
                status = file.stat()
                lines.append(f"{file.name} {status.st_size} {status.st_mtime_ns}\n")
        return sha256("".join(lines).encode()).hex()


def check_recorded(rows: Rows, arrays: MappedArrays, declared: Mapping[str, Any], path: Path) -> None:
    """Checks recorded numbers before they are used.

    Args:
        rows: rows of one episode.
        arrays: the arrays that the mapping derives from them.
        declared: declared scales of grippers, by name; None if they are to be found.
        path: path of the episode, for errors.

    Raises:
        RecordingError: numbers that are not finite, or grippers outside their declared scale.
    """
    for name, values in rows.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            step = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise RecordingError(f"{path}: {name} holds NaN or infinity, first at step {step}: cut these steps")
    for name, command, measured in arrays.gripper_columns():
        if declared[name] is not None:
            try:
                scales_of(gripper_numbers(rows, command, measured), declared[name])
            except SpecError as error:
                raise RecordingError(f"{path}: {name}: {error}") from error


def mapped_numbers(
    rows: Rows, arrays: MappedArrays, scales: GripperScales, path: Path, lead: int = 0
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """Returns measured numbers, by key of the dataset, and commands, for N - lead steps.

    Args:
        rows: rows of one episode of N steps.
        arrays: the arrays that the mapping derives from them.
        scales: scales of the grippers.
        path: path of the episode, for errors.
        lead: number of steps by which the command columns are recorded later than they apply.

    Raises:
        RecordingError: invalid poses.
    """
    n = len(next(iter(rows.values()))) - lead
    if n < 1:
        raise RecordingError(
            f"{path}: {n + lead} steps; with commands {lead} steps ahead, at least {lead + 1} are needed: leave it out"
        )
    now = {name: values[:n] for name, values in rows.items()}
    then = {name: values[lead:] for name, values in rows.items()}
    states = {key: values_of(columns, now, scales.measured) for key, columns in arrays.states.items()}
    action = values_of(arrays.action, then, scales.commanded)
    _check_poses(arrays.names, states, action, path)
    return states, action


def no_command(lead: int, n_steps: int) -> str:
    """Returns the note on steps at an episode's end whose command would be beyond it."""
    which = "the last step has" if lead == 1 else f"the last {lead} steps have"
    return f"{which} no command, which is the measurement {lead} later: left out, of {n_steps} recorded"


def _check_poses(
    names: ArrayNames, states: Mapping[str, NDArray[np.float32]], action: NDArray[np.float32], path: Path
) -> None:
    for key, values in {**states, ACTION_KEY: action}.items():
        faults = pose_faults(values, names.action if key == ACTION_KEY else names.states[key], f"{path}: {key}")
        if faults:
            raise RecordingError(str(faults[0]))
    ours = names.action_layout
    for key, values in states.items():
        theirs = ActionLayout.of(names.states[key])
        for i, arm in enumerate(theirs.labels("rotation")):
            if arm not in ours.labels("rotation"):
                continue
            commanded = ours.rotations(action)[:, ours.labels("rotation").index(arm)]
            fault = order_fault(commanded, theirs.rotations(values)[:, i], f"{arm or 'action'}")
            if fault is not None:
                raise RecordingError(f"{path}: {fault}")


def numbers_sha256(rows: Rows, texts: Sequence[str] = ()) -> str:
    """Returns the hash of an episode's numbers as recorded, and of its tasks."""
    parts: list[bytes] = []
    for name, values in sorted(rows.items()):
        parts += [f"{name} {values.dtype.str} {values.shape}\n".encode(), np.ascontiguousarray(values).tobytes()]
    return sha256(*parts, "\0".join(texts).encode()).hex()
