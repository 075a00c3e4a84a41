"""One recorded episode, as the robot's recorder leaves it: opened, checked, read-only.

    episode_0007/
      data.pkl      dict of NumPy arrays with N entries each (RECORDED)
      meta.json     n_steps, episode_id, ...: checked against the arrays where it is there
      images/       frame_0000.jpg ...; "Images/" in some sets; images/<camera>/frame_0000.jpg with several cameras

Everything that training would silently learn from is refused here with one sentence: rotation vectors in place of
quaternions, NaN, a gripper that is neither 0 nor 1, a step whose frame is not there. What is merely odd (frames that no
step shows, a step shown twice) becomes a note. `data.pkl` is a pickle and goes through `safe_pickle`: nothing in it
is run. Nothing is ever written to an episode's folder, which may lie in an object store ("s3://bucket/recordings").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy import safe_pickle
from diffusion_policy.geometry import check_unit_quaternions
from diffusion_policy.gripper_scale import FLAG, DeclaredScales, FoundScale, find_scales
from diffusion_policy.places import place, reaching, read_bytes
from diffusion_policy.pose_check import order_fault, pose_faults
from diffusion_policy.spec import POSE, SpecError, WorkspaceError, episode_number, layout_from_range

RECORDED: dict[str, tuple[tuple[int, ...], str]] = {
    "robot_eef_pose": ((len(POSE),), "f"),
    "robot_gripper": ((), "iub"),
    "action": ((len(POSE),), "f"),
    "action_gripper": ((), "iub"),
    "timestamp": ((), "f"),
    "image_index": ((), "iu"),
}
"""Keys of data.pkl: shape of one step and the kinds of NumPy dtype that are read."""

NO_IMAGE = -1
SINGLE_CAMERA = "image"
# Nothing but these may stand before or after the dot of a frame.
_FRAME = re.compile(r"frame_(\d+)\.(?:jpe?g|png)", re.IGNORECASE)
_QUATERNION_TOLERANCE = 0.02
GRIPPERS = ("robot_gripper", "action_gripper")
_KINDS = {"iubf": "numbers", "f": "floating-point numbers", "iub": "integers", "iu": "integers"}


class TrajectoryError(WorkspaceError):
    """An episode that cannot be trusted: says which, what was found, what was expected."""


@dataclass(frozen=True)
class Trajectory:
    """One recorded episode of N steps.

    Attributes:
        path: its folder.
        number: at the end of the folder's name; episodes are ordered by it.
        pose: (N, 7) float32, measured; x y z in metres, then qx qy qz qw, in the robot's base frame.
        gripper: (N,) float32, measured; 1 = open, 0 = closed.
        action: (N, 7) float32, commanded absolute pose, in the same layout.
        action_gripper: (N,) float32, commanded; 1 = open, 0 = closed.
        timestamp: (N,) float64, seconds.
        image_index: (N,) int64, the frame's number shown at this step; -1 where there is none.
        frames: per camera, the file of each frame number; every frame that a step shows is there.
        notes: what is odd, and harmless.
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

    @property
    def n_steps(self) -> int:
        """N, the number of recorded steps."""
        return len(self.timestamp)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras; ("image",) where there is one without a name."""
        return tuple(self.frames)

    def frame_path(self, step: int, camera: str = SINGLE_CAMERA) -> Path:
        """The file shown at a step; TrajectoryError if that step has no image."""
        index = int(self.image_index[step])
        if index == NO_IMAGE:
            raise TrajectoryError(f"{self.path}: step {step} has no image (image_index is -1)")
        return self.frames[camera][index]

    def image_runs(self) -> list[tuple[int, int]]:
        """Longest runs of steps that all have an image, as (start, exclusive end)."""
        seen = np.concatenate([[False], self.image_index != NO_IMAGE, [False]])
        edges = np.flatnonzero(seen[1:] != seen[:-1])
        return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]

    def unused_frames(self, camera: str) -> list[int]:
        """Numbers of frames on disk that no step shows, in order."""
        return sorted(set(self.frames[camera]) - set(self.image_index.tolist()))


def find_trajectories(directory: Path | str) -> list[Path]:
    """Episode folders in a directory or below a URL, ordered by number, then name.

    A folder is an episode if its name begins with "episode" or if it holds data.pkl.

    Raises:
        TrajectoryError: no such directory, no episode in it, or an episode without a number in its name.
        PlaceError: the URL's store cannot be reached.
    """
    directory = place(directory)
    with reaching(directory):
        if not directory.is_dir():
            raise TrajectoryError(f"{directory} is not a directory; expected one that holds episode_0000/ and so on")
        folders = [
            path
            for path in directory.iterdir()
            if path.is_dir() and (path.name.lower().startswith("episode") or (path / "data.pkl").is_file())
        ]
    if not folders:
        hint = "; this looks like one episode: give the folder above it" if (directory / "data.pkl").is_file() else ""
        raise TrajectoryError(f"{directory} holds no episode (episode_0000/data.pkl and so on){hint}")
    return sorted(folders, key=lambda path: (_number(path), path.name))


def open_trajectory(path: Path | str, gripper_scale: DeclaredScales | None = None) -> Trajectory:
    """Open one episode and check everything that can be checked without decoding its frames.

    Args:
        path: its folder.
        gripper_scale: that its gripper is recorded in where it is not 1 (open) and 0 (closed); it is converted, and
            numbers between the two are then accepted.

    Raises:
        TrajectoryError: the folder, its data.pkl, its meta.json or its frames are not as they must be.
        UnsafePickleError: data.pkl asks for anything but NumPy arrays of numbers.
        PlaceError: it lies in a store that cannot be reached.
    """
    path = place(path)
    number = _number(path)
    arrays = _read_arrays(path, any_gripper=gripper_scale is not None)
    n_steps = len(arrays["timestamp"])
    for key in ("robot_eef_pose", "action"):
        _check_poses(arrays[key], f"{path}: {key}")
    order = order_fault(arrays["action"], arrays["robot_eef_pose"], "action")
    if order is not None:
        raise TrajectoryError(f"{path}: {order}")
    command, measured = _grippers(arrays, path, gripper_scale)
    image_index = arrays["image_index"].astype(np.int64)
    with reaching(path):
        frames = _list_frames(path)
    _check_image_index(image_index, frames, path)
    notes = [*_check_meta(path, number, n_steps, frames), *_image_notes(image_index, frames)]
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
        notes=tuple(notes),
    )


def _number(path: Path) -> int:
    number = episode_number(path.name)
    if number is None:
        raise TrajectoryError(f"{path}: no number at the end of the folder's name; expected one, as in episode_0007")
    return number


def _read_arrays(path: Path, *, any_gripper: bool) -> dict[str, NDArray[Any]]:
    """The six arrays of data.pkl, each of its shape and kind, all of one length, all finite."""
    file = path / "data.pkl"
    try:
        content = read_bytes(file)
    except OSError as error:
        raise TrajectoryError(f"{file}: cannot be read ({error.strerror or error}); an episode needs it") from error
    data = safe_pickle.load(content, allowed=safe_pickle.NUMPY_GLOBALS, where=str(file))
    if not isinstance(data, dict):
        raise TrajectoryError(f"{file}: holds a {type(data).__name__}; expected a dict of arrays")
    missing = [key for key in RECORDED if key not in data]
    if missing:
        raise TrajectoryError(f"{file}: lacks {', '.join(missing)}; it has {', '.join(sorted(map(str, data)))}")
    arrays = {key: _read_array(data[key], key, file, any_gripper=any_gripper) for key in RECORDED}
    lengths = {key: len(array) for key, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise TrajectoryError(f"{file}: lengths differ: {lengths}; expected one number of steps")
    if lengths["timestamp"] == 0:
        raise TrajectoryError(f"{file}: the episode has 0 steps")
    return arrays


def _read_array(array: Any, key: str, file: Path, *, any_gripper: bool) -> NDArray[Any]:
    shape, kinds = RECORDED[key]
    kinds = "iubf" if any_gripper and key in GRIPPERS else kinds
    if not isinstance(array, np.ndarray):
        raise TrajectoryError(f"{file}: {key} is a {type(array).__name__}; expected a NumPy array")
    if array.dtype.kind not in kinds:
        told = f", or say what they are with {FLAG} NAME" if key in GRIPPERS and array.dtype.kind == "f" else ""
        raise TrajectoryError(f"{file}: {key} has dtype {array.dtype}; expected {_KINDS[kinds]}{told}")
    if array.ndim != 1 + len(shape) or array.shape[1:] != shape:
        expected = ", ".join(["N", *map(str, shape)])
        raise TrajectoryError(f"{file}: {key} has shape {array.shape}; expected ({expected})")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        step = int(np.argwhere(~np.isfinite(array))[0, 0])
        raise TrajectoryError(f"{file}: {key} holds NaN or infinity, first at step {step}")
    return array


def _check_poses(poses: NDArray[Any], where: str) -> None:
    try:
        check_unit_quaternions(poses[:, 3:7], where, _QUATERNION_TOLERANCE)
    except SpecError as error:
        layout = layout_from_range(poses.min(axis=0), poses.max(axis=0))
        if layout == "xyz_rotvec_width" and poses[:, 3:6].any():
            raise TrajectoryError(
                f"{where} is in the older layout x y z, rotation vector, gripper width in metres; "
                "expected x y z qx qy qz qw: convert the recording first"
            ) from error
        raise TrajectoryError(str(error)) from error
    faults = pose_faults(poses, POSE, where)
    if faults:
        raise TrajectoryError(str(faults[0]))


def _grippers(
    arrays: Mapping[str, NDArray[Any]], path: Path, declared: DeclaredScales | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Commanded and measured gripper, 1 = open."""
    command, measured = arrays["action_gripper"], arrays["robot_gripper"]
    try:
        scales = find_scales(command, measured, declared=declared)
    except SpecError as error:
        raise TrajectoryError(f"{path}: {error}") from error
    if declared is not None:
        for key, found in (("action_gripper", scales.command), ("robot_gripper", scales.measured)):
            if found is None or found.scale is None:
                raise TrajectoryError(f"{path}: {key} is in a scale that is not known; say both: {scales.advice()}")
        assert scales.measured is not None
        return _internal(command, scales.command), _internal(measured, scales.measured)
    for key in GRIPPERS:
        odd = np.setdiff1d(arrays[key], (0, 1))
        if odd.size:
            raise TrajectoryError(
                f"{path}: {key} holds {odd[:5].tolist()}; expected only 1 (open) and 0 (closed); say what they are: "
                f"{scales.advice()}"
            )
    return command, measured


