"""What the numbers of an action mean, as data: stored in datasets and checkpoints, compared wherever two meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.errors import SpecError
from diffusion_policy.geometry import SERVED_NORM_SLACK
from diffusion_policy.spec.action_layout import ActionLayout, Arm, is_gripper_name, unit_of
from diffusion_policy.spec.names import (
    GRIPPER_CLOSED,
    GRIPPER_OPEN,
    POSE,
    POSE_GRIPPER,
    ROTVEC_WIDTH,
    SEMANTICS_VERSION,
    default_names,
)

# Widths of a gripper in the older layout, in meters: 0.03-0.08 on the real robot; a sensor's zero may be off.
_GRIPPER_WIDTHS = (-0.01, 0.2)

# Tolerance of a recorded quaternion's norm, and the norms that ranges may allow where nothing else is known.
_NORM_SLACK, _NARROW = 0.02, (0.8, 1.25)

# "named" is every layout that is known by names but has no word here: ActionLayout describes it.
Layout = Literal["xyz_quat", "xyz_quat_gripper", "xyz_rotvec_width", "named", "unknown"]


def action_semantics(names: Sequence[str] = POSE_GRIPPER, units: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the action numbers mean, as plain JSON: stored in dataset attributes and in checkpoints.

    Args:
        names: of the numbers.
        units: for numbers whose name does not imply one, such as joints.
    """
    listed = [(units or {}).get(name) or unit_of(name) for name in names]
    semantics: dict[str, Any] = {"version": SEMANTICS_VERSION, "names": list(names), "units": listed}
    layout = find_layout(names, units)
    arms = () if layout is None else layout.arms
    is_other = layout is not None and (layout.has_joints or layout.is_game)
    if any(arm.has_pose for arm in arms) or not is_other:
        semantics["pose"] = "absolute end-effector pose in the robot's base frame"
    if any(arm.representation == "quaternion" for arm in arms):
        semantics["quaternion_order"] = "xyzw"
    if any(is_gripper_name(name) for name in names):
        semantics["gripper"] = {"open": GRIPPER_OPEN, "closed": GRIPPER_CLOSED}
    return semantics


def find_layout(names: Sequence[str], units: Mapping[str, str] | None = None) -> ActionLayout | None:
    """The layout of a vector; None if it has only part of a position, so is not a pose (a point on a table: x, y)."""
    try:
        return ActionLayout.of(names, units)
    except SpecError:
        return None


def is_game(names: Sequence[str]) -> bool:
    """Whether a vector is what a game's player does, and no robot's action."""
    layout = find_layout(names)
    return layout is not None and layout.is_game


def arms_of(names: Sequence[str], units: Mapping[str, str] | None = None) -> tuple[Arm, ...]:
    """The arms of a vector; empty if it has no layout."""
    layout = find_layout(names, units)
    return () if layout is None else layout.arms


def with_units(layout: ActionLayout, semantics: Mapping[str, Any] | None) -> ActionLayout:
    """The layout with units from data or a checkpoint, for numbers whose unit is unknown."""
    known = {} if semantics is None else _units_by_name(semantics, "action_semantics")
    return ActionLayout.of(
        layout.names,
        {
            name: known.get(name, unit) if unit == "unknown" else unit
            for name, unit in zip(layout.names, layout.units, strict=True)
        },
    )


