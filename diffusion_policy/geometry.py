"""Poses and rotations, on top of SciPy.

A pose is seven numbers: x y z in meters, then a quaternion qx qy qz qw (scalar last), in the robot's base frame.
q and -q are the same rotation; distances here respect that, component-wise differences do not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.errors import SpecError

FloatArray = NDArray[np.float64]

# How far from 1 the norm of a unit quaternion may be. Quaternions that the real robot records and predicts have norms
# of 0.995-1.005, so the first applies to recordings and everything that becomes one. The second applies to what is
# served, logged or known only by its range: it may be rounded by a client, or smoothed component by component; the
# motion guard normalizes what it accepts.
RECORDED_NORM_SLACK = 0.02
SERVED_NORM_SLACK = 0.05


def align_quaternion_signs(quaternions: ArrayLike, reference: ArrayLike | None = None) -> FloatArray:
    """Choose the sign of each quaternion (N, 4) so that it is in the hemisphere of the one before it.

    Args:
        quaternions: (N, 4) xyzw.
        reference: (4,) that the first one is aligned to; the first keeps its sign without it.

    Returns:
        (N, 4): the same rotations without sign flips from one step to the next.
    """
    q = np.array(quaternions, dtype=np.float64)
    if len(q) == 0:
        return q
    dots = np.einsum("ij,ij->i", q[1:], q[:-1])
    first = 1.0 if reference is None or np.dot(q[0], np.asarray(reference)) >= 0 else -1.0
    signs = np.cumprod(np.concatenate([[first], np.where(dots < 0, -1.0, 1.0)]))
    return q * signs[:, None]


def geodesic_distance(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """Angle in radians of the rotation from a to b, both (..., 4) xyzw; 0 for q and -q. Norms need not be exactly 1.

    NaN if one of the two is not a rotation: zero, or not finite.
    """
    from scipy.spatial.transform import Rotation  # takes long to import, and help needs none

    first, second = np.broadcast_arrays(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
    one, other = first.reshape(-1, 4), second.reshape(-1, 4)
    rotations = np.isfinite(one).all(axis=1) & np.isfinite(other).all(axis=1) & one.any(axis=1) & other.any(axis=1)
    flat = np.full(len(one), np.nan)
    if rotations.any():
        turned = Rotation.from_quat(one[rotations]).inv() * Rotation.from_quat(other[rotations])
        flat[rotations] = turned.magnitude()
    return flat.reshape(first.shape[:-1])


def check_unit_quaternions(quaternions: ArrayLike, where: str, tolerance: float = RECORDED_NORM_SLACK) -> None:
    """Refuse quaternions (..., 4) whose norm is further than ``tolerance`` from 1.

    Raises:
        SpecError: names the first offender and its norm, in ``where``.
    """
    norms = np.linalg.norm(np.asarray(quaternions, dtype=np.float64), axis=-1).reshape(-1)
    off = np.flatnonzero(~(np.abs(norms - 1) <= tolerance))
    if off.size:
        raise SpecError(
            f"{where}: quaternion {off[0]} has norm {norms[off[0]]:.4f}; expected 1 within {tolerance} "
            f"({off.size} of {norms.size} are off); is this the rotation-vector layout?"
        )