def _internal(values: NDArray[Any], found: FoundScale) -> NDArray[np.float64]:
    assert found.scale is not None
    return found.scale.to_internal(values)


def _list_frames(path: Path) -> dict[str, dict[int, Path]]:
    """Per camera, the file of each frame number."""
    folders = [path / name for name in ("images", "Images") if (path / name).is_dir()]
    if len(folders) == 2 and folders[0].samefile(folders[1]):
        folders = folders[:1]
    if len(folders) != 1:
        found = "neither images/ nor Images/" if not folders else "both images/ and Images/"
        raise TrajectoryError(f"{path}: has {found}; expected one of them")
    (images,) = folders
    entries = sorted(images.iterdir())
    single = _number_frames(entry for entry in entries if entry.is_file())
    several = {entry.name: _number_frames(entry.iterdir()) for entry in entries if entry.is_dir()}
    several = {camera: frames for camera, frames in several.items() if frames}
    if single and several:
        raise TrajectoryError(f"{images}: frames lie both in it and in {', '.join(several)}/; expected one of the two")
    if not single and not several:
        raise TrajectoryError(f"{images}: holds no frame (frame_0000.jpg and so on)")
    return several or {SINGLE_CAMERA: single}


def _number_frames(files: Iterable[Path]) -> dict[int, Path]:
    frames: dict[int, Path] = {}
    for file in files:
        match = _FRAME.fullmatch(file.name)
        if match is None:
            continue
        number = int(match.group(1))
        if number in frames:
            raise TrajectoryError(f"{file}: frame {number} is there twice, also as {frames[number].name}")
        frames[number] = file
    return dict(sorted(frames.items()))


