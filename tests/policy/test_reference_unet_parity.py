"""The numbers and names of the code base that wrote the users' checkpoints with a UNet."""

import json
import lzma
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from omegaconf import OmegaConf
from torch import Tensor

from diffusion_policy.checkpoint import Checkpoint, load_policy, read_checkpoint, write_checkpoint
from diffusion_policy.model.diffusion.ema_model import EMAModel
from diffusion_policy.policy.diffusion_unet_hybrid_image_policy import DiffusionUnetHybridImagePolicy
from diffusion_policy.workspace.batches import Batch
from diffusion_policy.workspace.losses import BatchLoss, BatchNoise
from diffusion_policy.workspace.optimization import Stages, make_optimizer, make_schedule, roles_of
from diffusion_policy.workspace.processes import Processes
from diffusion_policy.workspace.updates import Updates

Numbers = dict[str, Tensor]
NAMES = ("unet_7d_tiny", "unet_7d_inpaint")
NORMALIZER = "normalizer."
# Softmax does not see this bias: its gradient is zero up to rounding.
UNSEEN = "pool.nets.bias"


def arrays(path: Path) -> Numbers:
    with np.load(path) as file:
        found = {name: file[name] for name in file.files}
    return {name: torch.from_numpy(array) for name, array in found.items() if array.dtype.kind in "fiub"}


def words(path: Path, name: str) -> list[str]:
    with np.load(path) as file:
        return [str(word) for word in file[name]]


