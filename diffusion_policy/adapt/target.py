"""Targets of an adaptation: a config, another checkpoint, or a manifest of names and shapes.

A config's names and shapes come from the policy built on torch's meta device, without values or memory, so planning is
cheap and an absurd config is refused early. For its values the policy is built once more with a seed, so that fresh
tensors have the policy's own initialization and buffers that follow from the config (attention masks, spatial grids)
are correct. A freshly built policy has no normalizer: its entries are made here, with values where they are known (a
range fixed by the semantics, or a dataset's statistics) and NaN elsewhere, which `apply_plan` refuses to write.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.named_axes import NamedAxes, policy_axes
from diffusion_policy.adapt.plan import describe_state
from diffusion_policy.checkpoint import ACTION_SCALE, build_policy, read_checkpoint
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.gripper_scale import parse_scales
from diffusion_policy.model.normalizer import SingleFieldLinearNormalizer
from diffusion_policy.shape_meta import step_spec_of
from diffusion_policy.spec import StepSpec, check_semantics
from diffusion_policy.spec.action_layout import is_gripper_name
from diffusion_policy.tensor_file import TensorInfo
from diffusion_policy.tensor_file.wrapped_names import wrapping_of

NORMALIZER = "normalizer.params_dict."
# Ranges that are fixed by definition and not by the data: a gripper is 0 closed, 1 open; images are in [0, 1].
GRIPPER_RANGE = (0.0, 1.0)
IMAGE_RANGE = (0.0, 1.0)
ENTRIES = ("offset", "scale", "input_stats.max", "input_stats.mean", "input_stats.min", "input_stats.std")

SAFETENSORS_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}

Statistics = dict[str, float]


@dataclass(frozen=True)
class Target:
    """Names, shapes and values of the new checkpoint.

    Attributes:
        name: for messages and the ledger.
        infos: names and shapes of its tensors.
        axes: names of the slots along the axes of its tensors.
        build: makes the initial values, normalizer included; NaN if only shapes are known.
        cfg: the config, if there is one.
        dataset: dataset of the statistics for the normalizer's new dimensions; "" without one.
        measured: names of the dimensions that the dataset has, by normalizer key.
    """

    name: str
    infos: Mapping[str, TensorInfo]
    axes: NamedAxes = field(default_factory=NamedAxes)
    build: Callable[[], Mapping[str, Tensor]] = dict
    cfg: DictConfig | None = None
    dataset: str = ""
    measured: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def state(self) -> Mapping[str, Tensor]:
        """The initial values, built on first access."""
        return self.build()


def target_from_config(
    cfg: DictConfig, name: str, dataset: str | Path | None = None, seed: int = 0, gripper_scale: str | None = None
) -> Target:
    """The target that a config describes.

    Args:
        cfg: a training config with a `policy` section.
        name: for messages.
        dataset: a zarr whose statistics fill the normalizer's new dimensions.
        seed: seed of the policy's initialization.
        gripper_scale: the scale of the dataset's gripper where it is not 0..1; statistics then refer to 0..1.
    """
    spec = step_spec_of(cfg)
    buffer = None if dataset is None else ReplayBuffer.open(dataset, gripper_scale=parse_scales(gripper_scale))
    entries, measured = _normalizer_entries(spec, buffer)

    def build(*, values: bool = True) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = build_policy(cfg, values=values).state_dict()
        return {**{key: tensor for key, tensor in state.items() if not key.startswith(NORMALIZER)}, **entries}

    infos = describe_state(build(values=False))
    return Target(name, infos, policy_axes(cfg), build, cfg, buffer.where if buffer else "", measured)


def target_from_checkpoint(path: str | Path, which: str = "model") -> Target:
    """Names, shapes and values of another checkpoint, with its config.

    Where a wrapper has changed its names, they are taken from its config instead.
    """
    checkpoint = read_checkpoint(path, wrapped=True)
    if which not in checkpoint.state_dicts:
        raise AdaptError(f"{path} holds {list(checkpoint.state_dicts)}, not {which!r}")
    state = checkpoint.state_dicts[which]
    if wrapping_of(state, ACTION_SCALE) is not None:
        return target_from_config(checkpoint.cfg, f"{Path(path).name} under its own names")
    return Target(Path(path).name, describe_state(state), policy_axes(checkpoint.cfg), lambda: state, checkpoint.cfg)


def target_from_manifest(path: str | Path) -> Target:
    """Names and shapes from a JSON manifest: {name: shape}, {name: [shape, dtype]} or {name: {"shape", "dtype"}}.

    The mapping may also be the entry "tensors" of an object that has further entries.

    Raises:
        AdaptError: the file is not such a mapping.
    """
    try:
        manifest = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AdaptError(f"{path}: cannot be read as a JSON manifest: {error}") from error
    if not isinstance(manifest, Mapping) or not manifest:
        raise AdaptError(f"{path}: expected a JSON object of names and shapes")
    if isinstance(manifest.get("tensors"), Mapping):
        manifest = manifest["tensors"]
    infos = {key: _manifest_entry(key, entry, path) for key, entry in manifest.items()}
    return Target(Path(path).name, infos, build=lambda: _unknown(infos))


def target_from_shapes(shapes: Mapping[str, tuple[int, ...]], name: str) -> Target:
    """The target with these names and shapes, of type float32, as listed by a model's definition."""
    infos = {key: TensorInfo(key, tuple(shape), "float32", 4 * math.prod(shape), key) for key, shape in shapes.items()}
    return Target(name, infos, build=lambda: _unknown(infos))


