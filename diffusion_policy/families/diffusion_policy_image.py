"""Image policies of diffusion_policy and of UMI whose encoder is an option of the policy, and their configs.

Their workspace writes {"cfg", "state_dicts", "pickles"}, as this project does, and their denoiser has this project's
names. Their encoder differs: one network per camera in ``obs_encoder.key_model_map``, of torchvision, timm or R3M.
UMI's actions are 10 numbers per robot: position, rotation (two rows of its matrix) and gripper width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from diffusion_policy.families.family import ABSENT, Family, Shapes, lookup

MAP = "obs_encoder.key_model_map."
# Where configs have the shape_meta, and what nests it elsewhere.
PATHS = ("policy.shape_meta", "shape_meta", "task.shape_meta")
MAX_DIMENSIONS, MAX_SIDE = 8, 2**31
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_PARTS_6D = "position (3), rotation as two rows of its matrix (6), gripper width (1)"
_RELATIVE = {"relative": "relative to the current pose", "rel": "relative to the current pose", "abs": "absolute",
             "delta": "each relative to the previous one"}  # fmt: skip


def settings_from(tensors: Shapes) -> dict[str, Any]:
    """Settings read from the shapes of the tensors."""
    cameras = dict.fromkeys(name.split(".")[2] for name in tensors if name.startswith(MAP))
    result: dict[str, Any] = {"encoders": ", ".join(cameras) or "none"}
    scale = tensors.get("normalizer.params_dict.action.scale")
    if scale is not None:
        result["action_dim"] = scale[0]
    return result


def shape_meta_of(config: Any) -> Mapping[str, Any]:
    """The shape_meta of a config as plain data, references to other entries followed; empty if there is none."""
    for path in PATHS:
        result = _followed(config, path)
        if isinstance(result, Mapping) and isinstance(result.get("action"), Mapping):
            return result
    return {}


def observations(meta: Mapping[str, Any]) -> dict[str, str]:
    """Descriptions of the observations by key: "image 224x224" or "3 numbers"."""
    result = {}
    entries = meta.get("obs")
    for key, entry in entries.items() if isinstance(entries, Mapping) else ():
        shape = _shape(entry)
        is_image = isinstance(entry, Mapping) and entry.get("type") == "rgb" and len(shape) == 3
        result[str(key)] = f"image {shape[2]}x{shape[1]}" if is_image else f"{math.prod(shape)} numbers"
    return result


def action_layout(config: Any, meta: Mapping[str, Any]) -> tuple[str, str]:
    """(width in words, layout in words) of the action, as far as the config tells."""
    action = meta.get("action")
    width = math.prod(_shape(action))
    layout = "its config does not name the numbers"
    if isinstance(action, Mapping) and action.get("rotation_rep") == "rotation_6d" and width and width % 10 == 0:
        robots = width // 10
        layout = _PARTS_6D + (f", for each of {robots} robots" if robots > 1 else "")
    pose = _followed(config, "task.pose_repr.action_pose_repr")
    if isinstance(pose, str) and pose in _RELATIVE:
        layout += f"; {_RELATIVE[pose]}"
    return f"{width} numbers", layout


def _shape(entry: Any) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, Mapping) else None
    if not isinstance(shape, list | tuple) or len(shape) > MAX_DIMENSIONS:
        return (0,)
    return tuple(shape) if all(type(size) is int and 0 <= size < MAX_SIDE for size in shape) else (0,)


def _followed(config: Any, path: str) -> Any:
    """The value at a dotted path, through entries that refer to others; ABSENT if a reference is broken."""
    for _ in range(8):
        value = lookup(config, path) if isinstance(config, Mapping) else ABSENT
        reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if reference is None:
            return value
        path = reference[1]
    return ABSENT


FAMILY = Family(
    name="diffusion_policy_image",
    title="An image policy of diffusion_policy or UMI, with an encoder of torchvision, timm or R3M",
    marker="obs_encoder._dummy_variable",
    part="",
    inside=(),
    prefixes={"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile", "policy.": "a wrapping module"},
    settings=settings_from,
)
