"""A policy and inputs whose numbers all follow from a formula, so they are the same on every machine.

The sizes are those of released checkpoints ("full") and of a small one ("tiny"); nothing is taken from a file.
"""

import math
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from diffusion_policy.model.normalizer import (
    LinearNormalizer,
    SingleFieldLinearNormalizer,
    get_image_range_normalizer,
)
from diffusion_policy.policy.diffusion_transformer_hybrid_image_policy import DiffusionTransformerHybridImagePolicy

SIZES: dict[str, dict[str, int]] = {"tiny": {"n_layer": 2, "n_emb": 64}, "full": {"n_layer": 8, "n_emb": 256}}
BATCH, HORIZON, OBSERVED, WIDTH = 2, 16, 2, 7
TIMES = (3, 77)
STEPS, SEED = 8, 12
SHAPE_META = {
    "obs": {
        "image": {"shape": [3, 180, 320], "type": "rgb"},
        "robot_eef_pose": {"shape": [7], "type": "low_dim"},
        "robot_gripper_state": {"shape": [1], "type": "low_dim"},
    },
    "action": {"shape": [WIDTH]},
}


def wave(*shape: int, rate: float, phase: float = 0.0) -> Tensor:
    """sin(rate * k + phase) of the k-th number, computed in float64."""
    numbers = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(rate * numbers + phase).reshape(shape).float()


def make_policy(size: str) -> DiffusionTransformerHybridImagePolicy:
    """The users' policy of that size; weights are whatever torch draws."""
    scheduler = DDPMScheduler(
        num_train_timesteps=100, beta_start=0.0001, beta_end=0.02, beta_schedule="squaredcos_cap_v2", clip_sample=True,
        variance_type="fixed_small",
    )  # fmt: skip
    return DiffusionTransformerHybridImagePolicy(
        SHAPE_META, scheduler, horizon=HORIZON, n_action_steps=8, n_obs_steps=OBSERVED, num_inference_steps=STEPS,
        crop_shape=(162, 288), obs_encoder_group_norm=True, eval_fixed_crop=True, n_head=4, p_drop_attn=0.3,
        **SIZES[size],
    )  # fmt: skip


def formula_policy() -> DiffusionTransformerHybridImagePolicy:
    """The tiny policy in eval mode: matrices are waves over sqrt(inputs), norms about 1, biases about 0."""
    policy = make_policy("tiny")
    with torch.no_grad():
        for number, (name, parameter) in enumerate(policy.named_parameters()):
            values = wave(*parameter.shape, rate=1.7 + 0.01 * number, phase=0.3 * number)
            if parameter.ndim > 1:
                parameter.copy_(values * math.sqrt(2 / max(parameter[0].numel(), 1)))
            else:
                parameter.copy_(0.05 * values + (1.0 if name.endswith("weight") else 0.0))
    normalizer = LinearNormalizer()
    for key, width in (("action", WIDTH), ("robot_eef_pose", 7), ("robot_gripper_state", 1)):
        low = 0.2 * wave(width, rate=1.1)
        normalizer[key] = SingleFieldLinearNormalizer.create_fit(torch.stack([low, low + 0.5]))
    normalizer["image"] = get_image_range_normalizer()
    policy.set_normalizer(normalizer)
    return policy.eval()


def inputs() -> dict[str, Any]:
    """Observations of two steps, actions, noise and times for a batch of two."""
    pixels = wave(BATCH, OBSERVED, 3, 180, 320, rate=0.013) * 127 + 128
    return {
        "obs": {
            "image": pixels.to(torch.uint8),
            "robot_eef_pose": 0.2 * wave(BATCH, OBSERVED, 7, rate=0.7) + 0.2,
            "robot_gripper_state": 0.5 * wave(BATCH, OBSERVED, 1, rate=0.9) + 0.5,
        },
        "action": 0.2 * wave(BATCH, HORIZON, WIDTH, rate=0.31) + 0.25,
        "noise": 1.4 * wave(BATCH, HORIZON, WIDTH, rate=2.3, phase=0.5),
        "times": torch.tensor(TIMES),
    }


def outputs(policy: DiffusionTransformerHybridImagePolicy) -> dict[str, Tensor]:
    """The policy's results for the inputs: features, predicted noise, loss, actions by DDIM and by DDPM."""
    given = inputs()
    obs, noise, times = given["obs"], given["noise"], given["times"]
    with torch.no_grad():
        steps = policy.normalizer.normalize({**obs, "image": obs["image"].float() / 255})
        features = policy.obs_encoder({key: value.flatten(0, 1) for key, value in steps.items()})
        found = {
            "features": features,
            "predicted_noise": policy.model(noise, times, features.unflatten(0, (BATCH, OBSERVED))),
            "loss": policy.compute_loss({"obs": obs, "action": given["action"]}, noise=noise, timesteps=times),
        }
    trained = policy.noise_scheduler
    policy.noise_scheduler = DDIMScheduler.from_config(trained.config)
    found["ddim8"] = policy.predict_action(obs, initial_noise=noise)["action_pred"]
    policy.noise_scheduler = trained
    torch.manual_seed(SEED)
    found["ddpm8"] = policy.predict_action(obs)["action_pred"]
    return found
