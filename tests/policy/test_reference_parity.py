"""The numbers and names of the code base that wrote the users' checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from diffusion_policy.checkpoint import load_policy, read_checkpoint
from diffusion_policy.policy.diffusion_transformer_hybrid_image_policy import DiffusionTransformerHybridImagePolicy

Numbers = dict[str, torch.Tensor]
POSE_GRIPPER_STATE = {
    "robot_eef_pose": {"shape": [7], "type": "low_dim"},
    "robot_gripper_state": {"shape": [1], "type": "low_dim"},
}


@pytest.fixture(scope="module")
def numbers(shared_data: Path) -> Numbers:
    with np.load(shared_data / "reference" / "cogact_7d_tiny.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def obs(numbers: Numbers) -> Numbers:
    return {
        "image": numbers["obs.image"].movedim(-1, -3),
        "robot_eef_pose": numbers["obs.robot_eef_pose"],
        "robot_gripper_state": numbers["obs.robot_gripper_state"],
    }


@pytest.fixture(scope="module", params=["model", "ema_model"])
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def policy(reference_checkpoint: Path, which: str) -> DiffusionTransformerHybridImagePolicy:
    return load_policy(reference_checkpoint, which=which)


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_features_and_noise(
    policy: DiffusionTransformerHybridImagePolicy, which: str, obs: Numbers, numbers: Numbers
) -> None:
    """Through the parts that users' code accesses: normalizer, obs_encoder, model."""
    normalized = policy.normalizer.normalize({**obs, "image": obs["image"].float() / 255})
    with torch.no_grad():
        features = policy.obs_encoder({key: value.flatten(0, 1) for key, value in normalized.items()})
        noise = policy.model(numbers["sample"], numbers["timesteps"], features.unflatten(0, (2, 2)))
    assert_equal(features, numbers[f"{which}.obs_features"])
    assert_equal(noise, numbers[f"{which}.eps"])


@pytest.mark.parametrize("as_floats", [False, True], ids=["uint8", "floats"])
def test_ddim(
    policy: DiffusionTransformerHybridImagePolicy, which: str, obs: Numbers, numbers: Numbers, as_floats: bool
) -> None:
    policy.noise_scheduler = DDIMScheduler.from_config(policy.noise_scheduler.config)
    policy.num_inference_steps = 8
    given = {**obs, "image": obs["image"].float() / 255} if as_floats else obs
    result = policy.predict_action(given, initial_noise=numbers["ddim.initial_noise"])
    assert_equal(result["action_pred"], numbers[f"{which}.ddim8.action_pred"])
    assert_equal(result["action"], numbers[f"{which}.ddim8.action"])


def test_ddpm_draws_in_the_same_order(
    policy: DiffusionTransformerHybridImagePolicy, which: str, obs: Numbers, numbers: Numbers
) -> None:
    policy.noise_scheduler = DDPMScheduler.from_config(policy.noise_scheduler.config)
    policy.num_inference_steps = 8
    torch.manual_seed(12)
    assert_equal(policy.predict_action(obs)["action_pred"], numbers[f"{which}.ddpm8_seed12.action_pred"])


def test_optimizer_state_of_the_reference_fits(
    policy: DiffusionTransformerHybridImagePolicy, reference_checkpoint: Path
) -> None:
    theirs = read_checkpoint(reference_checkpoint).state_dicts["optimizer"]["param_groups"]
    ours = policy.get_optimizer(1e-3, 1e-6, 1e-4, (0.9, 0.95)).state_dict()["param_groups"]
    for name in ("params", "weight_decay", "lr"):
        assert [group[name] for group in ours] == [group[name] for group in theirs]


@pytest.mark.parametrize(
    ("manifest", "n_keys", "n_layer", "n_emb"), [("cogact_7d_tiny", 211, 2, 64), ("cogact_7d_full", 319, 8, 256)]
)
def test_names_shapes_and_order(shared_data: Path, manifest: str, n_keys: int, n_layer: int, n_emb: int) -> None:
    expected = json.loads((shared_data / "reference" / f"{manifest}.keys.json").read_text())
    width = expected["model.head.bias"][0][0]
    shape_meta = {
        "obs": {"image": {"shape": [3, 180, 320], "type": "rgb"}, **POSE_GRIPPER_STATE},
        "action": {"shape": [width]},
    }
    with torch.device("meta"):  # names need no memory
        policy = DiffusionTransformerHybridImagePolicy(
            shape_meta,
            DDPMScheduler(num_train_timesteps=100),
            horizon=16,
            n_action_steps=8,
            n_obs_steps=2,
            crop_shape=(162, 288),
            obs_encoder_group_norm=True,
            n_layer=n_layer,
            n_emb=n_emb,
        )
    found = {key: [list(value.shape), "float32"] for key, value in policy.state_dict().items()}
    network = {key: value for key, value in expected.items() if not key.startswith("normalizer.")}
    assert len(expected) == n_keys
    assert list(found.items()) == list(network.items())


def test_all_names_of_the_file_in_order(
    policy: DiffusionTransformerHybridImagePolicy, which: str, reference_checkpoint: Path
) -> None:
    state = read_checkpoint(reference_checkpoint).state_dicts[which]
    assert list(policy.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in policy.state_dict().items())
