"""Finding the episodes of a folder, and opening one of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.gripper_scale import DeclaredScales
from diffusion_policy.paths import as_path, is_remote, reaching, read_bytes
from diffusion_policy.pose_check import order_fault
from diffusion_policy.spec import INTERVENTION, episode_number
from diffusion_policy.timestamps import TimestampUnit
from diffusion_policy.trajectory.arrays import (
    check_poses,
    grippers,
    read_arrays,
    read_other_arrays,
    rotations_of,
)
from diffusion_policy.trajectory.errors import TrajectoryError
from diffusion_policy.trajectory.frames import NO_IMAGE, SINGLE_CAMERA, check_image_index, image_notes, list_frames
from diffusion_policy.trajectory.links import is_broken, refuse_broken


@dataclass(frozen=True)
class Trajectory:
    """One recorded episode of N steps.

    Attributes:
        path: its folder.
        number: at the end of the folder's name; episodes are ordered by it.
        pose: (N, 7) float32, measured; x y z in meters, then qx qy qz qw, in the robot's base frame.
        gripper: (N,) float32, measured; 1 = open, 0 = closed.
        action: (N, 7) float32, commanded absolute pose, in the same layout.
        action_gripper: (N,) float32, commanded; 1 = open, 0 = closed.
        timestamp: (N,) float64, seconds.
        image_index: (N,) int64, the frame's number shown at this step; -1 where there is none.
        frames: per camera, the file of each frame number; every frame that a step shows is there.
        notes: harmless irregularities.
        intervention: (N,) bool, whether a person drove instead of a policy; None if not recorded.
    """

    path: Path
    number: int
    pose: NDArray[np.float32]
    gripper: NDArray[np.float32]
    action: NDArray[np.float32]
    action_gripper: NDArray[np.float32]
    timestamp: NDArray[np.float64]
    image_index: NDArray[np.int64]
    frames: Mapping[str, Mapping[int, Path]]
    notes: tuple[str, ...] = ()
    intervention: NDArray[np.bool_] | None = None

    @property
    def n_steps(self) -> int:
        """N, the number of recorded steps."""
        return len(self.timestamp)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras; ("image",) for a single unnamed one."""
        return tuple(self.frames)

    def frame_path(self, step: int, camera: str = SINGLE_CAMERA) -> Path:
        """The file shown at a step; TrajectoryError if that step has no image."""
        index = int(self.image_index[step])
        if index == NO_IMAGE:
            raise TrajectoryError(f"{self.path}: step {step} has no image (image_index is -1)")
        return self.frames[camera][index]


@dataclass(frozen=True)
class OtherLayout:
    """One recorded episode of N steps, the meaning of whose numbers is given by a mapping.

    Attributes:
        path: its folder.
        number: at the end of the folder's name.
        numbers: (N, D) by name in data.pkl.
        timestamp: (N,) seconds.
        image_index: (N,) the frame's number shown at this step; -1 where there is none.
        frames: per camera, the file of each frame number.
        notes: harmless irregularities.
    """

    path: Path
    number: int
    numbers: Mapping[str, NDArray[Any]]
    timestamp: NDArray[np.float64]
    image_index: NDArray[np.int64]
    frames: Mapping[str, Mapping[int, Path]]
    notes: tuple[str, ...] = ()


def find_trajectories(directory: Path | str) -> list[Path]:
    """Episode folders in a directory or below a URL, ordered by number, then name.

    A folder is an episode if its name begins with "episode" or if it holds data.pkl. Anything with an episode's name
    that cannot be read as one (a broken link, a file) is listed too, for `open_trajectory` to refuse.

    Raises:
        TrajectoryError: no such directory, no episode in it, or an episode without a number in its name.
        PathError: the URL's store cannot be reached.
    """
    directory = as_path(directory)
    refuse_broken(directory)
    with reaching(directory):
        if not directory.is_dir():
            raise TrajectoryError(f"{directory} is not a directory; expected one that holds episode_0000/ and so on")
        folders = [path for path in directory.iterdir() if _is_episode(path)]
    if not folders:
        hint = "; this looks like one episode: give the folder above it" if (directory / "data.pkl").is_file() else ""
        raise TrajectoryError(f"{directory} holds no episode (episode_0000/data.pkl and so on){hint}")
    return sorted(folders, key=lambda path: (_number(path), path.name))


def _is_episode(path: Path) -> bool:
    named = path.name.lower().startswith("episode")
    numbered = episode_number(path.name) is not None
    if is_broken(path):
        return named or numbered
    if path.is_dir():
        data = path / "data.pkl"
        return named or data.is_file() or is_broken(data)
    return named and numbered and not path.suffix and not is_remote(path)


