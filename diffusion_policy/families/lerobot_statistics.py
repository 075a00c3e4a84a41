"""Statistics of a LeRobot policy: in files of its processors since LeRobot 0.4, as buffers of the model before.

The processors are listed in ``policy_preprocessor.json``; the step ``normalizer_processor`` names a safetensors file
with ``FEATURE.{min,max,mean,std,...}``. The buffers are ``normalize_inputs.buffer_FEATURE.*`` and
``normalize_targets.buffer_FEATURE.*``, with underscores for the dots of the feature, and only those of the two that the
normalization uses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_policy.families.family import FamilyError
from diffusion_policy.families.lerobot_diffusion import MAX_JSON_BYTES, read_config
from diffusion_policy.tensor_file import TensorFile, open_tensor_file

PREPROCESSOR = "policy_preprocessor.json"
STEP = "normalizer_processor"
BUFFERS = ("normalize_inputs.buffer_", "normalize_targets.buffer_")


@dataclass(frozen=True)
class PolicyStatistics:
    """What a policy normalizes with.

    Attributes:
        features: (W,) float32 min, max, mean or std of each vector by feature, such as ``observation.state``; images,
            whose statistics are (3, 1, 1), are left out.
        origin: the file that they come from, in words; "" if there are none.
    """

    features: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    origin: str = ""


def read_statistics(file: TensorFile) -> PolicyStatistics:
    """The statistics of the policy whose model.safetensors or folder is open; empty if there are none.

    Raises:
        FamilyError: the list of processors cannot be read, or names a file that is not in the folder.
        TensorFileError: the file of the statistics is damaged, or does not hold tensors.
    """
    folder = file.path if file.path.is_dir() else file.path.parent
    name = _state_file(folder)
    if name:
        state = open_tensor_file(folder / name)
        return PolicyStatistics(_by_feature({key: (state, key) for key in state.tensors}), name)
    buffers: dict[str, tuple[TensorFile, str]] = {}
    features = {key.replace(".", "_"): key for key in _features(folder)}
    for key in file.tensors:
        for start in BUFFERS:
            feature, dot, kind = key.removeprefix(start).partition(".")
            if key.startswith(start) and dot:
                buffers.setdefault(f"{features.get(feature, feature)}.{kind}", (file, key))
    return PolicyStatistics(_by_feature(buffers), "buffers of the model" if buffers else "")


def _state_file(folder: Path) -> str:
    """The name of the normalizer's file in a policy's folder; "" if there is none."""
    listing = folder / PREPROCESSOR
    if not listing.is_file():
        return ""
    try:
        if listing.stat().st_size > MAX_JSON_BYTES:
            raise FamilyError(f"{listing}: it has {listing.stat().st_size} bytes, more than {MAX_JSON_BYTES}")
        steps = json.loads(listing.read_text(encoding="utf-8"))["steps"]
        names = [step["state_file"] for step in steps if step.get("registry_name") == STEP and "state_file" in step]
    except (OSError, UnicodeDecodeError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise FamilyError(f"{listing}: cannot be read as a list of processors: {error!r}") from error
    if not names:
        return ""
    name = names[0]
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
        raise FamilyError(f"{listing}: its {STEP} names the file {name!r}, which is not in the same folder")
    return name


def _features(folder: Path) -> list[str]:
    config: Mapping[str, Any] = read_config(folder) or {}
    sections = [config.get(side) for side in ("input_features", "output_features")]
    return [str(key) for side in sections if isinstance(side, Mapping) for key in side]


def _by_feature(stored: Mapping[str, tuple[TensorFile, str]]) -> dict[str, dict[str, Tensor]]:
    result: dict[str, dict[str, Tensor]] = {}
    for name, (file, key) in stored.items():
        feature, _, kind = name.rpartition(".")
        info = file.tensors[key]
        if kind in ("min", "max", "mean", "std") and len(info.shape) == 1 and "float" in info.dtype:
            result.setdefault(feature, {})[kind] = file.load(key).to(torch.float32)
    return result
