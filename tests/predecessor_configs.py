"""The public predecessor's eight training configs and their tasks: a base, and each config's differences from it."""

import copy
from pathlib import Path
from typing import Any

import yaml

_WORKSPACE = "diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace"
_NOW = "${now:%Y.%m.%d}/${now:%H.%M.%S}_${name}_${task_name}"
_LOADER = {"batch_size": 128, "num_workers": 12, "pin_memory": True, "persistent_workers": True}
_BASE: dict[str, Any] = {
    "name": "train_diffusion_transformer_hybrid",
    "_target_": f"{_WORKSPACE}.TrainDiffusionTransformerHybridWorkspace",
    "task_name": "${task.name}",
    "shape_meta": "${task.shape_meta}",
    "exp_name": "default",
    "horizon": 16,
    "n_obs_steps": 2,
    "n_action_steps": 8,
    "n_latency_steps": 0,
    "dataset_obs_steps": "${n_obs_steps}",
    "past_action_visible": False,
    "keypoint_visible_rate": 1.0,
    "obs_as_cond": True,
    "policy": {
        "_target_": "diffusion_policy.policy.diffusion_transformer_hybrid_image_policy."
        "DiffusionTransformerHybridImagePolicy",
        "shape_meta": "${shape_meta}",
        "noise_scheduler": {
            "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
            "num_train_timesteps": 100,
            "beta_start": 0.0001,
            "beta_end": 0.02,
            "clip_sample": True,
            "beta_schedule": "squaredcos_cap_v2",
            "prediction_type": "epsilon",
            "variance_type": "fixed_small",
        },
        "horizon": "${horizon}",
        "n_action_steps": "${eval:'${n_action_steps}+${n_latency_steps}'}",
        "n_obs_steps": "${n_obs_steps}",
        "num_inference_steps": 100,
        "crop_shape": [162, 288],
        "obs_encoder_group_norm": True,
        "eval_fixed_crop": True,
        "n_layer": 8,
        "n_cond_layers": 0,
        "n_head": 4,
        "n_emb": 256,
        "p_drop_emb": 0.0,
        "p_drop_attn": 0.3,
        "causal_attn": True,
        "time_as_cond": True,
        "obs_as_cond": "${obs_as_cond}",
    },
    "ema": {
        "_target_": "diffusion_policy.model.diffusion.ema_model.EMAModel",
        "update_after_step": 0,
        "inv_gamma": 1.0,
        "power": 0.75,
        "min_value": 0.0,
        "max_value": 0.9999,
    },
    "dataloader": {**_LOADER, "shuffle": True},
    "val_dataloader": {**_LOADER, "shuffle": False},
    "optimizer": {
        "transformer_weight_decay": 1e-3,
        "obs_encoder_weight_decay": 1e-6,
        "learning_rate": 1e-4,
        "betas": [0.9, 0.95],
    },
    "training": {
        "device": "cuda:0",
        "seed": 42,
        "debug": False,
        "resume": True,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 500,
        "num_epochs": 600,
        "gradient_accumulate_every": 1,
        "use_ema": True,
        "rollout_every": 50,
        "checkpoint_every": 50,
        "val_every": 1,
        "sample_every": 5,
        "max_train_steps": None,
        "max_val_steps": None,
        "tqdm_interval_sec": 1.0,
    },
    "logging": {
        "project": "diffusion_policy_cogact",
        "resume": True,
        "mode": "online",
        "id": None,
        "group": None,
        "name": "${now:%Y.%m.%d-%H.%M.%S}_${name}_${task_name}",
        "tags": ["${name}", "${task_name}", "${exp_name}"],
    },
    "checkpoint": {
        "topk": {
            "monitor_key": "train_loss",
            "mode": "min",
            "k": 5,
            "format_str": "epoch={epoch:04d}-train_loss={train_loss:.3f}.ckpt",
        },
        "save_last_ckpt": True,
        "save_last_snapshot": False,
    },
    "multi_run": {"run_dir": f"data/outputs/{_NOW}", "wandb_name_base": "${now:%Y.%m.%d-%H.%M.%S}_${name}"},
    "hydra": {
        "job": {"override_dirname": "${name}"},
        "run": {"dir": f"data/outputs/{_NOW}"},
        "sweep": {"dir": f"data/outputs/{_NOW}", "subdir": "${hydra.job.num}"},
    },
}
_DDP: dict[str, Any] = {
    "name": "train_diffusion_transformer_hybrid_ddp",
    "_target_": f"{_WORKSPACE}_ddp.TrainDiffusionTransformerHybridWorkspaceDDP",
    "exp_name": "clean_ddp",
    "dataloader": {"batch_size": 16, "num_workers": 6},
    "val_dataloader": {"batch_size": 16, "num_workers": 6},
}
_WIDE = {"n_layer": 12, "n_head": 8, "n_emb": 512}
_JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1, "p": 0.8}
# Config: its task, and its differences from the base.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "train_cogact_robot": ("cogact_robot_7d", {}),
    "train_cogact_robot_clean": ("cogact_robot_7d_clean", {"policy": {"crop_shape": [432, 576]}, "exp_name": "clean"}),
    "train_real_robot_7d": ("real_robot_7d", {"dataloader": {"batch_size": 64, "num_workers": 8}}),
    "train_assembly_bun": ("assembly_bun", {"dataloader": {"num_workers": 30}, "exp_name": "clean"}),
    "train_assembly_bun_ddp": ("assembly_bun", _DDP),
    "train_assembly_chocolate": ("assembly_chocolate", {"exp_name": "clean"}),
    "train_assembly_chocolate_ddp": ("assembly_chocolate", {**_DDP, "policy": _WIDE}),
    "train_assembly_chocolate_ddp_color": (
        "assembly_chocolate",
        {**_DDP, "policy": {**_WIDE, "color_jitter": _JITTER}},
    ),
}
# The config for the older collector's dataset, whose seven numbers are not today's pose and gripper.
OLDER_LAYOUT = "train_real_robot_7d"
_WINDOWS = {
    "horizon": "${horizon}",
    "pad_before": "${eval:'${n_obs_steps}-1+${n_latency_steps}'}",
    "pad_after": "${eval:'${n_action_steps}-1'}",
    "n_obs_steps": "${dataset_obs_steps}",
    "n_latency_steps": "${n_latency_steps}",
    "seed": 42,
    "val_ratio": 0.1,
    "max_train_episodes": None,
}


