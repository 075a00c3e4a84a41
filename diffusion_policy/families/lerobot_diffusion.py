"""Diffusion policies of LeRobot: names and shapes as formulas of their config.json, and a description of the policy.

A folder (``pretrained_model/``) contains config.json and model.safetensors. Since LeRobot 0.4 the statistics are in
separate processor files; before, they were buffers of the model (``normalize_inputs.buffer_*``). Everything else has
the same names and shapes in both.

    observations -> rgb_encoder (one for all cameras, or one each) -+-> condition of C numbers
    state, environment state ---------------------------------------+        |
    noisy actions (A) ------------------------------------------------> unet -> actions

C = diffusion_step_embed_dim + n_obs_steps * (state + cameras * 2 * keypoints + environment state). Horizon and executed
steps affect no shape. Defaults have changed between versions (0.6: no GroupNorm, one encoder per camera, horizon 64),
so a key that is missing in config.json is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from diffusion_policy.families.family import Config, ConstructionError, Family, FamilyError, Shape, Shapes
from diffusion_policy.families.named_layers import Tensors, affine, linear, under

TYPE = "diffusion"
RESNETS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
MAX_TENSORS = 100_000
MAX_JSON_BYTES = 2**24
_STAGES = (64, 128, 256, 512)
# Statistics that the model holds as buffers in versions before 0.4.
STATISTICS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
SUMMARY = (
    "horizon", "n_obs_steps", "n_action_steps", "vision_backbone", "crop_shape", "use_group_norm",
    "use_separate_rgb_encoder_per_camera", "down_dims", "kernel_size", "diffusion_step_embed_dim",
    "use_film_scale_modulation", "prediction_type", "noise_scheduler_type", "num_train_timesteps",
    "normalization_mapping",
)  # fmt: skip


def read_config(path: Path) -> dict[str, Any] | None:
    """The config.json of a diffusion policy, at that path or in that folder; None for any other or no file.

    Raises:
        FamilyError: it cannot be read as JSON.
    """
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise FamilyError(f"{path}: it has {path.stat().st_size} bytes, more than {MAX_JSON_BYTES}")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FamilyError(f"{path}: cannot be read as a JSON configuration: {error}") from error
    return config if isinstance(config, dict) and config.get("type") == TYPE and "down_dims" in config else None


def shapes(config: Config) -> dict[str, Shape]:
    """Names and shapes of model.safetensors without statistics, in no order.

    Raises:
        ConstructionError: a required key is missing or of the wrong type, or the backbone is not covered.
    """
    try:
        result = dict(islice(_tensors(config), MAX_TENSORS + 1))
        odd = [name for name, shape in result.items() if not all(type(size) is int and size > 0 for size in shape)]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ConstructionError(f"this config.json does not describe a diffusion policy: {error!r}", "") from error
    if len(result) > MAX_TENSORS:
        raise ConstructionError(f"this config.json describes more than {MAX_TENSORS} tensors", "")
    if odd:
        raise ConstructionError(f"this config.json does not describe a diffusion policy: {odd[0]} {result[odd[0]]}", "")
    return result


def observations(config: Config) -> dict[str, str]:
    """Descriptions of the observations by key: "image 96x96" or "8 numbers"."""
    features: Mapping[str, Mapping[str, Any]] = config.get("input_features") or {}
    result = {}
    for key, feature in features.items():
        shape: Sequence[int] = feature.get("shape") or []
        is_image = feature.get("type") == "VISUAL" and len(shape) == 3
        result[str(key)] = f"image {shape[2]}x{shape[1]}" if is_image else f"{math.prod(shape)} numbers"
    return result


def action_width(config: Config) -> int:
    """Width of an action; no file of the policy has the names of its numbers."""
    return int(config["output_features"]["action"]["shape"][0])


def _of_type(config: Config, kind: str) -> list[Mapping[str, Any]]:
    return [feature for feature in config["input_features"].values() if feature["type"] == kind]


def _tensors(config: Config) -> Tensors:
    cameras = _of_type(config, "VISUAL")
    keypoints = config["spatial_softmax_num_keypoints"]
    for index, camera in enumerate(cameras):
        if config["use_separate_rgb_encoder_per_camera"]:
            yield from under(f"diffusion.rgb_encoder.{index}.", _encoder(config, camera["shape"], keypoints))
        elif index == 0:
            yield from under("diffusion.rgb_encoder.", _encoder(config, camera["shape"], keypoints))
    state = sum(feature["shape"][0] for kind in ("STATE", "ENV") for feature in _of_type(config, kind))
    embed = config["diffusion_step_embed_dim"]
    condition = embed + config["n_obs_steps"] * (state + len(cameras) * 2 * keypoints)
    yield from under("diffusion.unet.", _unet(config, action_width(config), condition))


def _encoder(config: Config, image: list[int], keypoints: int) -> Tensors:
    if config["vision_backbone"] not in RESNETS:
        raise ConstructionError(
            f"vision_backbone {config['vision_backbone']!r} is not supported; {', '.join(RESNETS)} are",
            "vision_backbone",
        )
    yield from under("backbone.", _resnet(RESNETS[config["vision_backbone"]], group_norm=config["use_group_norm"]))
    height, width = config.get("crop_shape") or config.get("resize_shape") or image[1:]
    rows, columns = (_downsampled(size) for size in (height, width))
    yield "pool.pos_grid", (rows * columns, 2)
    yield "pool.nets.weight", (keypoints, _STAGES[-1], 1, 1)
    yield "pool.nets.bias", (keypoints,)
    yield from linear("out", 2 * keypoints, 2 * keypoints)


def _downsampled(size: int) -> int:
    """Five halvings, each rounded up."""
    return -(-size // 32)


def _resnet(blocks: tuple[int, ...], *, group_norm: bool) -> Tensors:
    """torchvision's ResNet of BasicBlocks without its head, as a Sequential: 0 conv1, 1 bn1, 4 to 7 the stages."""
    yield "0.weight", (_STAGES[0], 3, 7, 7)
    yield from _norm("1", _STAGES[0], group_norm=group_norm)
    before = _STAGES[0]
    for stage, (width, count) in enumerate(zip(_STAGES, blocks, strict=True)):
        for block in range(count):
            name = f"{4 + stage}.{block}."
            yield f"{name}conv1.weight", (width, before, 3, 3)
            yield from _norm(f"{name}bn1", width, group_norm=group_norm)
            yield f"{name}conv2.weight", (width, width, 3, 3)
            yield from _norm(f"{name}bn2", width, group_norm=group_norm)
            if block == 0 and stage > 0:
                yield f"{name}downsample.0.weight", (width, before, 1, 1)
                yield from _norm(f"{name}downsample.1", width, group_norm=group_norm)
            before = width


