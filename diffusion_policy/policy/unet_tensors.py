"""The tensors of the policy with a UNet as denoiser; see `tensor_axes`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_policy.policy.tensor_axes import (
    SHARED_TENSORS,
    NamedTensor,
    Names,
    PolicyTensors,
    Shapes,
    camera_names,
    encoder_width,
    feature_names,
)
from diffusion_policy.spec import StepSpec

FIRST = "model.down_modules.0.0."
ENTRY, HEAD = f"{FIRST}blocks.0.block.0.weight", "model.final_conv.1.weight"
EMBED_DIM = 256  # the class's default, for configs without diffusion_step_embed_dim


def _slots(options: Mapping[str, Any], spec: StepSpec) -> dict[str, Names]:
    features = feature_names(spec)
    as_cond = options.get("obs_as_global_cond", True)
    time = tuple(f"time{index}" for index in range(options.get("diffusion_step_embed_dim", EMBED_DIM)))
    observed = tuple(f"obs{step}.{name}" for step in range(options["n_obs_steps"]) for name in features)
    return {
        "sample": spec.action_names if as_cond else (*spec.action_names, *features),
        "film": (*time, *observed) if as_cond else time,
    }


def _settings(shapes: Shapes) -> dict[str, Any]:
    """Shape-bearing settings read off the tensors; horizon and number of groups are not among them."""
    levels = {name.split(".")[2] for name in shapes if name.startswith("model.down_modules.")}
    widths = [shapes[f"model.down_modules.{level}.0.blocks.0.block.0.weight"][0] for level in sorted(levels, key=int)]
    embed, condition = shapes["model.diffusion_step_encoder.1.weight"][1], shapes[f"{FIRST}cond_encoder.1.weight"][1]
    return {
        "action_dim": shapes[HEAD][0],
        "down_dims": widths,
        "kernel_size": shapes[ENTRY][2],
        "diffusion_step_embed_dim": embed,
        "cameras": camera_names(shapes),
        **encoder_width(shapes),
        "observation features": condition - embed,
    }


TENSORS = PolicyTensors(
    name="robot_unet_policy",
    title="The robot's diffusion policy with a UNet",
    marker=ENTRY,
    inside=("mid_modules", "diffusion_step_encoder", "up_modules", "down_modules", "final_conv"),
    entry=ENTRY,
    head=HEAD,
    named=(
        NamedTensor(ENTRY, {1: "sample"}, "zeros"),
        NamedTensor(f"{FIRST}residual_conv.weight", {1: "sample"}, "zeros"),
        NamedTensor(HEAD, {0: "sample"}, {"normal": 0.02}),
        NamedTensor("model.final_conv.1.bias", {0: "sample"}, "zeros"),
        NamedTensor("model.*.cond_encoder.1.weight", {1: "film"}, "zeros"),
        *SHARED_TENSORS,
    ),
    slots=_slots,
    settings=_settings,
    summary=("horizon", "n_obs_steps", "n_action_steps", "crop_shape", "obs_encoder_group_norm", "down_dims",
             "diffusion_step_embed_dim", "kernel_size", "n_groups", "cond_predict_scale", "obs_as_global_cond",
             "num_inference_steps"),
)  # fmt: skip
