"""The six arrays of data.pkl: their required form, and what else may be found there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy import safe_pickle
from diffusion_policy.geometry import check_unit_quaternions
from diffusion_policy.gripper_scale import FLAG, DeclaredScales, ResolvedScale, find_scales
from diffusion_policy.paths import read_bytes
from diffusion_policy.pose_check import pose_faults
from diffusion_policy.spec import INTERVENTION, POSE, ActionLayout, SpecError, layout_from_range
from diffusion_policy.timestamps import FLAG as TIMESTAMPS_FLAG
from diffusion_policy.timestamps import TimestampUnit, timestamp_fault
from diffusion_policy.trajectory.errors import TrajectoryError
from diffusion_policy.trajectory.foreign import what_it_is
from diffusion_policy.trajectory.links import refuse_broken

RECORDED: dict[str, tuple[tuple[int, ...], str]] = {
    "robot_eef_pose": ((len(POSE),), "f"),
    "robot_gripper": ((), "iub"),
    "action": ((len(POSE),), "f"),
    "action_gripper": ((), "iub"),
    "timestamp": ((), "iuf"),
    "image_index": ((), "iu"),
}
"""Keys of data.pkl: shape of one step and the kinds of NumPy dtype that are read."""


GRIPPERS = ("robot_gripper", "action_gripper")
# Arrays that every layout of data.pkl has.
_STEPS = ("timestamp", "image_index")
# What data.pkl may hold besides plain containers and numbers.
_ALLOWED: safe_pickle.Allowed = {
    **safe_pickle.NUMPY_GLOBALS,
    ("collections", "OrderedDict"): safe_pickle.Recipe(lambda: OrderedDict()),
}
_EXPECTED = "a pickled dict of NumPy arrays of numbers, which pickle.dump writes"
# As the robot's recorder writes them.
_WRITTEN = {
    key: {"f": "float32", "iub": "int64", "iu": "int64", "iuf": "float64"}[kinds]
    for key, (_, kinds) in RECORDED.items()
}
_KINDS = {"iubf": "numbers", "iuf": "numbers", "f": "floating-point numbers", "iub": "integers", "iu": "integers"}


def read_pickle(path: Path) -> tuple[Path, dict[Any, Any]]:
    """The dict in an episode's data.pkl, and the file.

    Raises:
        TrajectoryError: data.pkl is not a pickle, or holds something else.
        UnsafePickleError: it asks for anything but arrays of numbers.
    """
    file = path / "data.pkl"
    refuse_broken(file)
    try:
        content = read_bytes(file)
    except OSError as error:
        raise TrajectoryError(f"{file}: cannot be read ({error.strerror or error}); an episode needs it") from error
    foreign = what_it_is(content, file)
    if foreign is not None:
        kind, remedy = foreign
        raise TrajectoryError(f"{file}: {kind}; expected {_EXPECTED}: {remedy}")
    try:
        data = safe_pickle.load(content, allowed=_ALLOWED, where=str(file))
    except safe_pickle.UnsafePickleError as error:
        raise safe_pickle.UnsafePickleError(f"{str(error).rstrip('.')}; expected {_EXPECTED}") from error
    if not isinstance(data, dict):
        raise TrajectoryError(f"{file}: holds a {type(data).__name__}; expected a dict of arrays")
    return file, data


def read_arrays(path: Path, *, any_gripper: bool, unit: TimestampUnit | None) -> dict[str, NDArray[Any]]:
    """The six arrays of data.pkl, each with its shape and kind, all of one length, all finite; and, unchanged, its
    flags of intervention (N,) if it has any.

    Raises:
        TrajectoryError: data.pkl is not a pickle, or an array is not valid.
        UnsafePickleError: it asks for anything but arrays of numbers.
    """
    file, data = read_pickle(path)
    missing = [key for key in RECORDED if key not in data]
    if missing:
        raise TrajectoryError(f"{file}: lacks {', '.join(missing)}; it has {', '.join(sorted(map(str, data)))}")
    arrays = _of_one_length(
        {key: _read_array(data[key], key, file, any_gripper=any_gripper) for key in RECORDED}, file, unit
    )
    flags = data.get(INTERVENTION)
    return arrays if not isinstance(flags, np.ndarray) else {**arrays, INTERVENTION: flags}


def read_other_arrays(path: Path, *, unit: TimestampUnit | None) -> dict[str, NDArray[Any]]:
    """All arrays of data.pkl that have a number, or a row of numbers, for each step; time stamps in seconds.

    For an older layout, whose arrays a mapping names. Arrays of another length or kind are left out.

    Raises:
        TrajectoryError: timestamp or image_index is missing or not valid.
        UnsafePickleError: data.pkl asks for anything but arrays of numbers.
    """
    file, data = read_pickle(path)
    missing = [key for key in _STEPS if key not in data]
    if missing:
        raise TrajectoryError(f"{file}: lacks {', '.join(missing)}; it has {', '.join(sorted(map(str, data)))}")
    steps = _of_one_length({key: _read_array(data[key], key, file, any_gripper=False) for key in _STEPS}, file, unit)
    n = len(steps["timestamp"])
    numbers = {
        str(key): array.reshape(n, -1)
        for key, array in data.items()
        if isinstance(array, np.ndarray) and array.dtype.kind in "iubf" and array.ndim in (1, 2) and len(array) == n
    }
    return {**numbers, **steps}


def _of_one_length(arrays: dict[str, NDArray[Any]], file: Path, unit: TimestampUnit | None) -> dict[str, NDArray[Any]]:
    lengths = {key: len(array) for key, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise TrajectoryError(f"{file}: lengths differ: {lengths}; expected one number of steps")
    if lengths["timestamp"] == 0:
        raise TrajectoryError(f"{file}: the episode has 0 steps")
    return {**arrays, "timestamp": _seconds(arrays["timestamp"], file, unit)}


def _seconds(stamps: NDArray[Any], file: Path, unit: TimestampUnit | None) -> NDArray[Any]:
    """Time stamps (N,) in seconds."""
    result = stamps if unit is None else unit.seconds(stamps)
    fault = timestamp_fault(result, f"{file}: timestamp" + ("" if unit is None else f", read as {unit.name}"))
    if fault is not None:  # the recorded numbers show a wrong unit better
        raise TrajectoryError(str(timestamp_fault(stamps, f"{file}: timestamp") or fault))
    if result.dtype.kind != "f":
        raise TrajectoryError(
            f"{file}: timestamp has dtype {result.dtype}; expected floating-point numbers, such as float64, or say "
            f"what they are with {TIMESTAMPS_FLAG} UNIT"
        )
    return result


def _read_array(array: Any, key: str, file: Path, *, any_gripper: bool) -> NDArray[Any]:
    shape, kinds = RECORDED[key]
    kinds = "iubf" if any_gripper and key in GRIPPERS else kinds
    written = _WRITTEN[key]
    if not isinstance(array, np.ndarray):
        found = f"{type(array).__name__}; expected a NumPy array"
        raise TrajectoryError(f"{file}: {key} is a {found}: write np.asarray({key}, np.{written})")
    if array.dtype.kind not in kinds or array.dtype == np.float16:
        hint = f", or say what they are with {FLAG} NAME" if key in GRIPPERS and array.dtype.kind == "f" else ""
        raise TrajectoryError(
            f"{file}: {key} has dtype {array.dtype}; expected {_KINDS[kinds]}, such as {written}{hint}"
        )
    if array.ndim != 1 + len(shape) or array.shape[1:] != shape:
        expected = ", ".join(["N", *map(str, shape)])
        column = f": write {key}[:, 0]" if array.ndim == 2 + len(shape) and array.shape[1:] == (1, *shape) else ""
        raise TrajectoryError(f"{file}: {key} has shape {array.shape}; expected ({expected}){column}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        step = int(np.argwhere(~np.isfinite(array))[0, 0])
        raise TrajectoryError(f"{file}: {key} holds NaN or infinity, first at step {step}")
    return array


def check_poses(poses: NDArray[Any], where: str) -> None:
    """Raises TrajectoryError: numbers (N, 7) that are not a position in meters and a unit quaternion x y z w."""
    try:
        check_unit_quaternions(rotations_of(poses), where)
    except SpecError as error:
        layout = layout_from_range(poses.min(axis=0), poses.max(axis=0))
        if layout == "xyz_rotvec_width" and rotations_of(poses)[:, :3].any():
            raise TrajectoryError(
                f"{where} is in the older layout x y z, rotation vector, gripper width in meters; "
                "expected x y z qx qy qz qw: convert the recording first"
            ) from error
        raise TrajectoryError(str(error)) from error
    faults = pose_faults(poses, POSE, where)
    if faults:
        raise TrajectoryError(str(faults[0]))


def rotations_of(poses: NDArray[Any]) -> NDArray[np.float64]:
    """Recorded poses (N, 7) -> their quaternions (N, 4), xyzw."""
    return ActionLayout.of(POSE).rotations(poses)[:, 0]


def grippers(
    arrays: Mapping[str, NDArray[Any]], path: Path, declared: DeclaredScales | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Commanded and measured gripper (N,), 1 = open.

    Raises:
        TrajectoryError: its scale is unknown, or not the declared one.
    """
    command, measured = arrays["action_gripper"], arrays["robot_gripper"]
    try:
        scales = find_scales(command, measured, declared=declared)
    except SpecError as error:
        raise TrajectoryError(f"{path}: {error}") from error
    if declared is not None:
        for key, scale in (("action_gripper", scales.command), ("robot_gripper", scales.measured)):
            if scale is None or scale.scale is None:
                raise TrajectoryError(f"{path}: {key} has an unknown scale; declare both: {scales.advice()}")
        assert scales.measured is not None
        return _internal(command, scales.command), _internal(measured, scales.measured)
    for key in GRIPPERS:
        odd = np.setdiff1d(arrays[key], (0, 1))
        if odd.size:
            raise TrajectoryError(
                f"{path}: {key} holds {odd[:5].tolist()}; expected only 1 (open) and 0 (closed); declare their scale: "
                f"{scales.advice()}"
            )
    return command, measured


def _internal(values: NDArray[Any], scale: ResolvedScale) -> NDArray[np.float64]:
    assert scale.scale is not None
    return scale.scale.to_internal(values)