def check_semantics(found: Mapping[str, Any] | None, expected: Mapping[str, Any], where: str) -> None:
    """Refuse data whose meaning differs from what is expected of it.

    A dimension that only one side has is not a contradiction (a pose-only policy reads pose + gripper data by name),
    nor is a unit that only one side gives; the same name with another unit, another quaternion order or another gripper
    polarity is. ``found`` is None for unlabeled files of the predecessor: there is nothing to check.

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
        if found_units[name] != expected_units[name] and "unknown" not in (found_units[name], expected_units[name]):
            raise SpecError(f"{where}: {name} is in {found_units[name]!r}, expected {expected_units[name]!r}")
    if expected_units and not found_units.keys() & expected_units.keys():
        raise SpecError(f"{where}: dimensions {list(found_units)} share no name with {list(expected_units)}")


def _units_by_name(semantics: Mapping[str, Any], where: str) -> dict[str, str]:
    names, units = semantics.get("names", ()), semantics.get("units", ())
    if len(names) != len(units):
        raise SpecError(f"{where}: {len(names)} names {list(names)} but {len(units)} units {list(units)}")
    return dict(zip(names, units, strict=True))


def layout_of_statistics(names: Sequence[str], minimum: Sequence[float], maximum: Sequence[float]) -> Layout:
    """The layout of numbers with these names and ranges: by names that someone chose, else by the ranges."""
    layout = find_layout(names) if tuple(names) not in (POSE, POSE_GRIPPER, ROTVEC_WIDTH) else None
    is_named = tuple(names) != default_names(len(names))
    known = layout is not None and bool(layout.motion_columns or layout.has_gripper or is_named)
    return "named" if known else layout_from_range(minimum, maximum)


def layout_from_range(minimum: Sequence[float], maximum: Sequence[float]) -> Layout:
    """Tell the layouts of an action or pose vector apart by the range of each dimension.

    A quaternion's four numbers have norm 1 at every step, so the unit sphere passes through their box of ranges. In the
    rotation-vector layout the seventh number is a width of a few centimeters, and a gripper that points down has an
    angle near pi.
    """
    low, high = np.asarray(minimum, dtype=np.float64), np.asarray(maximum, dtype=np.float64)
    if low.shape != high.shape or low.shape not in ((7,), (8,)) or not (np.isfinite(low) & np.isfinite(high)).all():
        return "unknown"
    if _holds_unit_quaternions(low[3:7], high[3:7]):
        return "xyz_quat" if low.size == 7 else "xyz_quat_gripper"
    if low.size == 7 and is_gripper_width(low[6], high[6]):
        return "xyz_rotvec_width"
    return "unknown"


def sign_of_quaternion(statistics: Mapping[str, Sequence[float]]) -> str:
    """Why the numbers 4 to 7 of a vector of 7 or 8 without names look like a unit quaternion; "" if they do not.

    With mean and std the test is sharp: over all steps, the mean of the squared norm is the sum of mean^2 + std^2,
    which is 1 for unit quaternions. Ranges alone show it only where they restrict the norm enough. Ranges of -1..1 or
    0..1, which programs also write as placeholders, show nothing; and nothing distinguishes xyzw from wxyz.

    Args:
        statistics: (7,) or (8,) each: min and max, and mean and std if known.
    """
    numbers = {name: np.asarray(values, dtype=np.float64) for name, values in statistics.items()}
    if any(values.shape not in ((7,), (8,)) or not np.isfinite(values).all() for values in numbers.values()):
        return ""
    part = {name: values[3:7] for name, values in numbers.items()}
    nearest, farthest = _norms_within(part["min"], part["max"])
    if nearest > 1 + _NORM_SLACK or farthest < 1 - _NORM_SLACK:
        return ""
    if {"mean", "std"} <= part.keys():
        squares = float(np.sum(part["mean"] ** 2 + part["std"] ** 2))
        is_inside = bool(((part["mean"] >= part["min"]) & (part["mean"] <= part["max"])).all())
        likely, why = is_inside and abs(squares - 1) <= _NORM_SLACK, f"squared norm is {squares:.2f} on average"
    else:
        likely = nearest >= _NARROW[0] and farthest <= _NARROW[1]
        why = f"ranges allow norms of {nearest:.2f} to {farthest:.2f} only"
    return f"numbers 4 to 7 look like a unit quaternion: their {why}" if likely else ""


def is_gripper_width(low: float, high: float) -> bool:
    """Whether a number that ranges from `low` to `high` can be the width of a gripper in meters."""
    return bool(low >= _GRIPPER_WIDTHS[0] and high <= _GRIPPER_WIDTHS[1])


def _holds_unit_quaternions(low: NDArray[np.float64], high: NDArray[np.float64]) -> bool:
    """Whether the unit sphere passes through a box of four ranges, and the box stays near it."""
    nearest, farthest = _norms_within(low, high)
    shell = 1 - SERVED_NORM_SLACK, 1 + SERVED_NORM_SLACK
    largest = max(np.abs(low).max(), np.abs(high).max())
    return bool(nearest <= shell[1] and farthest >= shell[0] and largest <= shell[1])


def _norms_within(low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[float, float]:
    """The least and the greatest norm of the vectors in a box."""
    nearest = np.where((low <= 0) & (high >= 0), 0.0, np.minimum(np.abs(low), np.abs(high)))
    return float(np.linalg.norm(nearest)), float(np.linalg.norm(np.maximum(np.abs(low), np.abs(high))))
