"""One sign for each rotation: q and -q are the same rotation, and a network that sees both must learn everything twice.

Within an episode each quaternion gets the sign that is nearer to the previous one; then the episode as a whole is
turned toward the hemisphere in which most of the dataset was recorded, so that as few as possible change.
Flips also stretch the range that the normalizer is fitted to, from the motion's range to [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.geometry import align_quaternion_signs
from diffusion_policy.spec import ActionLayout


def majority_hemisphere(quaternions: Iterable[NDArray[np.floating]]) -> NDArray[np.float64]:
    """Returns the direction (4,) around which rotations (N, 4) cluster, with the sign that most were recorded with.

    The axis is the principal one of sum(q q^T), which does not depend on signs (Markley et al., "Averaging
    Quaternions", 2007).
    """
    scatter, total = np.zeros((4, 4)), np.zeros(4)
    for batch in quaternions:
        q = np.asarray(batch, dtype=np.float64)
        scatter += q.T @ q
        total += q.sum(axis=0)
    axis = np.linalg.eigh(scatter)[1][:, -1]
    return -axis if np.dot(axis, total) < 0 else axis


def turn_toward(
    poses: NDArray[np.float32], layout: ActionLayout, hemisphere: NDArray[np.float64]
) -> tuple[NDArray[np.float32], int]:
    """Returns poses with continuous quaternion signs, each rotation in its hemisphere, and how many were flipped.

    Args:
        poses: (N, D) poses.
        layout: layout of the D numbers, with R rotations.
        hemisphere: (4,) for one rotation, or (R, 4).
    """
    recorded = layout.rotations(poses)
    means = np.broadcast_to(hemisphere, recorded.shape[1:])
    aligned = np.stack([align_quaternion_signs(recorded[:, i]) for i in range(len(means))], axis=1)
    aligned = np.where(np.einsum("nri,ri->r", aligned, means)[:, None] < 0, -aligned, aligned)
    turned = layout.replaced(poses, rotations=aligned).astype(poses.dtype)
    return turned, int((np.einsum("nri,nri->nr", aligned, recorded) < 0).sum())
