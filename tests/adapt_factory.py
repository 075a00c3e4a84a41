"""Small policies and their checkpoints, for tests that adapt them."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from diffusion_policy.checkpoint import Checkpoint, build_policy, read_checkpoint, write_checkpoint
from diffusion_policy.families import vpt
from diffusion_policy.families.definitions import open_definition
from diffusion_policy.families.family import Shape
from diffusion_policy.model.normalizer import SingleFieldLinearNormalizer, get_image_range_normalizer
from diffusion_policy.spec import read_shape_meta

IMAGE = {"shape": [3, 48, 64], "type": "rgb"}
OBS: dict[str, Any] = {
    "image": IMAGE,
    "robot_eef_pose": {"shape": [7], "type": "low_dim"},
    "robot_gripper_state": {"shape": [1], "type": "low_dim"},
}
# Ranges of a pose with a quaternion, typical of a robot above a table.
POSE_LOW = [0.3, -0.2, 0.1, 0.85, -0.53, -0.05, -0.17]
POSE_HIGH = [0.7, 0.2, 0.6, 0.93, -0.32, 0.18, 0.05]


def policy_cfg(action: Sequence[str] | int = 7, obs: Mapping[str, Any] | None = None, **options: Any) -> DictConfig:
    """The config of a small policy; `action` is its width or its names."""
    names = {} if isinstance(action, int) else {"names": list(action)}
    width = action if isinstance(action, int) else len(action)
    shape_meta = {"obs": copy.deepcopy(dict(obs or OBS)), "action": {"shape": [width], **names}}
    policy = {
        "_target_": "diffusion_policy.policy.diffusion_transformer_hybrid_image_policy."
        "DiffusionTransformerHybridImagePolicy",
        "shape_meta": "${task.shape_meta}",
        "noise_scheduler": {
            "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
            "num_train_timesteps": 100, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2",
            "clip_sample": True, "prediction_type": "epsilon", "variance_type": "fixed_small",
        },
        "horizon": 8, "n_action_steps": 4, "n_obs_steps": 2, "num_inference_steps": 4, "crop_shape": [40, 56],
        "encoder_width": 16, "obs_encoder_group_norm": True, "eval_fixed_crop": True,
        "n_layer": 2, "n_head": 2, "n_emb": 32,
        **options,
    }  # fmt: skip
    return OmegaConf.create({"task": {"name": "tiny", "shape_meta": shape_meta}, "policy": policy})


def policy_state(cfg: DictConfig, seed: int = 0) -> dict[str, Tensor]:
    """Weights of that policy with a fitted normalizer; larger than initial ones, so that every part matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = build_policy(cfg)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    spec = read_shape_meta(OmegaConf.to_container(cfg.task.shape_meta))
    normalizer = policy.normalizer
    for field in spec.obs:
        if field.kind == "rgb":
            normalizer[field.key] = get_image_range_normalizer()
        else:
            normalizer[field.key] = SingleFieldLinearNormalizer.create_fit(bounds(field.shape[0]))
    normalizer["action"] = SingleFieldLinearNormalizer.create_fit(bounds(spec.action_dim))
    return policy.state_dict()


def bounds(width: int) -> Tensor:
    """Two rows, lowest and highest, of a pose (7), a pose and a gripper (8), or numbers in 0..1."""
    low, high = (
        ([*POSE_LOW, 0.0][:width], [*POSE_HIGH, 1.0][:width]) if width in (7, 8) else ([0.0] * width, [1.0] * width)
    )
    return torch.tensor([low, high])


def save_checkpoint(path: Path, cfg: DictConfig, parts: Sequence[str] = ("model", "ema_model")) -> Checkpoint:
    """A checkpoint whose copies of the weights differ, with an optimizer's state."""
    states: dict[str, Any] = {part: policy_state(cfg, seed) for seed, part in enumerate(parts)}
    states["optimizer"] = {
        "state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(5.0)}},
        "param_groups": [{"lr": 1}],
    }
    pickles = {"_output_dir": "data/outputs/run", "global_step": 123, "epoch": 4}
    write_checkpoint(path, cfg=cfg, state_dicts=states, pickles=pickles)
    return read_checkpoint(path)


def vpt_config_of(tensors: Mapping[str, Shape]) -> dict[str, Any]:
    """A config of VPT whose shapes are those of the tensors; what shapes do not determine is as in the release."""
    read = vpt.settings_from(tensors)
    config = copy.deepcopy(dict(vpt.RELEASED_2X))
    named = ("hidsize", "impala_width", "n_recurrence_layers", "attention_heads", "pointwise_ratio")
    memory = {"attention_memory_size": 2 * read["window"], "timesteps": read["window"]}
    config["policy_kwargs"] |= {name: read[name] for name in named} | memory
    choices = {action: read.get(f"{action} choices") for action in ("camera", "buttons")}
    config["action_space"] = {action: {"n": count} for action, count in choices.items() if count is not None}
    return config | {"aux_value_head": read["aux_value_head"]}


def file_shapes_of(model: str | Path) -> dict[str, Shape]:
    """Names and shapes of a whole checkpoint of a known model, or of the model of a config.json."""
    definition = open_definition(model)
    assert definition is not None
    return definition.file_shapes(definition.config)