def open_trajectory(
    path: Path | str, gripper_scale: DeclaredScales | None = None, timestamps: TimestampUnit | None = None
) -> Trajectory:
    """Open one episode and check everything that can be checked without decoding its frames.

    Args:
        path: its folder.
        gripper_scale: scale of its recorded gripper if it is not 1 (open) and 0 (closed); it is converted, and numbers
            in between are then accepted.
        timestamps: unit of its time stamps if it is not seconds; they are converted.

    Raises:
        TrajectoryError: the folder, its data.pkl, its meta.json or its frames are not valid.
        UnsafePickleError: data.pkl asks for anything but NumPy arrays of numbers.
        PathError: its store cannot be reached.
    """
    path, number = _episode(path)
    arrays = read_arrays(path, any_gripper=gripper_scale is not None, unit=timestamps)
    for key in ("robot_eef_pose", "action"):
        check_poses(arrays[key], f"{path}: {key}")
    order = order_fault(rotations_of(arrays["action"]), rotations_of(arrays["robot_eef_pose"]), "action")
    if order is not None:
        raise TrajectoryError(f"{path}: {order}")
    command, measured = grippers(arrays, path, gripper_scale)
    image_index = arrays["image_index"].astype(np.int64)
    frames, notes = _frames_of(path, number, image_index)
    driven, odd = _driven(arrays.get(INTERVENTION), len(image_index))
    return Trajectory(
        path=path,
        number=number,
        pose=arrays["robot_eef_pose"].astype(np.float32),
        gripper=measured.astype(np.float32),
        action=arrays["action"].astype(np.float32),
        action_gripper=command.astype(np.float32),
        timestamp=arrays["timestamp"].astype(np.float64),
        image_index=image_index,
        frames=frames,
        notes=(*notes, *odd),
        intervention=driven,
    )


def _driven(flags: NDArray[Any] | None, n_steps: int) -> tuple[NDArray[np.bool_] | None, list[str]]:
    """(N,) whether a person drove; None, with a note, if there is not one flag per step."""
    if flags is None:
        return None, []
    if flags.size != n_steps or flags.dtype.kind not in "biu" or not np.isin(flags, (0, 1)).all():
        note = f"{INTERVENTION} is {flags.dtype} {flags.shape}, not {n_steps} times 0 or 1: it is not carried over"
        return None, [note]
    return flags.reshape(-1).astype(np.bool_), []


def open_other_layout(path: Path | str, timestamps: TimestampUnit | None = None) -> OtherLayout:
    """Open one episode whose arrays have other names or meanings, given by a mapping; see `open_trajectory`.

    Raises:
        TrajectoryError, UnsafePickleError, PathError: as `open_trajectory`.
    """
    path, number = _episode(path)
    arrays = read_other_arrays(path, unit=timestamps)
    image_index = arrays.pop("image_index").astype(np.int64)
    timestamp = arrays.pop("timestamp").astype(np.float64)
    return OtherLayout(path, number, arrays, timestamp, image_index, *_frames_of(path, number, image_index))


def _episode(path: Path | str) -> tuple[Path, int]:
    """The folder of an episode, and its number."""
    location = as_path(path)
    number = _number(location)
    refuse_broken(location)
    if not is_remote(location) and location.is_file():
        raise TrajectoryError(f"{location}: is a file; expected a folder that holds data.pkl and images/")
    return location, number


def _frames_of(
    path: Path, number: int, image_index: NDArray[np.int64]
) -> tuple[dict[str, dict[int, Path]], tuple[str, ...]]:
    """The frames of an episode by camera and number, and notes on them and on meta.json."""
    with reaching(path):
        frames = list_frames(path)
    check_image_index(image_index, frames, path)
    return frames, (*_check_meta(path, number, len(image_index), frames), *image_notes(image_index, frames))


def _number(path: Path) -> int:
    number = episode_number(path.name)
    if number is None:
        raise TrajectoryError(f"{path}: no number at the end of the folder's name; expected one, as in episode_0007")
    return number


def _check_meta(path: Path, number: int, n_steps: int, frames: Mapping[str, Mapping[int, Path]]) -> list[str]:
    """Notes on meta.json; only its number of steps must agree."""
    file = path / "meta.json"
    with reaching(file):
        if is_broken(file):
            return ["meta.json is a broken link"]
        if not file.is_file():
            return ["meta.json is missing"]
    try:
        meta = json.loads(read_bytes(file).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise TrajectoryError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(meta, dict):
        raise TrajectoryError(f"{file}: holds a {type(meta).__name__}; expected an object")
    if meta.get("n_steps", n_steps) != n_steps:
        raise TrajectoryError(f"{file}: says {meta['n_steps']} steps, data.pkl has {n_steps}; one of them is truncated")
    notes = []
    if meta.get("episode_id", number) != number:
        notes.append(f"meta.json calls it episode {meta['episode_id']}; the folder's number is used")
    n_images = max(map(len, frames.values()))
    if meta.get("n_images", n_images) != n_images:
        notes.append(f"meta.json says {meta['n_images']} images, {n_images} are there")
    return notes
