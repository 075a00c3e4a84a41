"""Where each arm is at every step of a dataset or of recordings; what a game's player presses and turns.

Legend: N steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.replay_buffer import ACTION_KEY
from diffusion_policy.diagnose.steps import FloatArray, Steps, finite
from diffusion_policy.spec import CAMERA_TURN, is_game


def arm_paths(steps: Steps) -> dict[str, FloatArray]:
    """Returns (N, 3) meters by arm name: measured positions, or commanded ones where an arm is not measured."""
    return {arm: path for key in (ACTION_KEY, *steps.measured_keys) for arm, path in _paths(steps, key).items()}


def joint_paths(steps: Steps) -> tuple[dict[str, FloatArray], str]:
    """Returns (N,) by joint name, measured or otherwise commanded, and their unit."""
    paths: dict[str, FloatArray] = {}
    unit = "unknown"
    for key in (ACTION_KEY, *steps.measured_keys):
        layout = steps.layout(key)
        if layout is not None and layout.has_joints:
            unit = layout.joint_unit
            paths |= {layout.names[column]: steps.numbers[key][:, column] for column in layout.joint_columns}
    return paths, unit


def buttons(steps: Steps) -> dict[str, NDArray[np.bool_]]:
    """(N,) where each button of a game's player is held down, of those that ever are; none of an arm's actions."""
    layout, numbers = steps.layout(ACTION_KEY), steps.numbers[ACTION_KEY]
    names = layout.names if layout is not None and layout.is_game else ()
    held = {name: numbers[:, i] > 0.5 for i, name in enumerate(names) if name not in CAMERA_TURN}
    return {name: down for name, down in held.items() if down.any()}


def camera_turns(steps: Steps) -> dict[str, FloatArray]:
    """(N,) degrees of a game's player, downwards and to the right; none of an arm's actions."""
    names = steps.names[ACTION_KEY]
    return {name: steps.numbers[ACTION_KEY][:, names.index(name)] for name in CAMERA_TURN if is_game(names)}


def _paths(steps: Steps, key: str) -> dict[str, FloatArray]:
    layout = steps.layout(key)
    if layout is None:
        return {}
    return dict(zip(layout.labels("position"), np.moveaxis(layout.positions(finite(steps, key)), 1, 0), strict=True))
