"""diffusion_policy.policy.previous_chunk: an answer continues where the last one leads, with any denoiser."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from diffusion_policy.policy import SCHEDULER_NAMES
from diffusion_policy.policy.contract import DenoisingPolicy, PreviousChunk
from diffusion_policy.policy.diffusion_unet_hybrid_image_policy import DiffusionUnetHybridImagePolicy
from diffusion_policy.policy.observation_batch import PolicyError
from diffusion_policy.policy.previous_chunk import HeldChunk, overlap_weights
from diffusion_policy.policy.sampler import set_sampler

Maker = Callable[..., Any]
EPISODES = 40
SPREAD = 0.1  # of the chunks around each of the two ways


class TwoWays(nn.Module):
    """The optimal denoiser for chunks that pass an obstacle on either side equally often.

    Their mean is +- ``path``, (T, S), their deviation from it SPREAD, so the mean of the clean sample is known exactly.
    """

    def __init__(self, scheduler: Any, path: Tensor) -> None:
        super().__init__()
        self._levels, self._predicts_noise = scheduler.alphas_cumprod, scheduler.config.prediction_type == "epsilon"
        self._ways = torch.stack([path, -path])[:, None]  # (2, 1, T, S)

    def forward(self, sample: Tensor, timestep: Any, cond: Any) -> Tensor:
        level = self._levels[timestep].clamp(min=1e-9)
        variance = level * SPREAD**2 + 1 - level
        apart = sample - level.sqrt() * self._ways
        share = torch.softmax(-apart.square().sum(dim=(-1, -2)) / (2 * variance), dim=0)[..., None, None]
        clean = (share * (self._ways + level.sqrt() * SPREAD**2 / variance * apart)).sum(dim=0)
        return (sample - level.sqrt() * clean) / (1 - level).sqrt() if self._predicts_noise else clean


def noise_levels(prediction: str) -> DDPMScheduler:
    return DDPMScheduler(50, beta_schedule="squaredcos_cap_v2", clip_sample=True, prediction_type=prediction)


def transformer(make_policy: Maker, prediction: str = "epsilon", **options: Any) -> Any:
    return make_policy(noise_scheduler=noise_levels(prediction), horizon=12, n_action_steps=6, **options)


def unet(make_policy: Maker, prediction: str = "epsilon", **options: Any) -> Any:
    """Gives it the other's normalizer."""
    other = transformer(make_policy)
    torch.manual_seed(0)
    kept = {name: getattr(other, name) for name in ("shape_meta", "horizon", "n_action_steps", "n_obs_steps")}
    small = {"down_dims": [16, 32], "diffusion_step_embed_dim": 16, "crop_shape": (32, 32)}
    fixed = {"obs_encoder_group_norm": True, "eval_fixed_crop": True, "num_inference_steps": 4}
    built = DiffusionUnetHybridImagePolicy(
        noise_scheduler=noise_levels(prediction), **kept, **small, **fixed, **options
    )  # type: ignore[arg-type]
    built.set_normalizer(other.normalizer)
    return built.eval()


