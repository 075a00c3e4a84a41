"""One update: equal to the written-out arithmetic, and skipped if not finite."""

import itertools

import numpy as np
import pytest
import tiny_run
import torch
from diffusers.optimization import get_scheduler
from kernel_marker import needs_kernels

from diffusion_policy.checkpoint import build_policy
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.model.cpu import kernels
from diffusion_policy.model.cpu.convolution import Convolution
from diffusion_policy.model.diffusion.ema_model import EMAModel
from diffusion_policy.model.normalizer import LinearNormalizer, get_image_range_normalizer
from diffusion_policy.training_config import ConfigError, config_errors
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.batches import NOISE, Batch, derived_seed
from diffusion_policy.workspace.losses import BatchLoss, NoiseSampler, near_gripper_change
from diffusion_policy.workspace.metrics import read_metrics
from diffusion_policy.workspace.optimization import Stages, make_optimizer, make_schedule, roles_of, split_by_layer
from diffusion_policy.workspace.param_groups import Role
from diffusion_policy.workspace.processes import Processes
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
    out_of_memory,
)
from diffusion_policy.workspace.updates import Updates, autocast_dtype

CPU = torch.device("cpu")
SEED, WINDOWS = 42, 2


@pytest.fixture
def config(tmp_path):
    return tiny_run.settings(tmp_path, "policy.crop_shape=null", "training.precision=float32")


def policy_with_normalizer(config):
    torch.manual_seed(0)
    policy = build_policy(config)
    normalizer = LinearNormalizer()
    generator = torch.Generator().manual_seed(1)
    normalizer.fit({key: torch.rand(50, n, generator=generator) for key, n in WIDTHS.items()})
    normalizer["image"] = get_image_range_normalizer()
    policy.set_normalizer(normalizer)
    return policy


WIDTHS = {"action": 8, "robot_eef_pose": 7, "robot_gripper_state": 1}


def batch(number, n=WINDOWS):
    generator = torch.Generator().manual_seed(100 + number)
    obs = {
        "image": torch.randint(0, 256, (n, 2, 3, 36, 40), dtype=torch.uint8, generator=generator),
        "robot_eef_pose": torch.rand(n, 2, 7, generator=generator),
        "robot_gripper_state": torch.rand(n, 2, 1, generator=generator).round(),
    }
    action = torch.rand(n, 16, 8, generator=generator)
    return Batch({"obs": obs, "action": action}, list(range(n)), range(n), number)


def updates_of(policy, config, roles=None, ema=None):
    roles = roles or {name: Role("fresh") for name, _ in policy.named_parameters()}
    optimizer = make_optimizer(policy, config.optimizer, config.learning_rates, roles)
    schedule = make_schedule(optimizer, config.training, 40)
    stages = Stages(config.stages, policy, roles, optimizer)
    loss = BatchLoss(policy, config.loss, config.observation_dropout)
    return Updates(loss, optimizer, schedule, stages, ema, NoiseSampler(policy, SEED), config.training, Processes(CPU))


