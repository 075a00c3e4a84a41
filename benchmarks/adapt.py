"""Time and memory that adapting a checkpoint of the users' size takes.

    python benchmarks/adapt.py [--quick] [--json OUT]

A checkpoint of the released size (n_layer 8, n_emb 256, ResNet-18; live and averaged weights, optimizer; 323 MB) is
made, then inspected, planned, and grown from 7 to 8 action dimensions, which includes the proof, the source's hash, the
write and the comparison of the written file. Each runs in its own process; times exclude the imports, memory
is the peak above that after the imports. --quick uses small layers (the ResNet stays).

Goals on two cores: growing under 5 s and at most 1.3 times the file in memory; inspecting under 1 s.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from diffusion_policy.adapt.files import plan_file, rules_of
from diffusion_policy.adapt.inspection import inspect_file
from diffusion_policy.adapt.pose_to_gripper import gripper_config, grow_7d_to_8d
from diffusion_policy.adapt.target import target_from_config
from diffusion_policy.checkpoint import build_policy, read_checkpoint, write_checkpoint
from diffusion_policy.model.normalizer import SingleFieldLinearNormalizer, get_image_range_normalizer

GOALS = {"inspect": (1.0, None), "plan": (None, None), "grow": (5.0, 1.3)}
POSE_RANGE = [[0.3, -0.2, 0.1, 0.85, -0.53, -0.05, -0.17], [0.7, 0.2, 0.6, 0.93, -0.32, 0.18, 0.05]]


def released_config(n_layer: int, n_emb: int) -> DictConfig:
    low_dim = {"robot_eef_pose": 7, "robot_gripper_state": 1}
    obs = {
        "image": {"shape": [3, 180, 320], "type": "rgb"},
        **{key: {"shape": [width], "type": "low_dim"} for key, width in low_dim.items()},
    }
    return OmegaConf.create({
        "task": {"name": "benchmark", "shape_meta": {"obs": obs, "action": {"shape": [7]}}},
        "policy": {
            "_target_": "diffusion_policy.policy.diffusion_transformer_hybrid_image_policy."
            "DiffusionTransformerHybridImagePolicy",
            "shape_meta": "${task.shape_meta}",
            "noise_scheduler": {
                "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler", "num_train_timesteps": 100,
                "beta_schedule": "squaredcos_cap_v2",
            },
            "horizon": 16, "n_action_steps": 8, "n_obs_steps": 2, "crop_shape": [162, 288],
            "obs_encoder_group_norm": True, "eval_fixed_crop": True, "n_layer": n_layer, "n_emb": n_emb,
        },
    })  # fmt: skip


def write_released_checkpoint(path: Path, cfg: DictConfig) -> None:
    """Live weights, averaged weights and AdamW's moments, as after some training."""
    policy = build_policy(cfg)
    policy.normalizer["image"] = get_image_range_normalizer()
    policy.normalizer["robot_gripper_state"] = SingleFieldLinearNormalizer.create_fit(torch.tensor([[0.0], [1.0]]))
    for key in ("robot_eef_pose", "action"):
        policy.normalizer[key] = SingleFieldLinearNormalizer.create_fit(torch.tensor(POSE_RANGE))
    learned = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    moments = {
        index: {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        for index, p in enumerate(learned)
    }
    averaged: dict[int, torch.Tensor] = {}
    live = policy.state_dict()
    ema = {key: averaged.setdefault(tensor.data_ptr(), tensor.clone()) for key, tensor in live.items()}
    states: dict[str, Any] = {"model": live, "ema_model": ema, "optimizer": {"state": moments, "param_groups": []}}
    write_checkpoint(path, cfg=cfg, state_dicts=states, pickles={"global_step": 1, "epoch": 0})


def grow(path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        grow_7d_to_8d(path, Path(folder) / "new.ckpt")


def plan(path: Path) -> None:
    target = target_from_config(gripper_config(read_checkpoint(path).cfg), "8-D")
    plan_file(path, target, rules_of(["pose_to_gripper"]))


TASKS: dict[str, Callable[[Path], Any]] = {"inspect": inspect_file, "plan": plan, "grow": grow}


def measure(task: str, path: Path) -> dict[str, float]:
    """Runs one task in this process; returns seconds, and peak memory above that after the imports."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    TASKS[task](path)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": (after.ru_maxrss - before.ru_maxrss) * 1024 / 1e6}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small layers")
    parser.add_argument("--json", metavar="OUT", help="also write the numbers as JSON")
    parser.add_argument("--measure", nargs=2, metavar=("TASK", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        sys.stdout.write(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
        return 0
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "released.ckpt"
        write_released_checkpoint(path, released_config(*((2, 64) if arguments.quick else (8, 256))))
        megabytes = path.stat().st_size / 1e6
        for task in TASKS:
            command = [sys.executable, __file__, "--measure", task, str(path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            numbers = json.loads(done.stdout)
            results[task] = {**numbers, "peak_over_file": numbers["peak_mb"] / megabytes, "file_mb": megabytes}
    table = Table("task", "seconds", "CPU seconds", "peak MB", "peak / file", "goal", title=f"{megabytes:.0f} MB file")
    for task, numbers in results.items():
        seconds, ratio = GOALS[task]
        goal = ", ".join(text for text in (f"{seconds} s" if seconds else "", f"{ratio} x" if ratio else "") if text)
        table.add_row(
            task, *(f"{numbers[key]:.2f}" for key in ("seconds", "cpu_seconds", "peak_mb", "peak_over_file")), goal
        )
    Console().print(table)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n", encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