def draws(policy: Any, seed: int, batch: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {"initial_noise": torch.randn((batch, *policy.sample_shape), generator=generator), "generator": generator}


def rest_of(policy: Any, answer: Tensor, executed: int, overlap: int | None = None) -> Tensor:
    """Returns what is left of an answer (B, T, Da) after this many executed steps."""
    rest = answer[:, policy.first_executed + executed :]
    return rest if overlap is None else rest[:, :overlap]


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
@pytest.mark.parametrize(("scheduler", "steps"), [(name, 8) for name in SCHEDULER_NAMES] + [("ddpm", 50)])
def test_the_way_that_was_begun_is_continued(
    make_policy: Maker, make_observation: Maker, scheduler: str, steps: int, prediction: str
) -> None:
    policy = transformer(make_policy, prediction)
    set_sampler(policy, scheduler, steps)
    path = torch.linspace(0.3, 0.7, policy.horizon)[:, None].expand(policy.sample_shape)
    policy.model = TwoWays(policy.noise_scheduler, path)
    obs = make_observation(policy, EPISODES)
    first = policy.predict_action(obs, **draws(policy, 0, EPISODES))["action_pred"]
    executed, committed = 3, 2
    previous = PreviousChunk(rest_of(policy, first, executed), committed)
    plain = policy.predict_action(obs, **draws(policy, 1, EPISODES))["action_pred"]
    held = policy.continue_chunk(obs, previous, **draws(policy, 1, EPISODES))["action_pred"]

    def way(answer: Tensor) -> Tensor:
        return policy.normalizer["action"].normalize(answer)[:, policy.first_executed :].mean(dim=(1, 2)).sign()

    assert (way(first) == 1).any()
    assert (way(first) == -1).any(), "both ways are taken"
    assert (way(plain) != way(first)).any(), "sampled anew, some take the other way"
    assert (way(held) != way(first)).sum() <= 0.1 * (way(plain) != way(first)).sum()
    now = policy.first_executed + committed  # the new answer's first uncommitted step
    expected = first[:, now + executed - 1]
    torch.testing.assert_close(held[:, now - 1], expected, rtol=1e-5, atol=1e-5)
    jumps = [(answer[:, now] - first[:, now + executed]).norm(dim=-1).mean() for answer in (held, plain)]
    assert jumps[0] < 0.4 * jumps[1]


@pytest.mark.parametrize(("scheduler", "prediction"), [("ddim", "sample"), ("ddpm", "epsilon")])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (transformer, {}), (transformer, {"obs_as_cond": False}), (transformer, {"pred_action_steps_only": True}),
        (unet, {}), (unet, {"obs_as_global_cond": False}),
    ],
    ids=["transformer", "transformer, inpainted", "executed steps only", "unet", "unet, inpainted"],
)  # fmt: skip
def test_committed_steps_come_back_and_the_seam_shrinks(
    make_policy: Maker, make_observation: Maker, kind: Maker, options: Any, prediction: str, scheduler: str
) -> None:
    policy = kind(make_policy, prediction, **options)
    set_sampler(policy, scheduler, 4)
    assert isinstance(policy, DenoisingPolicy)
    assert policy.lacks("previous_chunk") is None
    obs = make_observation(policy, 4)
    first = policy.predict_action(obs, **draws(policy, 0, 4))["action_pred"]
    previous = PreviousChunk(rest_of(policy, first, 2), 2)
    held = policy.continue_chunk(obs, previous, **draws(policy, 1, 4))["action_pred"]
    plain = policy.predict_action(obs, **draws(policy, 1, 4))["action_pred"]
    own = policy.first_executed + 2
    given = slice(policy.first_executed, own)
    torch.testing.assert_close(held[:, given], previous.actions[:, :2], rtol=1e-5, atol=1e-5)
    jumps = [(answer[:, own] - previous.actions[:, 2]).norm(dim=-1).mean() for answer in (held, plain)]
    assert jumps[0] < 0.7 * jumps[1]
    short = PreviousChunk(previous.actions[:, :3], 1)
    generous = policy.continue_chunk(obs, short, **draws(policy, 1, 4))["action_pred"]
    assert (generous - held).abs().max() > 1e-4, "fewer previous steps hold less"


def test_weights_fall_from_one_to_zero() -> None:
    weights = overlap_weights(7, 3)
    assert weights[:3].tolist() == [1.0] * 3
    assert (weights.diff() <= 0).all()
    share = 4 / 5  # equation 5 of the paper for step d: (H - s - i) / (H - s - d + 1), H - s = 7
    assert weights[3] == pytest.approx(share * (np.exp(share) - 1) / (np.e - 1))
    assert 0 < weights[-1] < 0.1
    assert overlap_weights(2, 2).tolist() == [1.0, 1.0]


def test_a_previous_chunk_that_does_not_fit_is_refused(make_policy: Maker, make_observation: Maker) -> None:
    policy = transformer(make_policy)
    obs = make_observation(policy, 2)
    good = torch.zeros(2, 3, policy.action_dim)
    for actions, committed in ((good[:1], 1), (good, 4), (good, -1), (good[:, :0], 0), (good * torch.nan, 1)):
        with pytest.raises(PolicyError, match="previous actions are"):
            policy.continue_chunk(obs, PreviousChunk(actions, committed))


def test_what_is_not_held_is_denoised_as_ever() -> None:
    sample, known = torch.randn(1, 6, 3), torch.full((1, 2, 2), 0.5)
    scheduler = noise_levels("epsilon")
    scheduler.set_timesteps(10)
    held = HeldChunk(known, 1, 1, sample, scheduler)
    prediction = torch.randn_like(sample)
    guided = held.guided(lambda near: prediction, 10, sample)
    untouched = torch.ones(6, 3, dtype=torch.bool)
    untouched[1:3, :2] = False
    assert torch.equal(guided[0][untouched], prediction[0][untouched])
    assert (guided[0][~untouched] != prediction[0][~untouched]).all()
