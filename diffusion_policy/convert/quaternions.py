"""One sign for each rotation: q and -q are the same, and a network that sees both must learn everything twice.

Within an episode each quaternion is given the sign nearer to the one before it; then the episode as a whole is
turned towards the hemisphere in which most of the dataset was recorded, so that as little as possible is changed.
Flipped components also stretch the range that the normaliser is fitted to, from the motion's to [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.geometry import align_quaternion_signs
from diffusion_policy.spec import ActionLayout


def majority_hemisphere(quaternions: Iterable[NDArray[np.floating]]) -> NDArray[np.float64]:
    """The direction (4,) about which rotations (N, 4) lie, with the sign that most of them were recorded with.

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


def turn_towards(
    poses: NDArray[np.float32], layout: ActionLayout, hemisphere: NDArray[np.float64]
) -> tuple[NDArray[np.float32], int]:
    """Poses (N, D) of one arm with continuous quaternion signs on the side of `hemisphere`, and how many flipped."""
    recorded = layout.rotations(poses)[:, 0]
    aligned = align_quaternion_signs(recorded)
    if (aligned @ hemisphere).sum() < 0:
        aligned = -aligned
    turned = layout.replaced(poses, rotations=aligned[:, None]).astype(poses.dtype)
    return turned, int((np.einsum("ij,ij->i", aligned, recorded) < 0).sum())
