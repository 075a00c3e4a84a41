import copy
import inspect
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch.nn import functional

from diffusion_policy.model import ModelError
from diffusion_policy.policy.diffusion_transformer_hybrid_image_policy import DiffusionTransformerHybridImagePolicy
from diffusion_policy.policy.observation_batch import PolicyError

Policy = DiffusionTransformerHybridImagePolicy
Maker = Callable[..., Any]

TWO_CAMERAS = {
    "obs": {
        "wrist": {"shape": [3, 32, 33], "type": "rgb"},
        "gripper": {"shape": [1], "type": "low_dim"},
        "front": {"shape": [3, 40, 36], "type": "rgb"},
    },
    "action": {"shape": [7]},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "transformer over the condition": {"n_cond_layers": 1},
    "not causal": {"causal_attn": False},
    "inpainting": {"obs_as_cond": False},
    "inpainting, not causal": {"obs_as_cond": False, "causal_attn": False},
    "time as token": {"obs_as_cond": False, "time_as_cond": False},
    "time as token, not causal": {"obs_as_cond": False, "time_as_cond": False, "causal_attn": False},
    "whole images": {"crop_shape": None},
    "batch norm": {"obs_encoder_group_norm": False},
    "random crops": {"eval_fixed_crop": False},
    "two cameras": {"shape_meta": TWO_CAMERAS},
    "two cameras, whole images, batch norm": {
        "shape_meta": TWO_CAMERAS,
        "crop_shape": None,
        "obs_encoder_group_norm": False,
    },
    "executed steps only": {"pred_action_steps_only": True},
    "executed steps only, not causal": {"pred_action_steps_only": True, "causal_attn": False},
    "one observation step": {"n_obs_steps": 1},
    "all inference steps": {"num_inference_steps": None},
    "dropout of embeddings": {"p_drop_emb": 0.1, "p_drop_attn": 0.0},
    "color jitter": {"color_jitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option_samples_and_learns(
    options: dict[str, Any], make_policy: Maker, make_observation: Maker, make_batch: Maker
) -> None:
    policy: Policy = make_policy(**options)
    for name, value in options.items():
        expected = 100 if name == "num_inference_steps" else value
        assert getattr(policy, name) == expected
    policy.num_inference_steps = 2
    result = policy.predict_action(make_observation(policy))
    length = 3 if policy.pred_action_steps_only else 6
    assert result["action"].shape == (2, 3, policy.action_dim)
    assert result["action_pred"].shape == (2, length, policy.action_dim)
    assert result["action_pred"].isfinite().all()

    policy.train()
    loss = policy.compute_loss(make_batch(policy))
    loss.backward()
    idle = {name for name, p in policy.named_parameters() if p.requires_grad and p.grad is None}
    if policy.obs_as_cond:
        assert not idle
    else:
        assert all(name.startswith("obs_encoder.") for name in idle), "features are targets there, so they are detached"


def test_every_option_is_an_attribute(make_policy: Maker) -> None:
    policy = make_policy()
    options = set(inspect.signature(Policy.__init__).parameters) - {"self"}
    assert [name for name in options if not hasattr(policy, name)] == []
    assert policy.crop_shape == (32, 32)


def test_a_misspelled_option_is_an_error(make_policy: Maker) -> None:
    with pytest.raises(TypeError, match="n_layers"):
        make_policy(n_layers=4)
    with pytest.raises(ModelError, match="no setting 'color'"):
        make_policy(color_jitter={"color": 0.1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_action_steps": 6}, "n_obs_steps - 1 . n_action_steps is 7, beyond the horizon of 6"),
        ({"n_obs_steps": 0}, "n_obs_steps is 0; expected 1 or more"),
        ({"time_as_cond": False}, "time_as_cond: False works only with obs_as_cond: False"),
        ({"pred_action_steps_only": True, "obs_as_cond": False}, "pred_action_steps_only needs obs_as_cond"),
        ({"crop_shape": (32,)}, r"crop_shape is \[32\]; expected \(height, width\) or null"),
        ({"noise_scheduler": DDPMScheduler(prediction_type="v_prediction")}, "prediction_type is 'v_prediction'"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict[str, Any], message: str, make_policy: Maker) -> None:
    with pytest.raises(PolicyError, match=message):
        make_policy(**options)


def test_the_executed_slice_starts_at_the_last_observed_step(make_policy: Maker, make_observation: Maker) -> None:
    policy = make_policy()
    result = policy.predict_action(make_observation(policy))
    assert torch.equal(result["action"], result["action_pred"][:, 1:4])


def test_the_same_noise_gives_the_same_action(make_policy: Maker, make_observation: Maker) -> None:
    policy = make_policy()
    policy.noise_scheduler = DDIMScheduler.from_config(policy.noise_scheduler.config)
    obs, noise = make_observation(policy), torch.randn(2, 6, 8)
    kept = noise.clone()
    first, second = (policy.predict_action(obs, initial_noise=noise)["action"] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(noise, kept)
    other = policy.predict_action(obs, initial_noise=noise + 0.1)["action"]
    assert not torch.allclose(first, other)


def test_a_generator_draws_everything(make_policy: Maker, make_observation: Maker) -> None:
    policy = make_policy(eval_fixed_crop=False)
    obs = make_observation(policy)
    state = torch.get_rng_state()
    first, second = (policy.predict_action(obs, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first["action_pred"], second["action_pred"])
    assert torch.equal(state, torch.get_rng_state()), "torch's own generator is left alone"


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_schedulers_and_step_counts_are_replaceable(kind: type, make_policy: Maker, make_observation: Maker) -> None:
    policy = make_policy()
    policy.noise_scheduler = kind.from_config(policy.noise_scheduler.config)
    calls: list[int] = []
    policy.model.register_forward_hook(lambda *_: calls.append(1))
    for steps in (3, 5):
        calls.clear()
        policy.num_inference_steps = steps
        assert policy.predict_action(make_observation(policy))["action"].isfinite().all()
        assert len(calls) == steps


def test_too_many_steps_are_refused(make_policy: Maker, make_observation: Maker) -> None:
    policy = make_policy(num_inference_steps=101)
    with pytest.raises(PolicyError, match="num_inference_steps is 101; expected 1 to the 100"):
        policy.predict_action(make_observation(policy))


def test_eta_reaches_the_scheduler_or_is_refused(make_policy: Maker, make_observation: Maker) -> None:
    policy = make_policy(eta=1.0)
    obs, noise = make_observation(policy), torch.randn(2, 6, 8)
    with pytest.raises(PolicyError, match=r"eta is 1.0, but DDPMScheduler takes none"):
        policy.predict_action(obs)
    policy.noise_scheduler = DDIMScheduler.from_config(policy.noise_scheduler.config)
    first, second = (policy.predict_action(obs, initial_noise=noise)["action"] for _ in range(2))
    assert not torch.equal(first, second)


def test_noise_that_does_not_fit_is_refused(make_policy: Maker, make_observation: Maker) -> None:
    policy = make_policy()
    for noise in (torch.zeros(2, 6, 7), torch.full((2, 6, 8), torch.nan)):
        with pytest.raises(PolicyError, match=r"expected finite numbers \(2, 6, 8\)"):
            policy.predict_action(make_observation(policy), initial_noise=noise)


def test_only_the_observed_steps_enter(make_policy: Maker, make_observation: Maker, make_batch: Maker) -> None:
    policy = make_policy()
    batch = make_batch(policy)
    noise, timesteps = torch.randn(2, 6, 8), torch.tensor([3, 90])
    loss = policy.compute_loss(batch, noise, timesteps)
    batch["obs"]["pose"][:, 2:] = torch.nan
    assert torch.equal(policy.compute_loss(batch, noise, timesteps), loss)


def test_inpainting_keeps_the_observed_features(make_policy: Maker, make_observation: Maker) -> None:
    policy = make_policy(obs_as_cond=False)
    obs = make_observation(policy)
    seen: list[torch.Tensor] = []
    policy.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    policy.predict_action(obs)
    pixels = {**obs, "image": obs["image"].float() / 255}
    steps = {key: value.flatten(0, 1) for key, value in policy.normalizer.normalize(pixels).items()}
    features = policy.obs_encoder(steps).unflatten(0, (2, 2))
    assert len(seen) == 2
    for sample in seen:
        assert sample.shape == (2, 6, 8 + 64 + 7)
        torch.testing.assert_close(sample[:, :2, 8:], features)


def test_inpainting_learns_from_observations_of_the_whole_horizon(make_policy: Maker, make_batch: Maker) -> None:
    policy = make_policy(obs_as_cond=False)
    batch = make_batch(policy)
    batch["obs"] = {key: value[:, :2] for key, value in batch["obs"].items()}
    with pytest.raises(PolicyError, match=r"expected \(B, 6 or more"):
        policy.compute_loss(batch)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_loss_is_the_mean_squared_error_of_the_prediction(
    prediction: str, make_policy: Maker, make_batch: Maker
) -> None:
    policy = make_policy()
    policy.noise_scheduler = DDPMScheduler.from_config(policy.noise_scheduler.config, prediction_type=prediction)
    batch = make_batch(policy)
    torch.manual_seed(2)
    noise, timesteps = torch.randn(2, 6, 8), torch.tensor([0, 99])
    clean = policy.normalizer["action"].normalize(batch["action"])
    noisy = policy.noise_scheduler.add_noise(clean, noise, timesteps)
    seen: list[torch.Tensor] = []
    policy.model.register_forward_hook(lambda _, args, output: seen.extend((args[0], output)))
    with torch.no_grad():
        loss = policy.compute_loss(batch, noise, timesteps)
    torch.testing.assert_close(seen[0], noisy)
    torch.testing.assert_close(loss, functional.mse_loss(seen[1], noise if prediction == "epsilon" else clean))


@pytest.mark.parametrize("executed_only", [False, True])
def test_loss_weights_count_the_numbers_of_the_action(
    executed_only: bool, make_policy: Maker, make_batch: Maker
) -> None:
    policy = make_policy(pred_action_steps_only=executed_only)
    batch, steps = make_batch(policy), slice(1, 4) if executed_only else slice(None)
    noise, timesteps = torch.randn(2, policy.sequence_length, 8), torch.tensor([3, 80])
    weights = torch.rand(2, 6, 8)
    seen: list[torch.Tensor] = []
    policy.model.register_forward_hook(lambda _, __, output: seen.append(output))
    loss = policy.compute_loss(batch, noise, timesteps, weights)
    torch.testing.assert_close(loss, (weights[:, steps] * (seen[0] - noise) ** 2).mean())
    ones = policy.compute_loss(batch, noise, timesteps, torch.ones_like(weights))
    assert torch.equal(ones, policy.compute_loss(batch, noise, timesteps))
    with pytest.raises(PolicyError, match=r"loss weights have shape \(2, 6, 1\); expected \(2, 6, 8\)"):
        policy.compute_loss(batch, noise, timesteps, weights[..., :1])


def test_loss_weights_of_an_inpainted_sample_are_refused(make_policy: Maker, make_batch: Maker) -> None:
    policy = make_policy(obs_as_cond=False)
    with pytest.raises(PolicyError, match="an inpainted sample holds features too"):
        policy.compute_loss(make_batch(policy), weights=torch.ones(2, 6, 8))


def test_a_solver_in_use_does_not_change_the_loss(
    make_policy: Maker, make_observation: Maker, make_batch: Maker
) -> None:
    policy = make_policy()
    batch, noise, timesteps = make_batch(policy), torch.randn(2, 6, 8), torch.tensor([13, 57])
    loss = policy.compute_loss(batch, noise, timesteps)
    policy.noise_scheduler = DPMSolverMultistepScheduler.from_config(policy.noise_scheduler.config)
    policy.predict_action(make_observation(policy))
    torch.testing.assert_close(policy.compute_loss(batch, noise, timesteps), loss)


def test_executed_steps_only_learns_the_executed_steps(make_policy: Maker, make_batch: Maker) -> None:
    policy = make_policy(pred_action_steps_only=True)
    batch, noise, timesteps = make_batch(policy), torch.randn(2, 3, 8), torch.tensor([0, 10])
    loss = policy.compute_loss(batch, noise, timesteps)
    batch["action"][:, [0, 4, 5]] += 1
    assert torch.equal(policy.compute_loss(batch, noise, timesteps), loss)
    batch["action"][:, 1] += 1
    assert not torch.equal(policy.compute_loss(batch, noise, timesteps), loss)


def test_batches_that_do_not_fit_are_refused(make_policy: Maker, make_batch: Maker) -> None:
    policy = make_policy()
    batch = make_batch(policy)
    with pytest.raises(PolicyError, match=r"actions have shape \(2, 6, 7\); expected \(B, 6, 8\)"):
        policy.compute_loss({**batch, "action": batch["action"][..., :7]})
    with pytest.raises(PolicyError, match="holds 1 actions, but 2 observations"):
        policy.compute_loss({**batch, "action": batch["action"][:1]})
    with pytest.raises(PolicyError, match="do not fit samples"):
        policy.compute_loss(batch, noise=torch.zeros(2, 5, 8))


def test_without_a_normalizer_there_is_no_answer(make_policy: Maker, make_observation: Maker) -> None:
    trained = make_policy()
    fresh = Policy(
        **{name: getattr(trained, name) for name in inspect.signature(Policy.__init__).parameters if name != "self"}
    ).eval()
    with pytest.raises(ModelError, match="it is empty: call set_normalizer, or load a checkpoint"):
        fresh.predict_action(make_observation(fresh))
    fresh.load_state_dict(trained.state_dict())
    noise = torch.randn(2, 6, 8)
    results = [
        policy.predict_action(make_observation(policy), noise, torch.Generator().manual_seed(0))["action"]
        for policy in (fresh, trained)
    ]
    assert torch.equal(*results)


def test_copies_and_files_keep_shared_tensors_shared(make_policy: Maker) -> None:
    policy = make_policy()
    twin = copy.deepcopy(policy)
    twin.obs_encoder.obs_nets["image"].backbone.nets[0].weight.data.fill_(7)
    assert twin.obs_encoder.obs_nets["image"].nets[0].nets[0].weight.eq(7).all()
    assert not policy.obs_encoder.obs_nets["image"].backbone.nets[0].weight.eq(7).any()
    file = io.BytesIO()
    torch.save(policy.state_dict(), file)
    unique = sum(p.numel() * 4 for p in policy.parameters()) + sum(b.numel() * 4 for b in policy.buffers())
    assert unique < file.getbuffer().nbytes < 1.1 * unique


def test_optimizer_groups(make_policy: Maker) -> None:
    policy = make_policy()
    optimizer = policy.get_optimizer(
        transformer_weight_decay=1e-3, obs_encoder_weight_decay=1e-6, learning_rate=1e-4, betas=[0.9, 0.95]
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-3, 0.0, 1e-6]
    assert all(group["lr"] == 1e-4 and group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    learned = {id(parameter) for parameter in policy.parameters() if parameter.requires_grad}
    assert len(grouped) == len({id(parameter) for parameter in grouped})
    assert learned <= {id(parameter) for parameter in grouped}