def _unknown(infos: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """Tensors of these shapes and types filled with NaN for unknown values; as expanded views they take no memory."""
    return {
        key: torch.tensor(math.nan).to(getattr(torch, info.dtype)).expand(info.shape) for key, info in infos.items()
    }


def _manifest_entry(key: str, entry: Any, path: str | Path) -> TensorInfo:
    shape, dtype = entry, "float32"
    if isinstance(entry, Mapping):
        shape, dtype = entry.get("shape"), entry.get("dtype", dtype)
    elif isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], list):
        shape, dtype = entry
    dtype = str(SAFETENSORS_TYPES.get(dtype, dtype)).removeprefix("torch.")
    torch_type = getattr(torch, dtype, None)
    sized = isinstance(shape, list) and all(isinstance(n, int) and n >= 0 for n in shape)
    if not sized or not isinstance(torch_type, torch.dtype):
        raise AdaptError(f"{path}: {key} is {entry!r}; expected a shape such as [256, 7], or [shape, dtype]")
    return TensorInfo(key, tuple(shape), dtype, math.prod(shape) * torch_type.itemsize, storage=key)


def range_statistics(low: float, high: float) -> Statistics:
    """Normalizer entries that map [low, high] to [-1, 1]; mean and deviation are those of a uniform distribution."""
    scale = 2 / (high - low)
    mean, std = (low + high) / 2, (high - low) / math.sqrt(12)
    numbers = (-1 - scale * low, scale, high, mean, low, std)
    return dict(zip(ENTRIES, numbers, strict=True))


def _normalizer_entries(
    spec: StepSpec, buffer: ReplayBuffer | None
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """All normalizer tensors of a spec, NaN if unknown, and the names of dimensions measured in the dataset."""
    vectors = {"action": spec.action_names, **{low_dim.key: low_dim.names for low_dim in spec.low_dim}}
    entries: dict[str, Tensor] = {}
    in_dataset: dict[str, tuple[str, ...]] = {}
    if buffer is not None:
        check_semantics(buffer.semantics, spec.semantics, buffer.where)
    for key, names in vectors.items():
        measured = _measured(buffer, key) if buffer is not None else {}
        if key == "action" and spec.relative:  # a dataset holds absolute ones
            measured = {name: numbers for name, numbers in measured.items() if name not in _moving(spec)}
        known = [measured.get(name) or _fixed(name) for name in names]
        in_dataset[key] = tuple(name for name in names if name in measured)
        for entry in ENTRIES:
            numbers = [statistics[entry] if statistics else math.nan for statistics in known]
            entries[f"{NORMALIZER}{key}.{entry}"] = torch.tensor(numbers, dtype=torch.float32)
    for image in spec.rgb:
        statistics = range_statistics(*IMAGE_RANGE)
        entries.update({f"{NORMALIZER}{image.key}.{entry}": torch.tensor([statistics[entry]]) for entry in ENTRIES})
    ordered = sorted(entries.items(), key=lambda item: (item[0].split(".")[2], item[0].count("."), item[0]))
    return dict(ordered), in_dataset


def _moving(spec: StepSpec) -> set[str]:
    return {spec.action_names[column] for column in spec.layout.motion_columns}


def _fixed(name: str) -> Statistics | None:
    return range_statistics(*GRIPPER_RANGE) if is_gripper_name(name) else None


def _measured(buffer: ReplayBuffer, key: str) -> dict[str, Statistics]:
    """Statistics of each named column of one array of a dataset; empty if it has no such array."""
    if key not in buffer:
        return {}
    fitted = SingleFieldLinearNormalizer.create_fit(buffer.columns(key, buffer.names(key)))
    stats = {f"input_stats.{name}": numbers for name, numbers in fitted.get_input_stats().items()}
    columns = {**stats, "scale": fitted.params_dict["scale"], "offset": fitted.params_dict["offset"]}
    return {
        name: {entry: float(columns[entry][index]) for entry in ENTRIES} for index, name in enumerate(buffer.names(key))
    }