def test_twenty_updates_equal_the_plain_float32_loop(config):
    """To the bit, with the same AdamW; its fused form rounds otherwise, and twenty updates amplify a last digit."""
    ours, theirs = policy_with_normalizer(config), policy_with_normalizer(config)
    average, their_average = policy_with_normalizer(config), policy_with_normalizer(config)
    updates = updates_of(ours, config, ema=EMAModel(average, power=0.75))
    parameters = dict(theirs.named_parameters())
    decayed = {id(p) for n, p in parameters.items() if n.startswith("model.") and p.ndim == 2}
    trained = {id(p): p for n, p in parameters.items() if p.requires_grad}
    encoder = {id(p) for p in theirs.obs_encoder.parameters()}
    groups = [
        {"params": [p for i, p in trained.items() if i in decayed], "weight_decay": 1e-3},
        {"params": [p for i, p in trained.items() if i in encoder], "weight_decay": 1e-6},
        {"params": [p for i, p in trained.items() if i not in decayed | encoder], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=2, num_training_steps=40)
    for step in range(20):
        torch.manual_seed(step)  # dropout
        outcome = updates.make([batch(step)], 0, step)
        torch.manual_seed(step)
        generator = torch.Generator().manual_seed(derived_seed(SEED, NOISE, 0, step))
        noise = torch.randn(WINDOWS, 16, 8, generator=generator)
        timesteps = torch.randint(0, 20, (WINDOWS,), generator=generator)
        data = batch(step).data
        clean = theirs.normalizer["action"].normalize(data["action"])
        obs = theirs.normalizer.normalize({**data["obs"], "image": data["obs"]["image"].float() / 255})
        features = theirs.obs_encoder({key: value.flatten(0, 1) for key, value in obs.items()})
        noisy = theirs.noise_scheduler.add_noise(clean, noise, timesteps)
        loss = ((theirs.model(noisy, timesteps, features.reshape(WINDOWS, 2, -1)) - noise) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        decay = 0.0 if step <= 1 else 1 - step**-0.75
        with torch.no_grad():
            for mean, live in zip(their_average.parameters(), theirs.parameters(), strict=True):
                if live.requires_grad:
                    mean.mul_(decay).add_(live, alpha=1 - decay)
        assert float(outcome.loss) == float(loss.detach())
    for first, second in ((ours, theirs), (average, their_average)):
        for (name, mine), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
            assert torch.equal(mine, other), name


def test_the_fused_step_is_that_of_plain_adamw(config):
    ours, theirs = policy_with_normalizer(config), policy_with_normalizer(config)
    generator = torch.Generator().manual_seed(4)
    optimizer = updates_of(ours, config).optimizer
    learned = [p for p in theirs.parameters() if p.requires_grad]
    by_name = dict(theirs.named_parameters())
    names = {id(p): name for name, p in ours.named_parameters()}
    groups = [{**g, "params": [by_name[names[id(p)]] for p in g["params"]]} for g in optimizer.param_groups]
    plain = torch.optim.AdamW([{**g, "fused": False, "foreach": False} for g in groups])
    for _ in range(3):
        for mine, other in zip([p for p in ours.parameters() if p.requires_grad], learned, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        optimizer.step()
        plain.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-7), name


def test_accumulated_batches_equal_one_large_batch(config):
    config.policy.p_drop_attn = 0.0
    small, large = (policy_with_normalizer(config) for _ in range(2))
    parts = [batch(0, 3), batch(1, 1)]
    draws = [NoiseSampler(small, SEED).draw(part, 0, part.number) for part in parts]
    updates_of(small, config).make(parts, 0, 5)
    data = {
        "obs": {key: torch.cat([p.data["obs"][key] for p in parts]) for key in parts[0].data["obs"]},
        "action": torch.cat([p.data["action"] for p in parts]),
    }
    updates = updates_of(large, config)
    noise, timesteps = (torch.cat([draw.sampled[name] for draw in draws]) for name in ("noise", "timesteps"))
    updates.stages.enter(5)
    large.compute_loss(data, noise=noise, timesteps=timesteps).backward()
    updates.optimizer.step()
    for (name, mine), other in zip(small.named_parameters(), large.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=2e-5), name


def test_an_update_that_is_not_finite_changes_nothing(config):
    policy = policy_with_normalizer(config)
    updates = updates_of(policy, config)
    updates.make([batch(0)], 0, 0)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    broken = batch(1)
    broken.data["action"][0, 0, 0] = torch.nan
    outcome = updates.make([broken], 0, 1)
    assert not torch.isfinite(outcome.norm)
    assert all(torch.equal(before[name], p) for name, p in policy.named_parameters())
    updates.make([batch(2)], 0, 2)
    assert all(torch.isfinite(p).all() for p in policy.parameters())
    assert any(not torch.equal(before[name], p) for name, p in policy.named_parameters())


def test_gradients_that_are_infinite_under_a_finite_loss_change_nothing(config):
    policy = policy_with_normalizer(config)
    updates = updates_of(policy, config)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    handle = policy.model.head.bias.register_hook(lambda gradient: gradient.fill_(torch.inf))
    outcome = updates.make([batch(0)], 0, 5)
    handle.remove()
    assert torch.isfinite(outcome.loss)
    assert not torch.isfinite(outcome.norm)
    assert all(torch.equal(before[name], p) for name, p in policy.named_parameters())


def test_weights_count_and_ones_change_nothing(config):
    policy = policy_with_normalizer(config)
    data, draw = batch(0).data, NoiseSampler(policy, SEED).draw(batch(0), 0, 0)
    data["action"][..., 7] = torch.tensor([1.0] * 8 + [0.0] * 8)
    policy.eval()
    plain = BatchLoss(policy, config.loss, config.observation_dropout)
    expected = policy.compute_loss(data, **draw.sampled)
    assert torch.equal(plain(data, draw.sampled, draw.hidden), expected)

    config.loss.gripper_weight, config.loss.event_weight, config.loss.event_radius = 2.0, 3.0, 1
    weighted = BatchLoss(policy, config.loss, config.observation_dropout)
    weights = weighted.weights_of(data["action"])
    assert weights[0, :, 0].tolist() == [1.0] * 7 + [3.0] * 3 + [1.0] * 6
    assert weights[0, :, 7].tolist() == [2.0] * 7 + [6.0] * 3 + [2.0] * 6
    seen = []
    with policy.model.register_forward_hook(lambda _, __, prediction: seen.append(prediction)):
        found = weighted(data, draw.sampled, draw.hidden)
    assert torch.allclose(found, (weights * (seen[0] - draw.sampled["noise"]) ** 2).mean(), rtol=1e-5)


def test_bf16_follows_float32_and_keeps_float32_weights(config):
    config.policy.p_drop_attn = 0.0
    losses = {}
    for precision in ("float32", "bf16"):
        config.training.precision = precision
        updates = updates_of(policy_with_normalizer(config), config)
        losses[precision] = [float(updates.make([batch(step)], 0, step).loss) for step in range(6)]
        assert all(p.dtype == torch.float32 for p in updates.policy.parameters())
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bf16"] != losses["float32"]


@needs_kernels
def test_auto_is_float32_with_faster_convolutions_where_a_cpu_lacks_bf16(config, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    config.policy.p_drop_attn = 0.0
    losses, weights = {}, {}
    for precision in ("float32", "auto"):
        config.training.precision = precision
        updates = updates_of(policy_with_normalizer(config), config)
        losses[precision] = [float(updates.make([batch(step)], 0, step).loss) for step in range(6)]
        layers = [module for module in updates.policy.modules() if isinstance(module, Convolution)]
        assert len(layers) == 20
        assert {layer.fast for layer in layers} == {precision == "auto"}
        weights[precision] = torch.cat([p.detach().flatten() for p in updates.policy.parameters()])
    assert losses["auto"] == pytest.approx(losses["float32"], rel=1e-4)
    assert not torch.equal(weights["auto"], weights["float32"])


def test_a_compiled_loss_has_no_graph_break(config):
    config.loss.gripper_weight, config.observation_dropout.gripper = 2.0, 0.5
    policy = policy_with_normalizer(config).eval()
    loss = BatchLoss(policy, config.loss, config.observation_dropout)
    draw = NoiseSampler(policy, SEED).draw(batch(0), 0, 0)
    traced = torch.compile(loss, backend="eager", fullgraph=True)
    arguments = batch(0).data, draw.sampled, draw.hidden
    assert torch.allclose(traced(*arguments), loss(*arguments), rtol=1e-5)


def test_steps_near_a_change_of_the_gripper():
    commands = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0.0], [1, 1, 1, 1, 1, 1, 1, 1]])
    assert near_gripper_change(commands, 0).int().tolist() == [[0, 0, 0, 1, 0, 0, 0, 0], [0] * 8]
    assert near_gripper_change(commands, 2).int().tolist() == [[0, 1, 1, 1, 1, 1, 0, 0], [0] * 8]


