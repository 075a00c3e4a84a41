"""Between two actions: positions and joints on a line, rotations on the shorter great arc, grippers in steps.

A control loop calls this hundreds of times a second, one pair at a time, so quaternions are plain numbers here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.spec import ActionLayout, SpecError

FloatArray = NDArray[np.float64]
# Below this angle between quaternions, in radians, the great arc is a line to within rounding.
_STRAIGHT = 1e-4


def check_interpolable(layout: ActionLayout) -> None:
    """Refuses a layout whose rotations are not quaternions, which messages never carry; SpecError."""
    other = [arm.name or "the arm" for arm in layout.arms if arm.representation not in (None, "quaternion")]
    if other:
        raise SpecError(
            f"rotations of {', '.join(other)} are no quaternions; expected names as in messages: qx qy qz qw"
        )


def interpolate(layout: ActionLayout, before: FloatArray, after: FloatArray, fraction: float) -> FloatArray:
    """Returns the action (D,) between two others (D,).

    Args:
        layout: of all three; rotations as quaternions of norm 1.
        before, after: at fraction 0 and 1.
        fraction: within 0 and 1. The grippers are those of ``after`` throughout: a command is not blended.

    Returns:
        (D,), quaternions in the hemisphere of ``before``.
    """
    found = before + (after - before) * fraction
    for arm in layout.arms:
        if arm.rotation:
            columns = list(arm.rotation)
            found[columns] = slerp(before[columns].tolist(), after[columns].tolist(), fraction)
        if arm.gripper:
            found[arm.gripper[0]] = after[arm.gripper[0]]
    return found


def slerp(before: Sequence[float], after: Sequence[float], fraction: float) -> list[float]:
    """Spherical linear interpolation of two unit quaternions (4,) the short way round (Shoemake 1985, SIGGRAPH).

    Returns:
        (4,) of norm 1, in the hemisphere of ``before``.
    """
    dot = sum(a * b for a, b in zip(before, after, strict=True))
    sign = 1.0 if dot >= 0 else -1.0
    angle = math.acos(min(1.0, abs(dot)))
    if angle < _STRAIGHT:
        mixed = [a + (sign * b - a) * fraction for a, b in zip(before, after, strict=True)]
    else:
        first, second = math.sin((1 - fraction) * angle), sign * math.sin(fraction * angle)
        mixed = [first * a + second * b for a, b in zip(before, after, strict=True)]
    norm = math.sqrt(sum(value * value for value in mixed))
    return [value / norm for value in mixed]
