"""A dataset and a checkpoint to evaluate, both small enough to be made in a test."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from made_once import made_once
from omegaconf import OmegaConf
from trajectory_factory import draw_frame, recorded_arrays

from diffusion_policy.checkpoint import build_policy, write_checkpoint
from diffusion_policy.dataset.replay_buffer import ArrayLayout, ReplayBuffer, image_layout, low_dim_layout
from diffusion_policy.model.normalizer import LinearNormalizer, get_image_range_normalizer
from diffusion_policy.spec import POSE, POSE_GRIPPER, action_semantics

WIDTH, HEIGHT = 40, 36
N_STEPS = 12
N_EPISODES = 4
POLICY = "diffusion_policy.policy.diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy"


@made_once
def write_dataset(path: Path, width: int = 8) -> Path:
    """Episodes whose gripper opens, closes and opens; ``width`` 7 leaves the gripper out of the action."""
    names = POSE_GRIPPER[:width]
    layouts = {
        "image": image_layout(WIDTH, HEIGHT),
        "robot_eef_pose": low_dim_layout(POSE),
        "robot_gripper_state": low_dim_layout(("gripper",)),
        "action": low_dim_layout(names),
        "timestamp": ArrayLayout((), np.float64),
    }
    buffer = ReplayBuffer.create(path, layouts)
    buffer.root.attrs["action_semantics"] = action_semantics(names)
    for seed in range(N_EPISODES):
        arrays = recorded_arrays(N_STEPS, seed)
        frames = [draw_frame(i, N_STEPS, (WIDTH, HEIGHT), seed)[..., ::-1] for i in range(N_STEPS)]
        action = np.concatenate([arrays["action"], arrays["action_gripper"][:, None]], axis=1)
        buffer.append(
            {
                "image": np.stack(frames),
                "robot_eef_pose": arrays["robot_eef_pose"],
                "robot_gripper_state": arrays["robot_gripper"][:, None].astype(np.float32),
                "action": action[:, :width].astype(np.float32),
                "timestamp": arrays["timestamp"],
            }
        )
    return path


def tiny_config(
    width: int = 8, val_ratio: float = 0.5, policy: Mapping[str, object] | None = None
) -> dict[str, object]:
    """The config of a checkpoint, as far as evaluation reads it; ``policy`` replaces options of the policy."""
    shape_meta = {
        "obs": {
            "image": {"shape": [3, HEIGHT, WIDTH], "type": "rgb"},
            "robot_eef_pose": {"shape": [7], "type": "low_dim"},
            "robot_gripper_state": {"shape": [1], "type": "low_dim"},
        },
        "action": {"shape": [width]},
    }
    return {
        "n_latency_steps": 0,
        "policy": {
            "_target_": POLICY,
            "shape_meta": shape_meta,
            "noise_scheduler": {
                "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
                "num_train_timesteps": 20,
                "beta_schedule": "squaredcos_cap_v2",
                "clip_sample": True,
            },
            "horizon": 8,
            "n_action_steps": 4,
            "n_obs_steps": 2,
            "crop_shape": [32, 32],
            "encoder_width": 16,
            "obs_encoder_group_norm": True,
            "eval_fixed_crop": True,
            "n_layer": 1,
            "n_head": 2,
            "n_emb": 16,
            **(policy or {}),
        },
        "task": {"dataset": {"seed": 42, "val_ratio": val_ratio}},
    }


def write_tiny_checkpoint(path: Path, seed: int = 0, **options: object) -> Path:
    """A policy with random weights, and a normalizer of the dataset's ranges."""
    config = tiny_config(**options)  # type: ignore[arg-type]
    arrays = recorded_arrays(N_STEPS)
    width = config["policy"]["shape_meta"]["action"]["shape"][0]  # type: ignore[index]
    action = np.concatenate([arrays["action"], arrays["action_gripper"][:, None]], axis=1)[:, :width]
    fitted = {
        "robot_eef_pose": arrays["robot_eef_pose"],
        "robot_gripper_state": np.array([[0.0], [1.0]]),
        "action": action,
    }
    return write_policy(path, config, fitted, action_semantics(POSE_GRIPPER[:width]), seed)


def write_policy(
    path: Path,
    config: Mapping[str, object],
    fitted: Mapping[str, np.ndarray],
    semantics: Mapping[str, object],
    seed: int = 0,
) -> Path:
    """A policy of a config with random weights, and a normalizer fitted to arrays (N, D) by key."""
    cfg = OmegaConf.create(dict(config))
    torch.manual_seed(seed)
    policy = build_policy(cfg)
    normalizer = LinearNormalizer()
    normalizer.fit({key: torch.from_numpy(values.astype(np.float32)) for key, values in fitted.items()})
    for camera in policy.spec.rgb:
        normalizer[camera.key] = get_image_range_normalizer()
    policy.set_normalizer(normalizer)
    state = policy.state_dict()
    write_checkpoint(
        path,
        cfg=cfg,
        state_dicts={"model": state, "ema_model": state},
        pickles={"_output_dir": None, "global_step": 0, "epoch": 0},
        provenance={"action_semantics": dict(semantics)},
    )
    return path