def _norm(name: str, width: int, *, group_norm: bool) -> Iterator[tuple[str, Shape]]:
    yield from affine(name, width)
    if not group_norm:
        yield f"{name}.running_mean", (width,)
        yield f"{name}.running_var", (width,)
        yield f"{name}.num_batches_tracked", ()


def _unet(config: Config, action: int, condition: int) -> Tensors:
    embed, widths, kernel = config["diffusion_step_embed_dim"], list(config["down_dims"]), config["kernel_size"]
    film = 2 if config["use_film_scale_modulation"] else 1

    def block(name: str, before: int, width: int) -> Tensors:
        for part, columns in (("conv1", before), ("conv2", width)):
            yield f"{name}{part}.block.0.weight", (width, columns, kernel)
            yield f"{name}{part}.block.0.bias", (width,)
            yield from affine(f"{name}{part}.block.1", width)
        yield from linear(f"{name}cond_encoder.1", film * width, condition)
        if before != width:
            yield f"{name}residual_conv.weight", (width, before, 1)
            yield f"{name}residual_conv.bias", (width,)

    yield from linear("diffusion_step_encoder.1", 4 * embed, embed)
    yield from linear("diffusion_step_encoder.3", embed, 4 * embed)
    for level, (before, width) in enumerate(zip([action, *widths], widths, strict=False)):
        yield from block(f"down_modules.{level}.0.", before, width)
        yield from block(f"down_modules.{level}.1.", width, width)
        if level < len(widths) - 1:
            yield from _resampling(f"down_modules.{level}.2", width, 3)
    for index in range(2):
        yield from block(f"mid_modules.{index}.", widths[-1], widths[-1])
    upwards = list(zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True))
    for level, (before, width) in enumerate(upwards):
        yield from block(f"up_modules.{level}.0.", 2 * before, width)
        yield from block(f"up_modules.{level}.1.", width, width)
        yield from _resampling(f"up_modules.{level}.2", width, 4)
    yield "final_conv.0.block.0.weight", (widths[0], widths[0], kernel)
    yield "final_conv.0.block.0.bias", (widths[0],)
    yield from affine("final_conv.0.block.1", widths[0])
    yield "final_conv.1.weight", (action, widths[0], 1)
    yield "final_conv.1.bias", (action,)


def _resampling(name: str, width: int, kernel: int) -> Tensors:
    yield f"{name}.weight", (width, width, kernel)
    yield f"{name}.bias", (width,)


def settings_from(tensors: Shapes) -> dict[str, Any]:
    """Settings read from the shapes of the tensors."""
    levels = sorted({int(name.split(".")[3]) for name in tensors if name.startswith("diffusion.unet.down_modules.")})
    first = "diffusion.unet.down_modules.0.0."
    encoders = {name.split(".")[2] for name in tensors if name.startswith("diffusion.rgb_encoder.")}
    numbered = sorted(name for name in encoders if name.isdigit())
    embed = tensors["diffusion.unet.diffusion_step_encoder.3.weight"][0]
    return {
        "action_dim": tensors["diffusion.unet.final_conv.1.weight"][0],
        "down_dims": [tensors[f"diffusion.unet.down_modules.{level}.0.conv1.block.0.weight"][0] for level in levels],
        "kernel_size": tensors[f"{first}conv1.block.0.weight"][2],
        "diffusion_step_embed_dim": embed,
        "observation features": tensors[f"{first}cond_encoder.1.weight"][1] - embed,
        "encoders": f"{len(numbered)}, one per camera" if numbered else "1, shared" if encoders else "none",
        "norms of the encoder": "BatchNorm" if any(name.endswith("running_mean") for name in tensors) else "GroupNorm",
        "statistics": "in the model" if any(name.startswith(STATISTICS) for name in tensors) else "in processor files",
    }


FAMILY = Family(
    name="lerobot_diffusion",
    title="LeRobot's diffusion policy",
    marker="diffusion.unet.final_conv.1.weight",
    part="diffusion.",
    inside=("unet", "rgb_encoder"),
    prefixes={"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile", "policy.": "a wrapping module"},
    settings=settings_from,
)
