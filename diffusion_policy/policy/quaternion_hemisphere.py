"""The sign of the quaternions in the training data: q and -q are one rotation, but not one input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.geometry import align_quaternion_signs
from diffusion_policy.moved import former_names
from diffusion_policy.spec import ObsField, StepSpec, arms_of
from diffusion_policy.spec.action_layout import Arm

FloatArray = NDArray[np.float64]


class QuaternionHemisphere:
    """Flips observed quaternions to the hemisphere in which they were recorded.

    Args:
        mean: (4,) mean quaternion in training, xyzw; None if there is none or signs were mixed: nothing is flipped.
    """

    def __init__(self, mean: FloatArray | None) -> None:
        self._mean = mean

    @classmethod
    def of(cls, spec: StepSpec, normalizer: Any, arm: str = "") -> QuaternionHemisphere:
        """A policy's hemisphere, from the statistics in its normalizer; ``arm``: its name if there are several."""
        for entry in spec.low_dim:
            columns = quaternion_columns(entry, arm)
            if columns:
                mean = normalizer[entry.key].get_input_stats()["mean"].detach().double().cpu().numpy()
                side = mean[columns]
                return cls(side if np.linalg.norm(side) > 0.1 else None)
        return cls(None)

    def turned(self, states: FloatArray, columns: Sequence[int]) -> FloatArray:
        """States (To, D) whose quaternions in ``columns`` are continuous and in that hemisphere; the rest unchanged."""
        if self._mean is None or not columns:
            return states
        columns, turned = list(columns), states.copy()
        turned[:, columns] = align_quaternion_signs(states[:, columns])
        if (turned[:, columns] @ self._mean).sum() < 0:
            turned[:, columns] *= -1
        return turned


class QuaternionHemispheres:
    """The hemispheres of a policy's arms.

    Args:
        spec: of the policy.
        normalizer: of the policy.
    """

    def __init__(self, spec: StepSpec, normalizer: Any) -> None:
        names = dict.fromkeys(arm.name for entry in spec.low_dim for arm in arms_of(entry.names))
        self._hemispheres = {name: QuaternionHemisphere.of(spec, normalizer, name) for name in names}

    def turned(self, states: FloatArray, arms: Sequence[Arm]) -> FloatArray:
        """States (To, D) of these arms, each quaternion continuous and in its hemisphere; other numbers unchanged."""
        for arm in arms:
            if arm.representation == "quaternion" and arm.name in self._hemispheres:
                states = self._hemispheres[arm.name].turned(states, arm.rotation)
        return states


def quaternion_columns(entry: ObsField, arm: str = "") -> list[int]:
    """Columns of an arm's quaternion (xyzw) in a low-dimensional entry; empty if it has none."""
    named = (each for each in arms_of(entry.names) if each.name == arm and each.representation == "quaternion")
    return next((list(each.rotation) for each in named), [])


__getattr__ = former_names(
    __name__, {"QuaternionSide": "QuaternionHemisphere", "QuaternionSides": "QuaternionHemispheres"}
)