def observations(numbers: Numbers, prefix: str) -> Numbers:
    found = {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}
    return {key: value.movedim(-1, -3) if value.dtype == torch.uint8 else value for key, value in found.items()}


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "reference_unet"


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(folder: Path, name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    path = tmp_path_factory.mktemp("unet") / f"{name}.ckpt"
    with lzma.open(folder / f"{name}.ckpt.xz") as packed, path.open("wb") as file:
        shutil.copyfileobj(packed, file)
    yield read_checkpoint(path)
    path.unlink()


@pytest.fixture(scope="module")
def numbers(folder: Path, name: str) -> Numbers:
    return arrays(folder / f"{name}.npz")


@pytest.fixture
def policy(checkpoint: Checkpoint) -> DiffusionUnetHybridImagePolicy:
    loaded = load_policy(checkpoint, which="model")
    assert isinstance(loaded, DiffusionUnetHybridImagePolicy)
    return loaded


def close(found: Tensor, expected: Tensor, bar: float) -> None:
    torch.testing.assert_close(found, expected, atol=bar, rtol=0)


@pytest.mark.parametrize("which", ["model", "ema_model"])
def test_outputs_are_the_reference_s(checkpoint: Checkpoint, numbers: Numbers, which: str) -> None:
    """Features, prediction, and both samplers, within the reference's own variation."""
    policy = load_policy(checkpoint, which=which)
    obs = observations(numbers, "obs.")
    normalized = policy.normalizer.normalize({**obs, "image": obs["image"].float() / 255})
    with torch.no_grad():
        features = policy.obs_encoder({key: value.flatten(0, 1) for key, value in normalized.items()})
        cond = features.unflatten(0, (-1, 2)) if policy.obs_as_global_cond else None
        close(policy.model(numbers["sample"], numbers["timesteps"], cond), numbers[f"{which}.eps"], 2e-5)
    close(features, numbers[f"{which}.obs_features"], 1e-5)
    known = dict(policy.noise_scheduler.config)
    shared = {key: known[key] for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")}
    policy.noise_scheduler, policy.num_inference_steps = DDIMScheduler(**shared), 8
    answer = policy.predict_action(obs, initial_noise=numbers["ddim.initial_noise"])
    close(answer["action_pred"], numbers[f"{which}.ddim8.action_pred"], 2e-5)
    close(answer["action"], numbers[f"{which}.ddim8.action"], 2e-5)
    policy.noise_scheduler = DDPMScheduler(**shared, variance_type="fixed_small")
    policy.num_inference_steps = 100
    torch.manual_seed(12)
    close(policy.predict_action(obs)["action_pred"], numbers[f"{which}.ddpm100_seed12.action_pred"], 1e-4)


def test_loss_and_gradients_are_the_reference_s(
    policy: DiffusionUnetHybridImagePolicy, numbers: Numbers, folder: Path, name: str
) -> None:
    inpainted = {key: value for key, value in numbers.items() if key.startswith("batch.obs.")}
    obs = observations(inpainted, "batch.obs.") or observations(numbers, "obs.")
    draw = {"noise": numbers["loss.noise"], "timesteps": numbers["loss.timesteps"]}
    loss = policy.loss({"obs": obs, "action": numbers["batch.action"]}, draw)
    close(loss, numbers["model.loss"], 1e-5)
    loss.backward()
    ours = dict(policy.named_parameters())
    listed = zip(words(folder / f"{name}.npz", "model.loss.grad_names"), numbers["model.loss.grad_norm"], strict=True)
    for key, expected in listed:
        gradient = ours[key].grad
        assert (gradient is None) == bool(expected < 0), key
        if gradient is not None and UNSEEN not in key:
            bar = 5e-5 if key.startswith("model.") else 1e-2  # kinks of ReLU and max pooling amplify rounding
            assert float(gradient.norm()) == pytest.approx(float(expected), rel=bar), key


class Given:
    """The random numbers of recorded updates, instead of `NoiseSampler`."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers

    def draw(self, batch: Batch, epoch: int, number: int) -> BatchNoise:
        sampled = {name: self._numbers[name][number] for name in ("noise", "timesteps")}
        return BatchNoise(sampled, torch.rand(len(batch.indices)), torch.empty(len(batch.indices), 0))


@pytest.mark.slow
def test_updates_are_the_reference_s(checkpoint: Checkpoint, folder: Path, name: str, repository: Path) -> None:
    """Optimizer, schedule and average of the checkpoint's own config, through the parts of the training loop."""
    path = folder / f"{name}_train.npz"
    numbers, watch, cfg = arrays(path), words(path, "watch"), checkpoint.cfg
    live, averaged = (load_policy(checkpoint, which=which) for which in ("model", "ema_model"))
    live.requires_grad_(requires_grad=True)
    live.normalizer.requires_grad_(requires_grad=False)
    rates, training = OmegaConf.load(repository / "config/learning_rates/uniform.yaml"), OmegaConf.create(
        {"lr_scheduler": "cosine", "lr_warmup_steps": int(numbers["lr_warmup_steps"]), "precision": "float32",
         "compile": False}
    )  # fmt: skip
    roles = roles_of(live, None)
    optimizer = make_optimizer(live, cfg.optimizer, rates, roles)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-4, (0.95, 0.999), 1e-8, 1e-6)
    schedule = make_schedule(optimizer, training, int(numbers["num_training_steps"]))
    options = {key: value for key, value in cfg.ema.items() if key != "_target_"}
    ema = EMAModel(averaged, **options)
    plain = OmegaConf.create({"gripper_weight": 1.0, "event_weight": 1.0, "event_radius": 0})
    shown = OmegaConf.create({"gripper": 0.0, "key": "robot_gripper_state"})
    loss = BatchLoss(live, plain, shown)
    stages = Stages([], live, roles, optimizer)
    updates = Updates(loss, optimizer, schedule, stages, ema, Given(numbers), training, Processes(torch.device("cpu")))
    n_windows = numbers["batch.action"].shape[1]
    for step in range(len(numbers["loss"])):
        obs = {key: value[step] for key, value in observations(numbers, "batch.obs.").items()}
        data = {"obs": obs, "action": numbers["batch.action"][step]}
        outcome = updates.make([Batch(data, list(range(n_windows)), range(n_windows), step)], 0, step)
        assert float(outcome.loss) == pytest.approx(float(numbers["loss"][step]), abs=1e-5)
        assert outcome.lr == pytest.approx(float(numbers["lr"][step]), rel=1e-6)
        assert ema.decay == pytest.approx(float(numbers["ema_decay"][step]), abs=1e-12)
    for part, found in (("model", dict(live.named_parameters())), ("ema_model", dict(averaged.named_parameters()))):
        for key in watch:
            if UNSEEN in key:
                continue
            apart = (found[key].detach() - numbers[f"{part}.{key}"]).abs().flatten()
            assert float(apart.max()) <= 1e-4, (part, key)
            assert float(torch.quantile(apart.float(), 0.99)) <= 2e-5, (part, key)


def test_names_shapes_and_order(policy: DiffusionUnetHybridImagePolicy, folder: Path, name: str) -> None:
    expected = json.loads((folder / f"{name}.keys.json").read_text())
    found = {key: list(tensor.shape) for key, tensor in policy.state_dict().items()}
    assert found == {key: shape for key, (shape, _) in expected.items()}
    assert [key for key in found if not key.startswith(NORMALIZER)] == [
        key for key in expected if not key.startswith(NORMALIZER)
    ]


def test_names_and_sizes_of_the_public_config(folder: Path) -> None:
    expected = json.loads((folder / "unet_7d_full.keys.json").read_text())
    states = {"robot_eef_pose": {"shape": [7], "type": "low_dim"}, "robot_gripper_state": {"shape": [1]}}
    with torch.device("meta"):  # names need no memory
        policy = DiffusionUnetHybridImagePolicy(
            {"obs": {"image": {"shape": [3, 180, 320], "type": "rgb"}, **states}, "action": {"shape": [7]}},
            DDPMScheduler(num_train_timesteps=100),
            horizon=16,
            n_action_steps=8,
            n_obs_steps=2,
            crop_shape=(162, 288),
            diffusion_step_embed_dim=128,
            down_dims=(512, 1024, 2048),
            obs_encoder_group_norm=True,
        )
    own = {key: shape for key, (shape, _) in expected.items() if not key.startswith(NORMALIZER)}
    found = {key: list(tensor.shape) for key, tensor in policy.state_dict().items()}
    assert list(found) == list(own)
    assert found == own
    assert sum(parameter.numel() for parameter in policy.model.parameters()) == 251_873_927


def test_a_checkpoint_goes_back_as_the_reference_wrote_it(
    checkpoint: Checkpoint, policy: DiffusionUnetHybridImagePolicy, tmp_path: Path
) -> None:
    """Config, every tensor, and the optimizer's indices, of which the reference has one for each parameter."""
    theirs = checkpoint.state_dicts["optimizer"]
    ours = torch.optim.AdamW(policy.parameter_groups(OmegaConf.to_container(checkpoint.cfg.optimizer))).state_dict()
    for key in ("params", "lr", "eps", "weight_decay"):
        assert [group[key] for group in ours["param_groups"]] == [group[key] for group in theirs["param_groups"]]
    out = tmp_path / "ours.ckpt"
    states = {"model": policy.state_dict(), "ema_model": checkpoint.state_dicts["ema_model"], "optimizer": ours}
    write_checkpoint(out, cfg=checkpoint.cfg, state_dicts=states, pickles=checkpoint.pickles)
    written = read_checkpoint(out)
    assert written.cfg == checkpoint.cfg
    for which in ("model", "ema_model"):
        before, after = checkpoint.state_dict(which), written.state_dict(which)
        assert before.keys() == after.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)
    out.unlink()
