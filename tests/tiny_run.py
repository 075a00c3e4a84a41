"""A dataset of a few small episodes and the settings of a run that takes seconds on one core.

The image encoder has a sixteenth of ResNet-18's parameters: at full size most of a test's time would be spent writing,
reading and comparing them. Tests of the reference's policies and of the whole path on real recordings use the full one.
"""

import copy
from functools import cache
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from made_once import made_once
from omegaconf import DictConfig

from diffusion_policy.dataset.replay_buffer import ArrayLayout, ReplayBuffer, image_layout, low_dim_layout
from diffusion_policy.resolvers import register_resolvers
from diffusion_policy.spec import POSE, POSE_GRIPPER

CONFIG = Path(__file__).resolve().parents[1] / "config"
WIDTH, HEIGHT = 40, 36

OVERRIDES = (
    f"task.image_shape=[3,{HEIGHT},{WIDTH}]",
    "task.dataset.val_ratio=0.3",
    "policy.crop_shape=[32,36]",
    "++policy.encoder_width=16",
    "policy.n_layer=1",
    "policy.n_emb=32",
    "policy.n_head=2",
    "policy.noise_scheduler.num_train_timesteps=20",
    "training.device=cpu",
    "training.precision=float32",
    "training.num_epochs=2",
    "training.lr_warmup_steps=2",
    "training.checkpoint_every=1",
    "training.sample_every=2",
    "sampler.steps=2",
    *(f"{loader}.{key}" for loader in ("dataloader", "val_dataloader") for key in ("batch_size=8", "num_workers=0")),
)


def episode(length: int, seed: int) -> dict[str, np.ndarray]:
    """Poses on a line, a gripper that closes after a third and opens after two, images of noise."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, length, dtype=np.float32)[:, None]
    quaternion = np.tile(np.float32([1, 0, 0, 0]), (length, 1))
    pose = np.concatenate([0.4 + 0.1 * t, rng.uniform(-0.1, 0.1) + 0.05 * t, 0.2 - 0.1 * t, quaternion], axis=1)
    gripper = np.float32((t < 1 / 3) | (t > 2 / 3))
    return {
        "image": rng.integers(0, 256, (length, HEIGHT, WIDTH, 3), dtype=np.uint8),
        "robot_eef_pose": pose.astype(np.float32),
        "robot_gripper_state": np.roll(gripper, 1, axis=0),
        "action": np.concatenate([pose, gripper], axis=1).astype(np.float32),
        "timestamp": np.arange(length) / 10,
    }


@made_once
def write_dataset(path: Path, lengths: tuple[int, ...] = (13, 12, 14, 12)) -> Path:
    """A dataset of episodes of these lengths."""
    layouts = {
        "image": image_layout(WIDTH, HEIGHT),
        "robot_eef_pose": low_dim_layout(POSE),
        "robot_gripper_state": low_dim_layout(("gripper",)),
        "action": low_dim_layout(POSE_GRIPPER),
        "timestamp": ArrayLayout((), np.float64),
    }
    buffer = ReplayBuffer.create(path, layouts)
    for seed, length in enumerate(lengths):
        buffer.append(episode(length, seed))
    return path


def settings(dataset: Path, *overrides: str) -> DictConfig:
    """The config of a small run on that dataset."""
    cfg = copy.deepcopy(_composed(overrides))
    if not any("dataset_path" in override for override in overrides):
        cfg.task.dataset_path = str(dataset)
    return cfg


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONFIG), version_base="1.2"):
        return compose("train_cogact_robot", overrides=[*OVERRIDES, "task.dataset_path=absent.zarr", *overrides])
