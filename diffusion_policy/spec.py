"""What one step of the robot *is*: keys, shapes, units, order and polarity.

Every room reads this module and none restates it. It holds

* the names of action and state dimensions (``x y z qx qy qz qw gripper``): two layouts of seven numbers exist in this
  field, and only names tell them apart;
* the semantics that travel with data, as attributes of a dataset and entries of a checkpoint;
* the only reader of ``shape_meta``;
* the only code that turns raw camera frames and states into policy input, for training and serving alike.

Conventions: positions in metres in the robot's base frame, quaternions scalar-last (xyzw), gripper 1 = open and
0 = closed. Image sizes are (width, height) as arguments, (H, W, C) as arrays and (C, H, W) in configs.

Legend of shapes: To observation steps, H W image height and width, D dimensions of a low-dimensional key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from diffusion_policy.errors import WorkspaceError

POSE = ("x", "y", "z", "qx", "qy", "qz", "qw")
GRIPPER = "gripper"
INTERVENTION = "intervention"  # of a recorded step, as in LeRobot: true where somebody drives in place of the policy
POSE_GRIPPER = (*POSE, GRIPPER)
ROTVEC_WIDTH = ("x", "y", "z", "rx", "ry", "rz", "width")

UNITS = {
    **dict.fromkeys(("x", "y", "z", "width"), "m"),
    **dict.fromkeys(("rx", "ry", "rz"), "rad"),
    **dict.fromkeys(("qx", "qy", "qz", "qw", "gripper"), "1"),
}
GRIPPER_OPEN = 1.0
GRIPPER_CLOSED = 0.0
SEMANTICS_VERSION = 1

# Quaternions that the real robot records and predicts have norms of 0.995-1.005; a box of ranges is judged more widely.
_QUATERNION_NORM_SLACK = 0.05
# Width of the gripper in the older layout, in metres; 0.03-0.08 on the real robot.
_WIDEST_GRIPPER = 0.2

ImageArray = NDArray[np.uint8]
Layout = Literal["xyz_quat", "xyz_quat_gripper", "xyz_rotvec_width", "unknown"]


class SpecError(WorkspaceError, ValueError):
    """A step, a shape_meta or a set of semantics is not what it must be."""


@dataclass(frozen=True)
class ObsField:
    """One observation key.

    Attributes:
        key: name in ``shape_meta.obs`` and in the dataset.
        shape: of one step; (C, H, W) for images, (D,) for low-dimensional keys.
        kind: "rgb" or "low_dim".
        names: of the D dimensions; empty for images.
    """

    key: str
    shape: tuple[int, ...]
    kind: Literal["rgb", "low_dim"]
    names: tuple[str, ...] = ()

    @property
    def width_height(self) -> tuple[int, int]:
        """(width, height) of an image key, the order in which OpenCV and command lines take sizes."""
        _, height, width = self.shape
        return width, height


@dataclass(frozen=True)
class StepSpec:
    """One step: its observation keys, in the order of ``shape_meta.obs``, and the names of its action dimensions."""

    obs: tuple[ObsField, ...]
    action_names: tuple[str, ...]

    @property
    def action_dim(self) -> int:
        """Width of one action."""
        return len(self.action_names)

    @property
    def rgb(self) -> tuple[ObsField, ...]:
        """The image keys, in order."""
        return tuple(field for field in self.obs if field.kind == "rgb")

    @property
    def low_dim(self) -> tuple[ObsField, ...]:
        """The low-dimensional keys, in order."""
        return tuple(field for field in self.obs if field.kind == "low_dim")

    def field(self, key: str) -> ObsField:
        """The field of that key; SpecError if there is none."""
        for field in self.obs:
            if field.key == key:
                return field
        raise SpecError(f"no observation key {key!r}; shape_meta has {[field.key for field in self.obs]}")


def read_shape_meta(shape_meta: Mapping[str, Any]) -> StepSpec:
    """Read a ``shape_meta`` mapping ({"obs": {key: {"shape", "type", "names"?}}, "action": {"shape", "names"?}}).

    Without ``names`` seven action dimensions are a pose and eight a pose and a gripper, as in every released config;
    other widths are called a0, a1, ...

    Raises:
        SpecError: an entry is missing, of the wrong type, or names and shape disagree.
    """
    for entry in ("obs", "action"):
        if not isinstance(shape_meta.get(entry), Mapping):
            raise SpecError(f"shape_meta has no {entry!r} mapping; it has {sorted(map(str, shape_meta))}")
    fields = tuple(_read_field(str(key), entry) for key, entry in shape_meta["obs"].items())
    if not fields:
        raise SpecError("shape_meta.obs is empty; a policy needs at least one observation key")
    action = shape_meta["action"]
    (width,) = _read_shape(action, "shape_meta.action", n_dims=1)
    return StepSpec(fields, _read_names(action, width, "shape_meta.action", prefix="a"))


def _read_field(key: str, entry: Any) -> ObsField:
    where = f"shape_meta.obs.{key}"
    if not isinstance(entry, Mapping):
        raise SpecError(f"{where} is {entry!r}; expected a mapping with shape and type")
    kind = entry.get("type", "low_dim")
    if kind == "rgb":
        return ObsField(key, _read_shape(entry, where, n_dims=3), "rgb")
    if kind == "low_dim":
        shape = _read_shape(entry, where, n_dims=1)
        return ObsField(key, shape, "low_dim", _read_names(entry, shape[0], where, prefix=f"{key}."))
    raise SpecError(f"{where}.type is {kind!r}; expected 'rgb' or 'low_dim'")


def _read_shape(entry: Mapping[str, Any], where: str, n_dims: int) -> tuple[int, ...]:
    shape = entry.get("shape")
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise SpecError(f"{where}.shape is {shape!r}; expected a list of {n_dims} positive integers")
    if len(shape) != n_dims or not all(isinstance(n, int) and n > 0 for n in shape):
        raise SpecError(f"{where}.shape is {list(shape)}; expected {n_dims} positive integers")
    return tuple(shape)


def _read_names(entry: Mapping[str, Any], width: int, where: str, prefix: str) -> tuple[str, ...]:
    names = entry.get("names")
    if names is None:
        return default_names(width, prefix)
    names = tuple(str(name) for name in names)
    if len(names) != width or len(set(names)) != width:
        raise SpecError(f"{where}.names is {list(names)}; expected {width} different names, as its shape says")
    return names


def default_names(width: int, prefix: str = "a") -> tuple[str, ...]:
    """Names of an unnamed vector: pose for seven, pose and gripper for eight, gripper for one, else numbered."""
    known = {len(POSE): POSE, len(POSE_GRIPPER): POSE_GRIPPER, 1: (GRIPPER,)}
    return known.get(width) or tuple(f"{prefix}{i}" for i in range(width))


def action_semantics(names: Sequence[str] = POSE_GRIPPER) -> dict[str, Any]:
    """What the action numbers mean, as plain JSON: stored in dataset attributes and in checkpoints."""
    semantics: dict[str, Any] = {
        "version": SEMANTICS_VERSION,
        "names": list(names),
        "units": [UNITS.get(name, "unknown") for name in names],
        "pose": "absolute end-effector pose in the robot's base frame",
    }
    if set(POSE) <= set(names):
        semantics["quaternion_order"] = "xyzw"
    if GRIPPER in names:
        semantics["gripper"] = {"open": GRIPPER_OPEN, "closed": GRIPPER_CLOSED}
    return semantics


def check_semantics(found: Mapping[str, Any] | None, expected: Mapping[str, Any], where: str) -> None:
    """Refuse data whose meaning differs from what is expected of it.

    A dimension that only one side has is no contradiction (a pose-only policy reads pose + gripper data by name); the
    same name with another unit, another quaternion order or another gripper polarity is. ``found`` None: unlabelled
    files of the predecessor, nothing to check.

    Raises:
        SpecError: names the entry that differs, in ``where``.
    """
    if found is None:
        return
    for entry in ("quaternion_order", "gripper", "pose"):
        if entry in found and entry in expected and found[entry] != expected[entry]:
            raise SpecError(
                f"{where}: {entry} is {found[entry]!r}, expected {expected[entry]!r}; "
                "convert the data, or correct its label"
            )
    found_units, expected_units = _units_by_name(found, where), _units_by_name(expected, where)
    for name in found_units.keys() & expected_units.keys():
        if found_units[name] != expected_units[name]:
            raise SpecError(f"{where}: {name} is in {found_units[name]!r}, expected {expected_units[name]!r}")
    if expected_units and not found_units.keys() & expected_units.keys():
        raise SpecError(f"{where}: dimensions {list(found_units)} share no name with {list(expected_units)}")


def _units_by_name(semantics: Mapping[str, Any], where: str) -> dict[str, str]:
    names, units = semantics.get("names", ()), semantics.get("units", ())
    if len(names) != len(units):
        raise SpecError(f"{where}: {len(names)} names {list(names)} but {len(units)} units {list(units)}")
    return dict(zip(names, units, strict=True))


def layout_from_range(minimum: Sequence[float], maximum: Sequence[float]) -> Layout:
    """Tell the layouts of an action or pose vector apart by the range of each dimension.

    A quaternion's four numbers have norm 1 at every step, so the unit sphere passes through their box of ranges. In the
    rotation-vector layout the seventh number is a width of centimetres, and a gripper that points down has an angle
    near pi.
    """
    low, high = np.asarray(minimum, dtype=np.float64), np.asarray(maximum, dtype=np.float64)
    if low.shape != high.shape or low.shape not in ((7,), (8,)) or not (np.isfinite(low) & np.isfinite(high)).all():
        return "unknown"
    if _holds_unit_quaternions(low[3:7], high[3:7]):
        return "xyz_quat" if low.size == 7 else "xyz_quat_gripper"
    if low.size == 7 and low[6] >= -0.01 and high[6] <= _WIDEST_GRIPPER:
        return "xyz_rotvec_width"
    return "unknown"


def _holds_unit_quaternions(low: NDArray[np.float64], high: NDArray[np.float64]) -> bool:
    """Whether the unit sphere passes through a box of four ranges, and the box stays near it."""
    nearest = np.where((low <= 0) & (high >= 0), 0.0, np.minimum(np.abs(low), np.abs(high)))
    farthest = np.maximum(np.abs(low), np.abs(high))
    shell = 1 - _QUATERNION_NORM_SLACK, 1 + _QUATERNION_NORM_SLACK
    return bool(
        np.linalg.norm(nearest) <= shell[1] and np.linalg.norm(farthest) >= shell[0] and farthest.max() <= shell[1]
    )


def policy_observation(spec: StepSpec, raw: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Turn observed steps into policy input: the one way in, for training and for serving.

    Args:
        spec: what the policy expects.
        raw: per key; images (..., H, W, 3) uint8 RGB at the policy's size, low-dimensional keys (..., D), finite.
            Leading dimensions are free: (To,), (B, To) or none. Keys that ``spec`` does not name are ignored.

    Returns:
        per key of ``spec``, C-contiguous: images (..., 3, H, W) uint8, low-dimensional keys (..., D) float32.

    Raises:
        SpecError: a key is missing, or has another shape, dtype or a value that is not finite.
    """
    missing = [field.key for field in spec.obs if field.key not in raw]
    if missing:
        raise SpecError(f"observation lacks {missing}; it has {sorted(raw)}")
    return {field.key: _policy_entry(field, np.asarray(raw[field.key])) for field in spec.obs}


