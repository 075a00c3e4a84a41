"""Every reader of weights: what opens a weights file, from library functions to whole training runs.

`READERS` names the modules that each covers; `test_integrity` checks that no module that opens weights is missing.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tiny_run
import torch
from omegaconf import DictConfig

from diffusion_policy.adapt.files import apply_file, open_target, plan_file
from diffusion_policy.adapt.inspection import inspect_file
from diffusion_policy.adapt.pose_to_gripper import grow_7d_to_8d
from diffusion_policy.adapt.rules import Rules
from diffusion_policy.adapt.target import target_from_config
from diffusion_policy.checkpoint import build_policy, load_policy, write_checkpoint
from diffusion_policy.closed_loop import evaluation
from diffusion_policy.closed_loop.simulated_arm import open_simulated_arm
from diffusion_policy.diagnose.checkpoint_evidence import look_at_checkpoint
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.evaluate.recorded_inference import open_recorded
from diffusion_policy.installation import CONFIG
from diffusion_policy.model.normalizer import LinearNormalizer, get_image_range_normalizer
from diffusion_policy.serve.candidates import Candidate
from diffusion_policy.serve.checks.parity import check_parity
from diffusion_policy.serve.client.clock import RealClock
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.tuning import Budget, tune
from diffusion_policy.workspace import checkpointing
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

TABLETOP = CONFIG / "simulator" / "tabletop.yaml"
TASKS = {7: "cogact_robot_7d", 8: "cogact_robot_8d"}


@dataclass(frozen=True)
class World:
    """What readers need in addition to the file: a dataset, a folder to write into, and the encoder's channels."""

    dataset: Path
    folder: Path
    encoder_width: int = 16

    def config(self, width: int = 8, *overrides: str) -> DictConfig:
        """The config of a small run."""
        encoder = f"++policy.encoder_width={self.encoder_width}"
        return tiny_run.settings(self.dataset, f"task={TASKS[width]}", encoder, *overrides)

    def train(self, *overrides: str) -> Any:
        """Prepare a run up to its first update."""
        cfg = self.config(8, "training.num_epochs=0", *overrides)
        workspace = TrainDiffusionTransformerHybridWorkspace(cfg, self.folder / "run")
        workspace.run()
        return workspace


@dataclass(frozen=True)
class Reader:
    """One reader."""

    name: str
    modules: tuple[str, ...]
    read: Callable[[World, Path], Any]
    width: int = 8


class Said(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def former_checkpoint(world: World, path: Path) -> Any:
    """What a run looks up in its own earlier checkpoints; an unreadable one is reported and skipped."""
    said = Said()
    checkpointing.logger.addHandler(said)
    try:
        found = checkpointing._checkpoint_at(path)
    finally:
        checkpointing.logger.removeHandler(said)
    if found is None:
        raise WorkspaceError("\n".join(said.lines))
    return found


def acting_policy(world: World, path: Path) -> Any:
    """Opens what answers in closed loop; no scene is run."""
    with evaluation._open_actor(path, evaluation.Evaluation(Simulator.load(TABLETOP), threads=1)) as (actor, _):
        return actor


READERS = [
    Reader("load", ("checkpoint",), lambda world, path: load_policy(path)),
    Reader("adapt inspect", ("adapt.inspection",), lambda world, path: inspect_file(path)),
    Reader(
        "adapt plan",
        ("adapt.files",),
        lambda world, path: plan_file(path, target_from_config(world.config(), "config"), Rules()),
    ),
    Reader(
        "adapt apply",
        ("adapt.files", "adapt.apply"),
        lambda world, path: apply_file(
            path, target_from_config(world.config(), "config"), Rules(), world.folder / "out.ckpt"
        ),
    ),
    Reader("adapt target", ("adapt.target",), lambda world, path: open_target(path)),
    Reader(
        "7-D recipe",
        ("adapt.pose_to_gripper",),
        lambda world, path: grow_7d_to_8d(path, world.folder / "grown.ckpt"),
        7,
    ),
    Reader(
        "train pretrained.path",
        ("workspace.start", "workspace.episode_roles", "adapt.starting_point"),
        lambda world, path: world.train(f"pretrained.path={path}", "training.resume=false"),
    ),
    Reader("train resume", ("workspace.weights",), lambda world, path: world.train(f"training.resume={path}")),
    Reader("train's own former checkpoints", ("workspace.checkpointing",), former_checkpoint),
    Reader(
        "offline inference, open loop",
        ("evaluate.recorded_inference",),
        lambda world, path: open_recorded(path, world.dataset),
    ),
    Reader("closed loop", ("closed_loop.evaluation",), acting_policy),
    Reader(
        "arm in the simulator",
        ("closed_loop.simulated_arm",),
        lambda world, path: open_simulated_arm(TABLETOP, path, RealClock(), seed=0),
    ),
    Reader("serve", ("serve.engine.policy_engine",), lambda world, path: PolicyEngine.open(path, EngineSettings())),
    Reader(
        "tune",
        ("serve.tuning",),
        lambda world, path: tune(path, world.dataset, [Candidate("ddim", 1)], Budget(), EngineSettings(), [0]),
    ),
    Reader(
        "check parity",
        ("serve.checks.parity",),
        lambda world, path: check_parity(path, world.dataset, SimpleNamespace(metadata={"weights": "ema_model"})),
    ),
    Reader("doctor", ("diagnose.checkpoint_evidence",), lambda world, path: look_at_checkpoint(path)),
]
BY_NAME = {reader.name: reader for reader in READERS}


def policy_states(cfg: DictConfig, seed: int = 0) -> dict[str, Any]:
    """Live and averaged weights of a config's policy, which differ, with a normalizer; and some optimizer."""
    torch.manual_seed(seed)
    policy = build_policy(cfg)
    rows = torch.from_numpy(
        np.concatenate([tiny_run.episode(12, i)["action"] for i in range(3)])[:, : policy.action_dim]
    )
    normalizer = LinearNormalizer()
    normalizer.fit({"action": rows, "robot_eef_pose": rows[:, :7], "robot_gripper_state": torch.tensor([[0.0], [1.0]])})
    normalizer["image"] = get_image_range_normalizer()
    policy.set_normalizer(normalizer)
    live = policy.state_dict()
    averaged = {key: tensor * 1.01 if key.startswith("model.") else tensor for key, tensor in live.items()}
    moments = {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(64), "exp_avg_sq": torch.ones(64)}}
    return {"model": live, "ema_model": averaged, "optimizer": {"state": moments, "param_groups": []}}


def write(path: Path, cfg: DictConfig, states: dict[str, Any]) -> Path:
    """A checkpoint as left by training."""
    write_checkpoint(path, cfg=cfg, state_dicts=states, pickles={"_output_dir": None, "global_step": 3, "epoch": 0})
    return path
