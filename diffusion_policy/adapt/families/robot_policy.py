"""The robot's diffusion policy: what its tensors say. `policy_config` builds it from a config of the project."""

from __future__ import annotations

from typing import Any

from diffusion_policy.adapt.families.family import Family, Shapes


def settings_from(tensors: Shapes) -> dict[str, Any]:
    """Shape-bearing settings read off the policy's tensors; the number of heads is not among them."""
    width, sample = tensors["model.input_emb.weight"]
    cameras = {name.split(".")[2] for name in tensors if name.startswith("obs_encoder.obs_nets.")}
    layers = {name.split(".")[3] for name in tensors if name.startswith("model.decoder.layers.")}
    out: dict[str, Any] = {"action_dim": sample, "n_emb": width, "n_layer": len(layers), "cameras": sorted(cameras)}
    if "model.pos_emb" in tensors:
        out["horizon"] = tensors["model.pos_emb"][1]
    if "model.cond_pos_emb" in tensors:
        out["n_obs_steps"] = tensors["model.cond_pos_emb"][1] - 1
    if "model.cond_obs_emb.weight" in tensors:
        out["observation features"] = tensors["model.cond_obs_emb.weight"][1]
    return out


FAMILY = Family(
    name="robot_policy",
    title="The robot's diffusion policy",
    marker="model.input_emb.weight",
    part="model.",
    inside=("input_emb", "pos_emb", "cond_obs_emb", "cond_pos_emb", "encoder", "decoder", "ln_f", "head", "mask",
            "memory_mask"),
    prefixes={"module.": "DistributedDataParallel", "_orig_mod.": "torch.compile", "policy.": "a wrapping module"},
    settings=settings_from,
)  # fmt: skip
