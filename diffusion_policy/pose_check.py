"""Whether numbers called a pose really are one: x y z in meters, then a unit quaternion, scalar last.

Two recorders may both write eight numbers and mean different things: Euler angles, degrees, rotation vectors,
millimeters, scalar-first quaternions. The shape reveals nothing; norms and ranges mostly do. The converter, training,
evaluation and the data checks all use this one function; training starts only if it finds nothing.

One case cannot be detected from the numbers: quaternions that are scalar-first in both action and pose. A tool that
points down under one order points sideways, or up, under the other; ``tool_axis`` says where it points, so that a user
can see it.

Pure functions on arrays. N steps, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.geometry import RECORDED_NORM_SLACK
from diffusion_policy.spec import arms_of

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]
FaultCode = Literal["not-finite", "zero-quaternion", "quaternion-norm", "rotation", "quaternion-order", "position-unit"]

# Below this a quaternion has no direction.
_ZERO_NORM = 1e-3
# No arm on a table reaches further, in meters; 10 cm are 10 in centimeters and 100 in millimeters.
FARTHEST_M = 10.0
# Angles in radians stay within one turn, with some slack for unwrapped ones.
_TURN = 7.0
# Norms that hardly differ from one another indicate a scaled quaternion.
_SAME_NORM = 0.05
# Thresholds for two orders: median distance of the two arrays unchanged, and with one of them reordered.
_FAR_DEGREES, _NEAR_DEGREES = 40.0, 15.0


@dataclass(frozen=True)
class PoseFault:
    """What is wrong with a vector that is called a pose.

    Attributes:
        code: stable name.
        message: what was found, with its numbers and where.
        remedy: what to do.
    """

    code: FaultCode
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"


def pose_faults(
    vectors: ArrayLike, names: Sequence[str], what: str, episode_ends: Sequence[int] | NDArray[np.int64] | None = None
) -> tuple[PoseFault, ...]:
    """What is wrong with vectors whose dimensions have the names of a pose; empty if nothing is.

    Args:
        vectors: (N, D).
        names: (D,) of the dimensions; those that are not part of a pose are only checked for NaN.
        what: the array, for the messages ("data/action").
        episode_ends: (E,) exclusive, so that a step is named by its episode.
    """
    numbers = np.asarray(vectors, dtype=np.float64)
    at = _StepNames(what, len(numbers), episode_ends)
    finite: Mask = np.asarray(np.isfinite(numbers).all(axis=1))
    faults = []
    if not finite.all():
        count = int((~np.isfinite(numbers)).sum())
        faults.append(
            PoseFault(
                "not-finite", f"{what}: {count} numbers are NaN or infinite, {at.first(~finite)}", "cut these steps"
            )
        )
    sound = numbers[finite]
    if len(sound) == 0:
        return tuple(faults)
    for arm in arms_of(names):
        whose = f"{what}, {arm.name}" if arm.name else what
        if arm.position:
            faults += _position_faults(sound[:, list(arm.position)], whose)
        if arm.representation == "quaternion":
            at = _StepNames(whose, len(numbers), episode_ends)
            faults += _quaternion_faults(numbers[:, list(arm.rotation)], finite, at)
    return tuple(faults)


@dataclass(frozen=True)
class _StepNames:
    """Names steps for a message."""

    what: str
    n_steps: int
    ends: Sequence[int] | NDArray[np.int64] | None

    def first(self, bad: Mask) -> str:
        """Where the first of the bad steps is."""
        step = int(np.flatnonzero(bad)[0])
        if self.ends is None:
            return f"first at step {step}"
        episode = int(np.searchsorted(np.asarray(self.ends), step, side="right"))
        begin = int(self.ends[episode - 1]) if episode else 0
        return f"first at step {step - begin} of episode {episode}"


def _position_faults(positions: FloatArray, what: str) -> list[PoseFault]:
    reach = float(np.abs(positions).max())
    if reach <= FARTHEST_M:
        return []
    unit = "millimeters" if reach > 10 * FARTHEST_M else "centimeters or millimeters"
    message = f"{what}: positions reach {reach:.0f}, which cannot be meters for an arm: {unit}?"
    return [PoseFault("position-unit", message, "convert positions to meters")]


def _quaternion_faults(quaternions: FloatArray, finite: Mask, at: _StepNames) -> list[PoseFault]:
    norms = np.linalg.norm(np.where(finite[:, None], quaternions, 0), axis=1)
    zero, off = finite & (norms < _ZERO_NORM), finite & (np.abs(norms - 1) > RECORDED_NORM_SLACK)
    faults = []
    if zero.any():
        message = f"{at.what}: the quaternion is zero at {int(zero.sum())} of {at.n_steps} steps, {at.first(zero)}"
        faults.append(PoseFault("zero-quaternion", message, "a lost measurement is not a rotation: cut these steps"))
    off &= ~zero
    if not off.any():
        return faults
    share = float(off.sum() / max(1, int((finite & ~zero).sum())))
    low, high = float(norms[off].min()), float(norms[off].max())
    norm = f"{low:.3g}" if high - low < 1e-3 else f"{low:.3g} to {high:.3g}"
    if share <= 0.5:
        message = (
            f"{at.what}: the quaternion's norm is {norm} at {int(off.sum())} of {at.n_steps} steps, {at.first(off)}; "
            f"expected 1 within {RECORDED_NORM_SLACK}"
        )
        return [*faults, PoseFault("quaternion-norm", message, "these steps have no valid rotation: cut them")]
    kind = _kind_of_rotation(quaternions[finite & ~zero], norms[finite & ~zero])
    message = f"{at.what}: numbers 4 to 7 have norm {norm}, so they are not a unit quaternion: {kind}"
    return [*faults, PoseFault("rotation", message, "convert rotations to quaternions x y z w")]


def _kind_of_rotation(numbers: FloatArray, norms: FloatArray) -> str:
    """What four numbers that are not a quaternion look like."""
    angles, last = numbers[:, :3], numbers[:, 3]
    largest = float(np.abs(angles).max())
    if largest > _TURN and largest <= 400:
        return "they look like angles in degrees" + (" and a zero" if not last.any() else "")
    if largest <= _TURN and not last.any():
        return "they look like three angles in radians (Euler angles or a rotation vector) and a zero"
    if largest <= _TURN and last.min() >= -0.01 and last.max() <= 0.2:
        return "they look like a rotation vector (or Euler angles) and a gripper width in meters"
    if norms.std() < _SAME_NORM * norms.mean():
        return f"they look like quaternions scaled by {norms.mean():.3g}"
    if largest <= _TURN and np.isin(last.round(3), (-1, 0, 1)).all():
        return "they look like three angles in radians and a gripper"
    return "they look like three angles and another number"


def order_fault(action: ArrayLike, pose: ArrayLike, what: str) -> PoseFault | None:
    """Whether one of two arrays of rotations (N, 4) is scalar-first and the other is not; None if they agree.

    Commanded and measured rotations are close in the same order; if they are close only after one is reordered, they
    were recorded in different orders.
    """
    ours, theirs = (np.asarray(array, dtype=np.float64) for array in (action, pose))
    as_is = _median_degrees(ours, theirs)
    turned = (np.roll(array, -1, axis=1) for array in (ours, theirs))
    reordered = min(_median_degrees(one, other) for one, other in zip(turned, (theirs, ours), strict=True))
    if as_is < _FAR_DEGREES or reordered > _NEAR_DEGREES:
        return None
    message = (
        f"{what}: commanded and measured rotation are {as_is:.0f} degrees apart (median), and {reordered:.0f} if one "
        "of the two is scalar-first (w x y z)"
    )
    return PoseFault("quaternion-order", message, "write both as x y z w")


def _median_degrees(a: FloatArray, b: FloatArray) -> float:
    dots = np.abs((a * b).sum(axis=1)) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-9)
    return float(np.degrees(2 * np.arccos(np.clip(np.median(dots), 0, 1))))


def tool_axis(quaternions: ArrayLike, *, scalar_first: bool = False) -> FloatArray:
    """(3,) mean direction of the tool's z axis in the robot's base frame, for quaternions (N, 4) read in that order."""
    q = np.asarray(quaternions, dtype=np.float64)
    q = np.roll(q, -1, axis=1) if scalar_first else q
    norms = np.linalg.norm(q, axis=1, keepdims=True)
    x, y, z, w = (q[norms[:, 0] > _ZERO_NORM] / norms[norms[:, 0] > _ZERO_NORM]).T
    axis = np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)]).mean(axis=1)
    return np.asarray(axis / max(float(np.linalg.norm(axis)), 1e-9), dtype=np.float64)


def tilt_from_down(axis: FloatArray) -> float:
    """Degrees between a direction (3,) and straight down."""
    return float(np.degrees(np.arccos(np.clip(-axis[2], -1, 1))))
