"""What one step of the robot *is*: keys, shapes, units, order and polarity.

All packages use this one, and none duplicates it. It holds

* the names of action and state dimensions (``x y z qx qy qz qw gripper``): two layouts of seven numbers exist in this
  field, and only names tell them apart;
* the layout of an action, which all other packages use instead of slicing;
* the semantics that travel with data, as attributes of a dataset and entries of a checkpoint;
* the only reader of ``shape_meta``;
* the only code that turns raw camera frames and states into policy input, for training and serving alike.

Conventions: positions in meters in the robot's base frame, quaternions scalar-last (xyzw), gripper 1 = open and
0 = closed. Image sizes are (width, height) as arguments, (H, W, C) as arrays and (C, H, W) in configs.

Legend of shapes: To observation steps, H W image height and width, D dimensions of a low-dimensional key.
"""

from __future__ import annotations

import re
from typing import Any

from diffusion_policy.errors import SpecError, WorkspaceError
from diffusion_policy.spec.action_layout import ActionLayout
from diffusion_policy.spec.names import (
    CAMERA_TURN,
    GRIPPER,
    GRIPPER_CLOSED,
    GRIPPER_OPEN,
    INTERVENTION,
    POSE,
    POSE_GRIPPER,
    ROTVEC_WIDTH,
    SEMANTICS_VERSION,
    UNITS,
    default_names,
)
from diffusion_policy.spec.observations import ImageArray, policy_observation
from diffusion_policy.spec.semantics import (
    Layout,
    action_semantics,
    arms_of,
    check_semantics,
    find_layout,
    is_game,
    is_gripper_width,
    layout_from_range,
    layout_of_statistics,
    sign_of_quaternion,
    with_units,
)
from diffusion_policy.spec.steps import ObsField, StepSpec, read_shape_meta
from diffusion_policy.spec.transform import StepTransform

__all__ = [
    "CAMERA_TURN",
    "GRIPPER",
    "GRIPPER_CLOSED",
    "GRIPPER_OPEN",
    "INTERVENTION",
    "POSE",
    "POSE_GRIPPER",
    "ROTVEC_WIDTH",
    "SEMANTICS_VERSION",
    "UNITS",
    "ActionLayout",
    "ImageArray",
    "Layout",
    "ObsField",
    "SpecError",
    "StepSpec",
    "StepTransform",
    "WorkspaceError",
    "action_semantics",
    "arms_of",
    "check_semantics",
    "default_names",
    "episode_number",
    "find_layout",
    "is_game",
    "is_gripper_width",
    "layout_from_range",
    "layout_of_statistics",
    "policy_observation",
    "read_shape_meta",
    "sign_of_quaternion",
    "with_units",
]


def episode_number(name: str) -> int | None:
    """The number at the end of an episode folder's name ("episode_0066" -> 66), or None."""
    match = re.search(r"(\d+)$", name)
    return int(match.group(1)) if match else None


def __getattr__(name: str) -> Any:
    """`decode_jpeg` and `resize_frame` used to be here; they have moved to `diffusion_policy.images`."""
    if name in ("decode_jpeg", "resize_frame"):
        from diffusion_policy import images

        return getattr(images, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
