"""Whether a checkpoint was trained with q where a dataset has -q: the same rotations, far outside its range."""

from __future__ import annotations

import numpy as np

from diffusion_policy.diagnose.checkpoint_evidence import CheckpointEvidence
from diffusion_policy.diagnose.dataset_evidence import DatasetEvidence
from diffusion_policy.diagnose.findings import Finding, ok
from diffusion_policy.spec import find_layout

# Ranges differ a little from one recording day to the next.
SLACK = 0.05


def quaternion_sign(checkpoint: CheckpointEvidence, dataset: DatasetEvidence) -> Finding | None:
    """Compares the range of the dataset's quaternions, and of their negatives, with the normalizer's range.

    None if either has no quaternions, or if neither sign fits better: then the rotations differ, not their sign.
    """
    fitted, layout = checkpoint.statistics.get("action"), find_layout(dataset.action_names)
    if checkpoint.spec is not None and checkpoint.spec.robot != checkpoint.spec:  # other rotations, or relative ones
        return None
    arms = () if layout is None else layout.arms
    quaternions = [list(arm.rotation) for arm in arms if arm.representation == "quaternion"]
    if fitted is None or not quaternions or len(fitted.low) <= max(map(max, quaternions)):
        return None
    signs = []
    for columns in quaternions:
        low, high, data_low, data_high = (
            np.asarray(end)[columns] for end in (fitted.low, fitted.high, dataset.low, dataset.high)
        )
        signs.append((_beyond(data_low, data_high, low, high), _beyond(-data_high, -data_low, low, high)))
    as_is, turned = max(signs, key=lambda both: both[0] - both[1])  # the arm that fits the other sign best
    if turned + SLACK < as_is:
        evidence = (
            f"the checkpoint's normalizer was fitted on the other quaternion sign: the dataset exceeds "
            f"its range by {as_is:.2f}, with flipped signs by {turned:.2f}"
        )
        remedy = (
            "convert with --append to the checkpoint's training set, or with --quaternion-sign keep if "
            "the signs in that set were kept; otherwise train with normalizer=refit"
        )
        return Finding("quaternion-sign", "warning", evidence, remedy, about=checkpoint.path)
    if as_is + SLACK < turned:
        return ok(
            "quaternion-sign",
            "the dataset has the quaternion sign that the checkpoint was trained with",
            checkpoint.path,
        )
    return None


def _beyond(data_low: np.ndarray, data_high: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """Returns how far a box reaches outside another, at most."""
    return float(max(0.0, (low - data_low).max(), (data_high - high).max()))
