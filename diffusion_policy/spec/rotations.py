"""Representations of a rotation, by name, each converted to and from quaternions (xyzw)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.errors import SpecError
from diffusion_policy.spec.names import POSE

FloatArray = NDArray[np.float64]
Representation = Literal["quaternion", "rotation_vector", "rotation_6d_rows", "rotation_6d_columns"]

ROTATIONS: dict[Representation, tuple[str, ...]] = {
    "quaternion": POSE[3:],
    "rotation_vector": ("rx", "ry", "rz"),
    "rotation_6d_rows": ("r11", "r12", "r13", "r21", "r22", "r23"),
    "rotation_6d_columns": ("r11", "r21", "r31", "r12", "r22", "r32"),
}
IN_WORDS = {
    "quaternion": "quaternion (xyzw)",
    "rotation_vector": "rotation vector",
    "rotation_6d_rows": "6-D rotation (rows)",
    "rotation_6d_columns": "6-D rotation (columns)",
}
# A quaternion or matrix row shorter than this is not a rotation.
_SHORTEST = 1e-6


def rotation_class() -> Any:
    """SciPy's class of rotations; importing it takes as long as all else that the help of a command needs."""
    from scipy.spatial.transform import Rotation

    return Rotation


def to_quaternions(values: FloatArray, kind: Representation | None) -> FloatArray:
    """Rotations (..., numbers of the representation) -> (..., 4) xyzw; NaN where they are invalid (zero, not finite).

    Quaternions are returned unchanged, norm included.
    """
    if kind == "quaternion":
        return values
    flat = values.reshape(-1, values.shape[-1])
    quaternions = np.full((len(flat), 4), np.nan)
    finite = np.isfinite(flat).all(axis=1)
    if kind == "rotation_vector":
        if finite.any():
            quaternions[finite] = rotation_class().from_rotvec(flat[finite]).as_quat()
    else:
        matrices = _orthonormal(flat, transpose=kind == "rotation_6d_columns")
        finite &= np.isfinite(matrices).all(axis=(1, 2))
        if finite.any():
            quaternions[finite] = rotation_class().from_matrix(matrices[finite]).as_quat()
    return quaternions.reshape(*values.shape[:-1], 4)


def _orthonormal(six: FloatArray, *, transpose: bool) -> FloatArray:
    """Matrices (N, 3, 3) whose first two rows span those of (N, 6), by Gram-Schmidt; NaN if they span no plane."""
    with np.errstate(invalid="ignore", divide="ignore"):
        first = _unit_length(six[:, :3])
        second = _unit_length(six[:, 3:] - (first * six[:, 3:]).sum(axis=1, keepdims=True) * first)
    matrices = np.stack([first, second, np.cross(first, second)], axis=1)
    return matrices.transpose(0, 2, 1) if transpose else matrices


def _unit_length(vectors: FloatArray) -> FloatArray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(norms > _SHORTEST, vectors / norms, np.nan)


def from_quaternions(quaternions: FloatArray, kind: Representation) -> FloatArray:
    """Quaternions (..., 4) xyzw -> (..., numbers of the representation).

    Raises:
        SpecError: one is not a rotation, and another representation is requested.
    """
    if kind == "quaternion":
        return quaternions
    rotation = scipy_rotation(quaternions)
    if kind == "rotation_vector":
        return rotation.as_rotvec().reshape(*quaternions.shape[:-1], 3)
    matrices = rotation.as_matrix()
    if kind == "rotation_6d_columns":
        matrices = matrices.transpose(0, 2, 1)
    return matrices[:, :2].reshape(*quaternions.shape[:-1], 6)


def are_rotations(quaternions: FloatArray) -> NDArray[np.bool_]:
    """(...) bool, which of (..., 4) are rotations: finite and nonzero."""
    norms = np.linalg.norm(quaternions, axis=-1)
    return np.asarray((norms > _SHORTEST) & np.isfinite(norms))


def scipy_rotation(quaternions: FloatArray) -> Any:
    """SciPy's rotations of (..., 4), flattened.

    Raises:
        SpecError: one is not a rotation.
    """
    flat = np.asarray(quaternions, dtype=np.float64).reshape(-1, 4)
    sound = are_rotations(flat)
    if not sound.all():
        raise SpecError(f"{flat[np.flatnonzero(~sound)[0]]} is no rotation; expected a unit quaternion")
    return rotation_class().from_quat(flat)
