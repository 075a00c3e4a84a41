"""Converts columns of recordings to the dataset's arrays, as a mapping defines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.replay_buffer import GRIPPER_KEY, POSE_KEY
from diffusion_policy.gripper_scale import GripperScale
from diffusion_policy.recording.contract import ArrayNames
from diffusion_policy.recording.mapping import WIDTHS, Arms, MappingError, Part, RecordingMapping
from diffusion_policy.spec import GRIPPER, POSE, SpecError
from diffusion_policy.spec.rotations import Representation, rotation_class, to_quaternions

JOINTS_KEY = "robot_joints"
OTHER_KEY = "robot_state"
_KEYS = {"position": POSE_KEY, "rotation": POSE_KEY, "gripper": GRIPPER_KEY, "joints": JOINTS_KEY, "other": OTHER_KEY}
_PER_UNIT = {"m": 1.0, "cm": 0.01, "mm": 0.001}
_REPRESENTATIONS: dict[str, Representation] = {
    "rotation_vector": "rotation_vector",
    "rotation_6d_rows": "rotation_6d_rows",
    "rotation_6d_columns": "rotation_6d_columns",
}
# Joint names that are kept: those without an arm before a dot, or in LeRobot's form for motors.
_PLAIN = re.compile(r"[A-Za-z0-9_]+(\.pos)?")


@dataclass(frozen=True)
class Column:
    """Columns of a feature that become numbers of one array.

    Attributes:
        part: the part of the arm that they describe.
        at: their columns in the feature.
        names: their names in the dataset, one for each resulting number.
    """

    part: Part
    at: tuple[int, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class MappedArrays:
    """A mapping that fits the features of some recordings.

    Attributes:
        action: in the order of the action's numbers.
        states: by key of the dataset.
    """

    action: tuple[Column, ...]
    states: Mapping[str, tuple[Column, ...]]

    @classmethod
    def of(cls, mapping: RecordingMapping, features: Mapping[str, Sequence[str] | int], where: str) -> MappedArrays:
        """Fits a mapping to features.

        Args:
            mapping: the mapping.
            features: names of each feature's numbers, or their count if they have no names.
            where: location, for errors.

        Raises:
            MappingError: a feature or a column does not exist, or a part has another width.
        """
        states: dict[str, list[Column]] = {}
        for column in _columns(mapping.state, features, f"{where}: state"):
            states.setdefault(_KEYS[column.part.kind], []).append(column)
        arrays = cls(
            tuple(_columns(mapping.action, features, f"{where}: action")),
            {key: tuple(columns) for key, columns in states.items()},
        )
        try:
            for names in (arrays.names.action, *arrays.names.states.values()):
                ArrayNames({}, names, arrays.names.units).action_layout  # noqa: B018
        except SpecError as error:
            raise MappingError(f"{where}: {error}") from error
        return arrays

    @property
    def names(self) -> ArrayNames:
        """The arrays of the dataset, and the names of their numbers."""
        units = {
            name: column.part.unit
            for column in (*self.action, *(column for columns in self.states.values() for column in columns))
            for name in column.names
            if column.part.kind in ("joints", "other") and column.part.unit is not None
        }
        return ArrayNames({key: _names(columns) for key, columns in self.states.items()}, _names(self.action), units)

    def gripper_columns(self) -> list[tuple[str, Column | None, Column | None]]:
        """The grippers by name, with the columns of their command and measurement, each None if absent."""
        commanded, measured = _grippers(self.action), _grippers(self.states.get(GRIPPER_KEY, ()))
        return [(name, commanded.get(name), measured.get(name)) for name in {**commanded, **measured}]


def _names(columns: Sequence[Column]) -> tuple[str, ...]:
    return tuple(name for column in columns for name in column.names)


def _grippers(columns: Sequence[Column]) -> dict[str, Column]:
    return {column.names[0]: column for column in columns if column.part.kind == "gripper"}


def _columns(arms: Arms, features: Mapping[str, Sequence[str] | int], where: str) -> list[Column]:
    result = []
    for arm, parts in arms.items():
        for part in parts:
            what = f"{where}.{arm}.{part.kind}" if arm else f"{where}.{part.kind}"
            at, recorded = _where(part, features, what)
            result.append(Column(part, at, _named(part, arm, recorded, what)))
    return result


def _where(part: Part, features: Mapping[str, Sequence[str] | int], what: str) -> tuple[tuple[int, ...], list[str]]:
    """Returns the columns of a part in its feature, and their names there."""
    feature = features.get(part.feature)
    if feature is None:
        raise MappingError(f"{what}: there is no feature {part.feature!r}; there are {', '.join(features)}")
    width = feature if isinstance(feature, int) else len(feature)
    names = [str(i) for i in range(width)] if isinstance(feature, int) else list(feature)
    at = []
    for column in range(width) if part.columns is None else part.columns:
        index = names.index(column) if isinstance(column, str) and column in names else column
        if not isinstance(index, int) or not 0 <= index < width:
            raise MappingError(f"{what}: {part.feature} has no column {column!r}; it has {', '.join(names[:40])}")
        at.append(index)
    wanted = {"position": 3, "gripper": 1}.get(part.kind, WIDTHS.get(part.rotation or "", 6))
    if part.kind in ("position", "gripper", "rotation") and len(at) != wanted:
        raise MappingError(f"{what}: {len(at)} columns of {part.feature}; expected {wanted}: name them with columns")
    return tuple(at), [names[index] for index in at]


def _named(part: Part, arm: str, recorded: Sequence[str], what: str) -> tuple[str, ...]:
    prefix = f"{arm}." if arm else ""
    if part.kind in ("position", "rotation"):
        return tuple(prefix + name for name in (POSE[:3] if part.kind == "position" else POSE[3:]))
    if part.kind == "gripper":
        return (prefix + GRIPPER,)
    if part.names is not None and len(part.names) != len(recorded):
        raise MappingError(f"{what}.names has {len(part.names)} names for {len(recorded)} columns")
    own = part.names or recorded
    if not all(_PLAIN.fullmatch(name) and not name.isdigit() for name in own):
        own = [f"{'joint' if part.kind == 'joints' else 'state'}_{i}" for i in range(1, len(recorded) + 1)]
    return tuple(prefix + (name.removesuffix(".pos") if arm else name) for name in own)


def values_of(
    columns: Sequence[Column], rows: Mapping[str, NDArray[Any]], scales: Mapping[str, GripperScale]
) -> NDArray[np.float32]:
    """Returns (N, D) float32 values of an array.

    Args:
        columns: the array's columns.
        rows: (N, width) of each feature.
        scales: scales of grippers, by their names in the dataset.

    Numbers that need no conversion are returned as recorded.
    """
    parts = [_converted(column, rows[column.part.feature][:, list(column.at)], scales) for column in columns]
    return np.concatenate(parts, axis=1).astype(np.float32, copy=False)


def _converted(column: Column, values: NDArray[Any], scales: Mapping[str, GripperScale]) -> NDArray[Any]:
    part = column.part
    if part.kind == "position" and part.unit not in (None, "m"):
        return values.astype(np.float64) * _PER_UNIT[str(part.unit)]
    if part.kind == "rotation":
        return _quaternions(values, part)
    if part.kind == "gripper":
        scale = scales[column.names[0]]
        return values if scale.is_internal else np.asarray(scale.to_internal(values))
    return values


def _quaternions(values: NDArray[Any], part: Part) -> NDArray[Any]:
    if part.rotation == "quaternion_xyzw":
        return values
    if part.rotation == "quaternion_wxyz":
        return np.roll(values, -1, axis=1)
    numbers = values.astype(np.float64)
    if part.unit == "deg":
        numbers = np.radians(numbers)
    if part.rotation == "euler_xyz":
        return np.asarray(rotation_class().from_euler("xyz", numbers).as_quat())
    return to_quaternions(numbers, _REPRESENTATIONS[str(part.rotation)])