def _policy_entry(field: ObsField, value: NDArray[Any]) -> NDArray[Any]:
    if field.kind == "rgb":
        channels, height, width = field.shape
        if value.dtype != np.uint8 or value.shape[-3:] != (height, width, channels):
            raise SpecError(
                f"observation {field.key!r} is {value.dtype} {value.shape}; "
                f"expected uint8 (..., {height}, {width}, {channels})"
            )
        return _channels_first(value)
    if value.shape[-1:] != field.shape or not np.issubdtype(value.dtype, np.number):
        raise SpecError(
            f"observation {field.key!r} is {value.dtype} {value.shape}; expected numbers (..., {field.shape[0]})"
        )
    if not np.isfinite(value).all():
        raise SpecError(f"observation {field.key!r} holds NaN or infinity")
    return np.ascontiguousarray(value, dtype=np.float32)


def _channels_first(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., H, W, C) -> (..., C, H, W) in new memory; OpenCV takes an eighth of numpy's time for it."""
    *leading, height, width, channels = images.shape
    planes = np.empty((*leading, channels, height, width), dtype=np.uint8)
    sources = np.ascontiguousarray(images).reshape(-1, height, width, channels)
    for source, target in zip(sources, planes.reshape(-1, channels, height, width), strict=True):
        cv2.split(source, list(target))
    return planes


def episode_number(name: str) -> int | None:
    """The number at the end of an episode folder's name ("episode_0066" -> 66), or None."""
    match = re.search(r"(\d+)$", name)
    return int(match.group(1)) if match else None


def __getattr__(name: str) -> Any:
    """`decode_jpeg` and `resize_frame` had their home here; they are in `diffusion_policy.images`."""
    if name in ("decode_jpeg", "resize_frame"):
        from diffusion_policy import images

        return getattr(images, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
