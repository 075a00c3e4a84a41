"""The scale of a gripper's numbers: found from the data if it is unmistakable; otherwise it must be declared.

Inside this package a gripper is 0 (closed) to 1 (open). Recorders, simulators and drivers use other scales, and shapes
do not show which. It is declared by the names of ``names``: a flag (``--gripper-scale NAME``), a config key
(``task.dataset.gripper_scale``), or the ``gripper`` entry of a dataset's ``action_semantics`` (``{"open": 100,
"closed": 0}``, and ``"measured": {...}`` in it where the measurement differs). Else ``finding`` looks.
"""

from diffusion_policy.gripper_scale.finding import ResolvedScale, ResolvedScales, find_scales
from diffusion_policy.gripper_scale.names import (
    CONFIG_KEY,
    FLAG,
    INTERNAL,
    DeclaredScales,
    GripperScale,
    add_gripper_scale,
    labeled_scales,
    parse_scale,
    parse_scales,
)

__all__ = [
    "CONFIG_KEY",
    "FLAG",
    "INTERNAL",
    "DeclaredScales",
    "GripperScale",
    "ResolvedScale",
    "ResolvedScales",
    "add_gripper_scale",
    "find_scales",
    "labeled_scales",
    "parse_scale",
    "parse_scales",
]
