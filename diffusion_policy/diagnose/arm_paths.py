"""Where each arm is at every step of a dataset or of recordings.

Legend: N steps.
"""

from __future__ import annotations

import numpy as np

from diffusion_policy.dataset.replay_buffer import ACTION_KEY
from diffusion_policy.diagnose.steps import FloatArray, Steps, finite


def arm_paths(steps: Steps) -> dict[str, FloatArray]:
    """(N, 3) meters by name of the arm: measured positions, or the commanded ones of an arm that is not measured."""
    return {arm: path for key in (ACTION_KEY, *steps.measured_keys) for arm, path in _paths(steps, key).items()}


def joint_paths(steps: Steps) -> tuple[dict[str, FloatArray], str]:
    """(N,) by name of the joint, measured or else commanded; and their unit."""
    paths: dict[str, FloatArray] = {}
    unit = "unknown"
    for key in (ACTION_KEY, *steps.measured_keys):
        layout = steps.layout(key)
        if layout is not None and layout.has_joints:
            unit = layout.joint_unit
            paths |= {layout.names[column]: steps.numbers[key][:, column] for column in layout.joint_columns}
    return paths, unit


def _paths(steps: Steps, key: str) -> dict[str, FloatArray]:
    layout = steps.layout(key)
    if layout is None:
        return {}
    return dict(zip(layout.labels("position"), np.moveaxis(layout.positions(finite(steps, key)), 1, 0), strict=True))