def test_the_observed_gripper_is_hidden_in_its_share_of_windows(config):
    config.observation_dropout.gripper = 0.5
    loss = BatchLoss(policy_with_normalizer(config), config.loss, config.observation_dropout)
    obs = {"robot_gripper_state": torch.ones(3, 2, 1), "robot_eef_pose": torch.ones(3, 2, 7)}
    hidden = loss._hide_gripper(obs, torch.tensor([0.1, 0.5, 0.9]))
    assert hidden["robot_gripper_state"][:, :, 0].tolist() == [[0.5, 0.5], [1, 1], [1, 1]]
    assert hidden["robot_eef_pose"] is obs["robot_eef_pose"]


def test_other_observations_are_hidden_each_in_its_share_behind_the_middle_of_their_range(config):
    config.observation_dropout.low_dim = {"robot_eef_pose": 0.4, "robot_gripper_state": 1.0}
    policy = policy_with_normalizer(config)
    loss = BatchLoss(policy, config.loss, config.observation_dropout)
    obs = {"robot_gripper_state": torch.ones(2, 2, 1), "robot_eef_pose": torch.ones(2, 2, 7), "image": torch.ones(2)}
    hidden = loss._hide_low_dim(obs, torch.tensor([[0.3, 0.9], [0.5, 0.9]]))
    limits = policy.normalizer["robot_eef_pose"].get_input_stats()
    assert torch.equal(hidden["robot_eef_pose"][0, 0], (limits["min"] + limits["max"]) / 2)
    assert torch.equal(hidden["robot_eef_pose"][1], obs["robot_eef_pose"][1])
    gripper = policy.normalizer["robot_gripper_state"].get_input_stats()
    assert hidden["robot_gripper_state"].unique().tolist() == [float(gripper["min"] + gripper["max"]) / 2]
    assert hidden["image"] is obs["image"]


