"""Evidence without trouble, to plant trouble in, and run folders as left by training."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from evaluation_factory import write_tiny_checkpoint

from diffusion_policy.adapt.ledger import Entry, Ledger, Ref
from diffusion_policy.checkpoint import read_checkpoint, write_checkpoint
from diffusion_policy.diagnose.checkpoint_evidence import CheckpointEvidence, Statistics
from diffusion_policy.diagnose.dataset_evidence import DatasetEvidence, GripperEvidence, evidence_of_dataset
from diffusion_policy.diagnose.environment import Environment
from diffusion_policy.diagnose.findings import Finding
from diffusion_policy.diagnose.steps import open_for_report, steps_of_dataset
from diffusion_policy.diagnose.training_evidence import ConfigEvidence
from diffusion_policy.env_runner.document import ClosedLoop
from diffusion_policy.env_runner.results import SceneResult
from diffusion_policy.gripper_scale import INTERNAL, DeclaredScales, ResolvedScale, ResolvedScales
from diffusion_policy.spec import POSE, POSE_GRIPPER, ObsField, StepSpec, action_semantics

LOW, HIGH = (0.2, -0.2, 0.1, 0.85, -0.5, -0.1, -0.1, 0.0), (0.7, 0.2, 0.6, 0.95, -0.3, 0.2, 0.1, 1.0)

GRIPPER = GripperEvidence(
    low=0.0, high=1.0, closings=40, openings=40, starting_open=40, starting_closed=0, without_closing=(),
    equals_measured=0.95, leading=78, undecided=0.0,
)  # fmt: skip
DATASET = DatasetEvidence(
    path="set.zarr",
    keys=("action", "image", "robot_eef_pose", "robot_gripper_state", "timestamp"),
    lengths=(100,) * 40,
    action_names=POSE_GRIPPER,
    low=LOW,
    high=HIGH,
    semantics=action_semantics(),
    layout="xyz_quat_gripper",
    image_size=(320, 180),
    looked_at=24,
    step_seconds=0.1,
    still=0.1,
    command_distance_m=0.01,
    gripper=GRIPPER,
    scales=ResolvedScales(ResolvedScale(INTERNAL, "labeled", 0.0, 1.0, "labeled")),
    tool_tilt=(10.0, 90.0),
    dropped=(0, 0),
    settings={},
)
SPEC = StepSpec((ObsField("image", (3, 180, 320), "rgb"),), POSE_GRIPPER)
POSE_SPEC = StepSpec(SPEC.obs, POSE)
_SCALE = tuple(2 / (high - low) for low, high in zip(LOW, HIGH, strict=True))
_OFFSET = tuple(-1 - low * scale for low, scale in zip(LOW, _SCALE, strict=True))
STATISTICS = Statistics(LOW, HIGH, _SCALE, _OFFSET)
CHECKPOINT = CheckpointEvidence(
    path="best.ckpt",
    spec=SPEC,
    head_width=(8, 8),
    input_width=(8, 8),
    epoch=10,
    updates=5000,
    average_distance=0.01,
    statistics={"action": STATISTICS},
    layout="xyz_quat_gripper",
    gripper_row=0.1,
    semantics=action_semantics(),
    start="pretrained",
    inherited=1.0,
    proofs={"model": True, "ema_model": True},
)
CONFIG = ConfigEvidence(
    name="train_cogact_robot",
    spec=SPEC,
    dataset="set.zarr",
    dataset_exists=True,
    pretrained="grown.ckpt",
    pretrained_exists=True,
    load_weights=True,
    learning_rate=1e-4,
    warm_up=500,
    epochs=200,
    batch_size=64,
    steps_of_epoch=None,
    val_ratio=0.1,
    device="cuda:0",
    device_exists=True,
)
MACHINE = Environment(
    python="3.11.7",
    versions={"torch": "2.13.0", "numpy": "2.4.6"},
    unmet=(),
    cores=16,
    memory=64 << 30,
    disk=500 << 30,
    gpus=(("a GPU", 80 << 30),),
    cuda_build="13.0",
)


def only(findings: Sequence[Finding], code: str) -> Finding:
    """Returns the finding with that code."""
    (found,) = [finding for finding in findings if finding.code == code]
    return found


def troubled(findings: Sequence[Finding]) -> list[str]:
    """Returns the codes of warnings and errors."""
    return [finding.code for finding in findings if finding.trouble]


def metrics(updates: int = 1000, *, last_loss: float = 0.02, **head: Any) -> list[dict[str, Any]]:
    """Lines of a run that goes well: the loss falls, the gripper's events are found."""
    first = {
        "global_step": 0, "epoch": 0, "train_loss_before_first_update": 0.4, "val_loss_before_first_update": 0.4,
        "start": "pretrained", "inherited_parameters": 1000, "grown_parameters": 10, "fresh_parameters": 0, **head,
    }  # fmt: skip
    lines = [
        {
            "global_step": step,
            "epoch": step // 100,
            "train_loss": 0.4 + (last_loss - 0.4) * step / updates,
            "lr": 1e-4 * min(1, step / 100),
        }
        for step in range(updates // 20, updates + 1, updates // 20)
    ]
    measured = {
        "val_loss": 0.03, "val_loss_model": 0.03, "val_position_error_mm": 9.0, "val_rotation_error_deg": 1.5,
        "val_position_error_mm_step_1": 5.0, "val_position_error_mm_step_2": 8.0, "val_gripper_f1": 0.9,
        "val_gripper_recall": 0.9, "val_gripper_precision": 0.9, "val_gripper_recall_low": 0.7,
        "val_gripper_recall_high": 0.97, "val_gripper_events_recorded": 20, "val_gripper_events_found": 18,
        "val_gripper_false_flips": 2, "val_image_features": 40,
    }  # fmt: skip
    lines[len(lines) // 2] |= measured
    lines[-1] |= measured
    return [first, *lines]


def write_run(
    path: Path, lines: Sequence[dict[str, Any]] | None = None, config: str = "", *, checkpoint: bool = True
) -> Path:
    """A run folder; `config` is YAML added to a small one."""
    (path / ".hydra").mkdir(parents=True)
    (path / "checkpoints").mkdir()
    base = "optimizer:\n  learning_rate: 0.0001\ntraining:\n  lr_warmup_steps: 100\n  num_epochs: 100\n"
    base += "task:\n  dataset:\n    zarr_path: nowhere.zarr\n    val_ratio: 0.1\n    seed: 42\n"
    base += "dataloader:\n  batch_size: 64\n"
    (path / ".hydra" / "config.yaml").write_text(base + config)
    rows = metrics() if lines is None else lines
    (path / "logs.json.txt").write_text("".join(json.dumps(line) + "\n" for line in rows))
    if checkpoint:
        (path / "checkpoints" / "best.ckpt").write_bytes(b"")
    return path


def errors_of(scale: float) -> dict[str, Any]:
    steps = [scale * (i + 1) for i in range(4)]
    return {
        "position_mm": scale, "rotation_deg": scale / 10, "gripper_at_transitions": 0.2, "gripper_f1": 0.8,
        "per_horizon_step": {"position_mm": steps, "rotation_deg": steps, "gripper": [None] * 4},
        "per_phase": {"approach": {"position_mm": scale}, "grasp": {"position_mm": None}},
        "events": {
            "matched": [[3, 4, "close"]] * 6, "missed": [[9, "open"]], "false": [], "bounces": 1, "early": 0, "late": 6,
            "median_offset_steps": 1.0, "recall_interval": [0.49, 0.97],
        },
    }  # fmt: skip


def open_loop(path: Path) -> Path:
    report = {
        "checkpoint": "best<b>.ckpt", "scheduler": "ddim", "steps": 8, "samples": 2, "episodes": [0, 3],
        "scores": {"policy": errors_of(9.0), "hold pose": errors_of(30.0)},
        "shortcomings": ["does not beat 'hold <pose>' in position mm: 9 against 8, at every step of a chunk, and more"],
        "spread": {"position_mm": [1.0, 2.0, 3.0, 4.0], "gripper": [0.1] * 4},
        "beside_copycat": {"difference": -0.3, "interval": [-0.4, -0.2], "episodes": 2, "differs": True},
    }  # fmt: skip
    path.write_text(json.dumps({"reports": [report]}))
    return path


def checkpoint_with_ledger(path: Path) -> Path:
    """A checkpoint that records where its weights came from."""
    whole = read_checkpoint(write_tiny_checkpoint(path))
    kept, grown = Ref("model.kept.weight", (64, 64), "t0"), Ref("model.head.weight", (8, 64), "t1")
    entries = (
        Entry("model", "copied", "same name and shape", kept, kept),
        Entry("model", "grown", "one new row", Ref("model.head.weight", (7, 64), "t1"), grown, init="zeros"),
    )
    provenance = {"adaptation": {"ledger": Ledger(entries, {}, {}).to_json(), "source": {"name": "old.ckpt"}}}
    parts = {"cfg": whole.cfg, "state_dicts": whole.state_dicts, "pickles": whole.pickles}
    write_checkpoint(path, **parts, provenance=provenance)
    return path


# A result of `evaluate_closed_loop.py --json`, for the checkpoint with this content.
CONTENT = b"weights"
ABOUT: dict[str, Any] = {
    "checkpoint": "data/outputs/run/checkpoints/best.ckpt", "checkpoint_sha256": hashlib.sha256(CONTENT).hexdigest(),
    "weights": "ema_model", "scheduler": "ddim", "steps": 8,
    "simulator": {"env": {"_target_": "diffusion_policy.sim.TabletopEnv", "referee": "physics"}},
    "task": "pick_and_place", "referee": "physics", "n_action_steps": 6, "seed": 100_000, "latency_injected_ms": 0.0,
    "through_server": False, "serve_settings": [], "notes": [],
}  # fmt: skip


def scenes_of(outcomes: str, seed: int = 100_000) -> list[SceneResult]:
    """One scene per letter: 1 success, c closed beside, d dropped."""
    reasons = {"1": None, "c": "closed beside", "d": "dropped"}
    positions = np.random.default_rng(0).uniform((0.4, 0.07), (0.54, 0.21), (len(outcomes), 2)).tolist()
    return [
        SceneResult(scene, seed + scene, outcome == "1", 60, reasons[outcome], outcome != "c", (x, y))
        for scene, (outcome, (x, y)) in enumerate(zip(outcomes, positions, strict=True))
    ]


def closed_loop(path: Path, outcomes: str, *, asked: int | None = None, **about: Any) -> Path:
    """A document of these outcomes."""
    described = {**ABOUT, **about}
    found = ClosedLoop(described, asked or len(outcomes), scenes_of(outcomes, described["seed"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found.to_json()))
    return path


def look_at_dataset(path: str | Path, gripper_scale: DeclaredScales | None = None) -> DatasetEvidence:
    """The evidence of a dataset as gathered by doctor and report."""
    buffer, faults = open_for_report(path, gripper_scale)
    return evidence_of_dataset(path, buffer, steps_of_dataset(buffer, faults), faults)