def _task(name: str) -> dict[str, Any]:
    height, width = (480, 640) if name == "cogact_robot_7d_clean" else (180, 320)
    image = {"shape": "${task.image_shape}", "type": "rgb"}
    pose, gripper = {"shape": [7], "type": "low_dim"}, {"shape": [1], "type": "low_dim"}
    older = name == "real_robot_7d"
    obs = {"camera_0": image, "robot_eef_pose": pose} if older else {
        "image": image, "robot_eef_pose": pose, "robot_gripper_state": gripper,
    }  # fmt: skip
    meta = {"obs": obs, "action": {"shape": [7 if older or name == "cogact_robot_7d_clean" else 8]}}
    dataset = {
        "_target_": "diffusion_policy.dataset.cogact_image_dataset.CogActImageDataset",
        "zarr_path": "${task.dataset_path}",
    }
    if older:
        dataset = {
            "_target_": "diffusion_policy.dataset.real_pusht_image_dataset.RealPushTImageDataset",
            "dataset_path": "${task.dataset_path}",
            "use_cache": True,
            "delta_action": True,  # type: ignore[dict-item]
        }
    runner = "diffusion_policy.env_runner.real_pusht_image_runner.RealPushTImageRunner"
    return {
        "name": name,
        "image_shape": [3, height, width],
        "dataset_path": "/data0/processed/set.zarr",
        "shape_meta": meta,
        "env_runner": {"_target_": runner},
        "dataset": {**dataset, "shape_meta": copy.deepcopy(meta), **_WINDOWS},
    }


def write_configs(folder: Path) -> Path:
    """Writes all eight, with their tasks, as files in a folder."""
    (folder / "task").mkdir(parents=True)
    for name, (task, changes) in CONFIGS.items():
        content = copy.deepcopy(_BASE)
        for key, value in changes.items():
            content[key] = {**content[key], **value} if isinstance(value, dict) else value
        defaults = ["_self_", {"task": task}]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"defaults": defaults, **content}, sort_keys=False))
        (folder / "task" / f"{task}.yaml").write_text(yaml.safe_dump(_task(task), sort_keys=False))
    return folder