def test_hiding_another_observation_leaves_what_else_is_drawn(config):
    policy = policy_with_normalizer(config)
    alone, beside = (NoiseSampler(policy, SEED, n_low_dim=n).draw(batch(0), 0, 0) for n in (0, 2))
    assert torch.equal(alone.hidden, beside.hidden)
    for name in ("noise", "timesteps"):
        assert torch.equal(alone.sampled[name], beside.sampled[name])
    assert beside.low_dim.shape == (WINDOWS, 2)
    assert not torch.equal(beside.low_dim[:, 0], beside.low_dim[:, 1])


def test_a_share_of_a_batch_draws_what_the_whole_batch_would(config):
    noise_sampler = NoiseSampler(policy_with_normalizer(config), SEED)
    data, indices = {}, list(range(5))
    whole = noise_sampler.draw(Batch(data, indices, range(5), 0), 3, 0)
    for rank, world_size in itertools.product(range(3), (2, 3)):
        if rank < world_size:
            share = noise_sampler.draw(Batch(data, indices, range(rank, 5, world_size), 0), 3, 0)
            for name in ("noise", "timesteps"):
                assert torch.equal(share.sampled[name], whole.sampled[name][rank::world_size])
    filler = noise_sampler.draw(Batch(data, [7], range(1, 1), 0), 3, 0)
    assert len(filler.sampled["noise"]) == 1


