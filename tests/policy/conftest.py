"""A policy small enough to be built in every test."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from diffusion_policy.model.normalizer import LinearNormalizer, get_image_range_normalizer
from diffusion_policy.policy.diffusion_transformer_hybrid_image_policy import DiffusionTransformerHybridImagePolicy

HORIZON = 6
SHAPE_META = {
    "obs": {
        "image": {"shape": [3, 36, 40], "type": "rgb"},
        "pose": {"shape": [7], "type": "low_dim"},
    },
    "action": {"shape": [8]},
}

PolicyMaker = Callable[..., DiffusionTransformerHybridImagePolicy]


def ddpm() -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=100,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=True,
        variance_type="fixed_small",
    )


@pytest.fixture
def make_policy() -> PolicyMaker:
    """Build a policy with given options, in eval mode, with a normalizer."""

    def make(**options: Any) -> DiffusionTransformerHybridImagePolicy:
        torch.manual_seed(0)
        settings: dict[str, Any] = {
            "shape_meta": SHAPE_META,
            "noise_scheduler": ddpm(),
            "horizon": HORIZON,
            "n_action_steps": 3,
            "n_obs_steps": 2,
            "num_inference_steps": 2,
            "crop_shape": (32, 32),
            "obs_encoder_group_norm": True,
            "eval_fixed_crop": True,
            "n_layer": 1,
            "n_head": 2,
            "n_emb": 16,
            **options,
        }
        policy = DiffusionTransformerHybridImagePolicy(**settings).eval()
        normalizer = LinearNormalizer()
        normalizer.fit(
            {field.key: torch.rand(20, *field.shape) for field in policy.spec.low_dim}
            | {"action": torch.rand(20, policy.action_dim) * 3 + 1}
        )
        for field in policy.spec.rgb:
            normalizer[field.key] = get_image_range_normalizer()
        policy.set_normalizer(normalizer)
        return policy

    return make


def observation(
    policy: DiffusionTransformerHybridImagePolicy, batch: int = 2, steps: int = 2
) -> dict[str, torch.Tensor]:
    """Random observations that fit the policy; images as uint8."""
    generator = torch.Generator().manual_seed(5)
    obs = {
        field.key: torch.randint(0, 256, (batch, steps, *field.shape), generator=generator, dtype=torch.uint8)
        for field in policy.spec.rgb
    }
    return obs | {
        field.key: torch.rand(batch, steps, *field.shape, generator=generator) for field in policy.spec.low_dim
    }


@pytest.fixture
def make_observation() -> Callable[..., dict[str, torch.Tensor]]:
    """Random observations that fit a policy."""
    return observation


@pytest.fixture
def make_batch() -> Callable[..., dict[str, Any]]:
    """A random training batch that fits a policy."""

    def make(policy: DiffusionTransformerHybridImagePolicy, batch: int = 2) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(6)
        action = torch.rand(batch, policy.horizon, policy.action_dim, generator=generator)
        return {"obs": observation(policy, batch, policy.horizon), "action": action}

    return make