def _check_image_index(index: NDArray[np.int64], frames: Mapping[str, Mapping[int, Path]], path: Path) -> None:
    wrong = np.flatnonzero(index < NO_IMAGE)
    if wrong.size:
        raise TrajectoryError(f"{path}: image_index is {index[wrong[0]]} at step {wrong[0]}; expected a frame or -1")
    if (index == NO_IMAGE).all():
        raise TrajectoryError(f"{path}: image_index is -1 at every step: the episode has no image")
    for camera, files in frames.items():
        absent = np.flatnonzero((index != NO_IMAGE) & ~np.isin(index, list(files)))
        if absent.size:
            raise TrajectoryError(
                f"{path}: step {absent[0]} shows frame {index[absent[0]]}, which {next(iter(files.values())).parent} "
                f"does not hold; {absent.size} of {len(index)} steps lack their frame of camera {camera!r}"
            )


def _check_meta(path: Path, number: int, n_steps: int, frames: Mapping[str, Mapping[int, Path]]) -> list[str]:
    """Notes on meta.json; the number of steps is the one thing in which it may not differ."""
    file = path / "meta.json"
    with reaching(file):
        if not file.is_file():
            return ["meta.json is absent"]
    try:
        meta = json.loads(read_bytes(file).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise TrajectoryError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(meta, dict):
        raise TrajectoryError(f"{file}: holds a {type(meta).__name__}; expected an object")
    if meta.get("n_steps", n_steps) != n_steps:
        raise TrajectoryError(f"{file}: says {meta['n_steps']} steps, data.pkl has {n_steps}; one of them is cut")
    notes = []
    if meta.get("episode_id", number) != number:
        notes.append(f"meta.json calls it episode {meta['episode_id']}; the folder's number is used")
    n_images = max(map(len, frames.values()))
    if meta.get("n_images", n_images) != n_images:
        notes.append(f"meta.json says {meta['n_images']} images, {n_images} are there")
    return notes


def _image_notes(index: NDArray[np.int64], frames: Mapping[str, Mapping[int, Path]]) -> list[str]:
    shown = index[index != NO_IMAGE]
    notes = []
    if shown.size < index.size:
        notes.append(f"{index.size - shown.size} steps without an image")
    repeats = shown.size - np.unique(shown).size
    if repeats:
        notes.append(f"{repeats} steps show a frame that another step shows too")
    for camera, files in frames.items():
        unused = len(set(files) - set(shown.tolist()))
        if unused:
            notes.append(f"{unused} frames of camera {camera!r} are shown at no step")
    return notes