def test_learning_rates_by_role_and_by_layer(config):
    config.policy.n_layer = 2
    policy = policy_with_normalizer(config)
    config.learning_rates.inherited = 0.1
    roles = {n: Role("fresh" if n.startswith("model.head") else "inherited") for n, _ in policy.named_parameters()}
    optimizer = make_optimizer(policy, config.optimizer, config.learning_rates, roles)
    names = {id(p): n for n, p in policy.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates["model.head.weight"] == pytest.approx(1e-4)
    assert rates["model.ln_f.weight"] == pytest.approx(1e-5)
    config.learning_rates.obs_encoder = 0.5
    optimizer = make_optimizer(policy, config.optimizer, config.learning_rates, roles)
    halved = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, rate in rates.items():
        assert halved[name] == pytest.approx(rate * (0.5 if name.startswith("obs_encoder.") else 1)), name
    groups = split_by_layer([{"params": list(policy.parameters()), "lr": 1.0}], policy, 0.5)
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert rates["model.head.weight"] == rates["model.decoder.layers.1.linear1.weight"] == 1.0
    assert rates["model.decoder.layers.0.linear1.weight"] == 0.5
    assert rates["model.input_emb.weight"] == rates["obs_encoder.obs_nets.image.nets.3.weight"] == 0.25


def test_an_option_that_the_optimizer_lacks_is_named(config):
    del config.optimizer.betas
    policy = policy_with_normalizer(config)
    with pytest.raises(ConfigError, match=r"the config has no optimizer\.betas"), config_errors(config):
        make_optimizer(policy, config.optimizer, config.learning_rates, roles_of(policy, None))


def test_stages_let_parameters_rest_and_wake_them(config):
    policy = policy_with_normalizer(config)
    config.stages = [{"steps": 2, "learn": ["fresh"]}, {"learn": ["inherited", "fresh"]}]
    roles = {n: Role("fresh" if n.startswith("model.head") else "inherited") for n, _ in policy.named_parameters()}
    updates = updates_of(policy, config, roles)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    for step in range(2):
        updates.make([batch(step)], 0, step)
    changed = {name for name, p in policy.named_parameters() if not torch.equal(before[name], p)}
    assert changed == {"model.head.weight", "model.head.bias"}
    updates.make([batch(2)], 0, 2)
    changed = {name for name, p in policy.named_parameters() if not torch.equal(before[name], p)}
    assert "model.input_emb.weight" in changed
    config.stages = [{"learn": ["grown"]}]
    with pytest.raises(TrainingError, match=r"trains \['grown'\] parameters, but the model has only"):
        updates_of(policy, config, roles)


@pytest.mark.parametrize(("found", "dtype"), [({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, None)])
def test_precision_follows_the_device(found, dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert autocast_dtype("auto", CPU) == dtype
    assert autocast_dtype("bf16", CPU) == torch.bfloat16
    assert autocast_dtype("float32", CPU) is None
    with pytest.raises(TrainingError, match="expected one of auto, bf16, float32"):
        autocast_dtype("fp8", CPU)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "set.zarr")


def with_broken_batch(dataset, folder, *overrides):
    """A run whose dataset returns NaN for the windows of one batch."""
    run = TrainDiffusionTransformerHybridWorkspace(tiny_run.settings(dataset, *overrides), folder)
    prepare = run._prepare

    def prepare_and_break(processes, stack):
        prepare(processes, stack)
        make = run._updates.make

        def broken(batches, epoch, global_step):
            if global_step == 1:
                batches[0].data["action"].fill_(torch.nan)
            return make(batches, epoch, global_step)

        run._updates.make = broken

    run._prepare = prepare_and_break
    return run


def test_nan_stops_the_run_with_step_episodes_and_a_dump(dataset, tmp_path):
    with pytest.raises(
        TrainingError, match=r"update 2: loss nan.*episodes \[\d.*not_finite_step_2.pt holds batch and weights"
    ):
        with_broken_batch(dataset, tmp_path).run()
    dump = torch.load(tmp_path / "not_finite_step_2.pt", weights_only=True)
    assert dump["global_step"] == 2
    assert len(dump["windows"]) == len(dump["batch"]["action"]) == 8
    ends = ReplayBuffer.open(dataset).episode_ends
    assert set(dump["episodes"]) <= set(range(len(ends)))
    assert dump["model"]["model.head.weight"].isfinite().all()
    assert [line["global_step"] for line in read_metrics(tmp_path / "logs.json.txt")] == [0, 1]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_device_without_memory_names_the_settings_to_lower(error, dataset, tmp_path):
    run = TrainDiffusionTransformerHybridWorkspace(tiny_run.settings(dataset), tmp_path)

    def exhausted(processes, stack):
        raise error

    run._prepare = exhausted
    with pytest.raises(
        TrainingError, match=r"lower dataloader\.batch_size \(now 8\) and raise training\.gradient_acc"
    ) as output:
        run.run()
    assert "cache" not in str(output.value)
    run.cfg.training.cache = "memory"
    with pytest.raises(TrainingError, match=r"Or set training\.cache=none \(now memory\)"):
        run.run()


def test_unavailable_memory_of_the_machine_is_recognized():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("shapes differ"))


def test_a_budget_lets_some_pass(dataset, tmp_path):
    with_broken_batch(dataset, tmp_path, "training.max_skipped_updates=1", "training.num_epochs=1").run()
    lines = read_metrics(tmp_path / "logs.json.txt")
    assert [line.get("skipped", False) for line in lines] == [False, False, True, False]
    assert np.isfinite(lines[-1]["train_loss"])


def test_without_the_compiled_kernels_training_says_that_it_is_slower(config, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    monkeypatch.setattr(kernels, "why_unavailable", lambda: "they were not built")
    config.training.precision = "auto"
    updates = updates_of(policy_with_normalizer(config), config)
    assert "training.precision auto: half as fast without the compiled kernels: they were not built" in caplog.text
    assert not any(module.fast for module in updates.policy.modules() if isinstance(module, Convolution))
