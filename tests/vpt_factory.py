"""Tiny VPT policies, with their observations and actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_once import made_once
from omegaconf import DictConfig

from diffusion_policy.dataset.replay_buffer import ReplayBuffer, image_layout, low_dim_layout
from diffusion_policy.minecraft.actions import BUTTONS, VPT_ACTION
from diffusion_policy.policy.vpt_image_policy import VPTImagePolicy
from diffusion_policy.training_config import compose_training

SIDE = 16
SIZES: dict[str, Any] = {
    "hidsize": 16, "impala_width": 1, "impala_chans": [2, 2, 2], "n_recurrence_layers": 2, "attention_heads": 2,
    "window": 8,
}  # fmt: skip


def shape_meta(side: int = SIDE) -> dict[str, Any]:
    """One square camera, and VPT's actions."""
    return {
        "obs": {"pov": {"shape": [3, side, side], "type": "rgb"}},
        "action": {"shape": [len(VPT_ACTION)], "names": list(VPT_ACTION)},
    }


def config(**options: Any) -> dict[str, Any]:
    """The part of a config that describes a tiny policy."""
    target = f"{VPTImagePolicy.__module__}.{VPTImagePolicy.__qualname__}"
    policy = {"_target_": target, "shape_meta": shape_meta(), "horizon": 4, **SIZES, **options}
    return {"shape_meta": shape_meta(), "policy": policy}


def tiny_policy(seed: int = 0, **options: Any) -> VPTImagePolicy:
    """A tiny policy whose memory matters: random weights, larger than those of a fresh one."""
    torch.manual_seed(seed)
    policy = VPTImagePolicy(shape_meta(), horizon=4, **{**SIZES, **options})
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.mul_(3 if "orc_block" in name else 1)
    return policy.eval()


def frames(episodes: int, steps: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """Observations {"pov": (B, T, 3, H, W) uint8}."""
    generator = torch.Generator().manual_seed(seed)
    return {"pov": torch.randint(0, 256, (episodes, steps, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)}


def actions(*shape: int, seed: int = 2) -> torch.Tensor:
    """Actions (*shape, 22): some buttons, and turns within VPT's range."""
    random = np.random.default_rng(seed)
    buttons = random.random((*shape, len(BUTTONS))) < 0.15
    camera = random.uniform(-10, 10, (*shape, 2)) * (random.random((*shape, 1)) < 0.5)
    return torch.from_numpy(np.concatenate([buttons, camera], axis=-1).astype(np.float32))


OVERRIDES = (
    f"task.image_shape=[3,{SIDE},{SIDE}]", "task.dataset.val_ratio=0.3", "horizon=4",
    *(f"policy.{name}={value}".replace(" ", "") for name, value in SIZES.items()),
    "training.device=cpu", "training.num_epochs=2", "optimizer.lr=0.003",
    *(f"{loader}.{key}" for loader in ("dataloader", "val_dataloader") for key in ("batch_size=2", "num_workers=0")),
)  # fmt: skip


@made_once
def write_dataset(path: Path, lengths: tuple[int, ...] = (9, 6, 11, 7, 5)) -> Path:
    """Episodes of these lengths: a frame's brightness encodes whether attack is pressed, and how far to turn."""
    layouts = {"pov": image_layout(SIDE, SIDE), "action": low_dim_layout(VPT_ACTION)}
    buffer = ReplayBuffer.create(path, layouts)
    for seed, length in enumerate(lengths):
        random = np.random.default_rng(seed)
        presses = random.random(length) < 0.4
        images = random.integers(0, 100, (length, SIDE, SIDE, 3)) + 150 * presses[:, None, None, None]
        action = np.zeros((length, len(VPT_ACTION)), np.float32)
        action[:, VPT_ACTION.index("attack")] = presses
        action[:, VPT_ACTION.index("forward")] = ~presses
        action[:, VPT_ACTION.index("camera_yaw")] = 3.2 * presses
        buffer.append({"pov": images.astype(np.uint8), "action": action})
    return path


def settings(dataset: Path, *overrides: str) -> DictConfig:
    """The config of a small run of cloning on that dataset."""
    return compose_training("train_vpt_bc", [*OVERRIDES, f"task.dataset_path={dataset}", *overrides])
