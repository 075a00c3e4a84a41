"""The tensors of the policy with a transformer as denoiser; see `tensor_axes`."""

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

ENTRY, HEAD = "model.input_emb.weight", "model.head.weight"


def _slots(options: Mapping[str, Any], spec: StepSpec) -> dict[str, Names]:
    features = feature_names(spec)
    obs_as_cond, time_as_cond = options.get("obs_as_cond", True), options.get("time_as_cond", True)
    positions = tuple(f"step{index}" for index in range(options["horizon"]))
    observed = tuple(f"obs{index}" for index in range(options["n_obs_steps"])) if obs_as_cond else ()
    return {
        "sample": spec.action_names if obs_as_cond else (*spec.action_names, *features),
        "features": features,
        "position": positions if time_as_cond else ("time", *positions),
        "condition": ("time", *observed) if time_as_cond else observed,
    }


def _settings(shapes: Shapes) -> dict[str, Any]:
    """Shape-bearing settings read off the tensors; the number of heads is not among them."""
    width, sample = shapes[ENTRY]
    layers, conditioning = (
        {name.split(".")[3] for name in shapes if name.startswith(f"model.{stack}.layers.")}
        for stack in ("decoder", "encoder")
    )
    time_is_token = not layers  # no decoder: time is the first token of an encoder
    depth = len(conditioning) if time_is_token else len(layers)
    out: dict[str, Any] = {
        "action_dim": sample, "n_emb": width, "n_layer": depth, "cameras": camera_names(shapes),
        **encoder_width(shapes),
    }  # fmt: skip
    if layers:
        out["n_cond_layers"] = len(conditioning)
    if "model.pos_emb" in shapes:
        out["horizon"] = shapes["model.pos_emb"][1] - time_is_token
    if shapes.get("model.cond_pos_emb", (1, 1))[1] > 1:  # one token is the time
        out["n_obs_steps"] = shapes["model.cond_pos_emb"][1] - 1
    if "model.cond_obs_emb.weight" in shapes:
        out["observation features"] = shapes["model.cond_obs_emb.weight"][1]
    return out


TENSORS = PolicyTensors(
    name="robot_policy",
    title="The robot's diffusion policy",
    marker=ENTRY,
    inside=("input_emb", "pos_emb", "cond_obs_emb", "cond_pos_emb", "encoder", "decoder", "ln_f", "head", "mask",
            "memory_mask"),
    entry=ENTRY,
    head=HEAD,
    named=(
        NamedTensor(ENTRY, {1: "sample"}, "zeros"),
        NamedTensor(HEAD, {0: "sample"}, {"normal": 0.02}),
        NamedTensor("model.head.bias", {0: "sample"}, "zeros"),
        NamedTensor("model.cond_obs_emb.weight", {1: "features"}, "zeros"),
        NamedTensor("model.pos_emb", {1: "position"}, {"normal": 0.02}),
        NamedTensor("model.cond_pos_emb", {1: "condition"}, {"normal": 0.02}),
        NamedTensor("model.mask", {0: "position", 1: "position"}, "recompute"),
        NamedTensor("model.memory_mask", {0: "position", 1: "condition"}, "recompute"),
        *SHARED_TENSORS,
    ),
    slots=_slots,
    settings=_settings,
    summary=("horizon", "n_obs_steps", "n_action_steps", "crop_shape", "obs_encoder_group_norm", "n_layer",
             "n_cond_layers", "n_head", "n_emb", "causal_attn", "time_as_cond", "obs_as_cond", "num_inference_steps"),
)  # fmt: skip
