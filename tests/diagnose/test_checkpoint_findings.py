"""Every trouble of a checkpoint, planted in numbers and in a file."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_factory import write_tiny_checkpoint
from report_factory import CHECKPOINT, DATASET, POSE_SPEC, STATISTICS, only, troubled

from diffusion_policy.checkpoint import CheckpointError, read_checkpoint
from diffusion_policy.diagnose.checkpoint_evidence import Statistics, look_at_checkpoint
from diffusion_policy.diagnose.checkpoint_findings import checkpoint_findings, together_findings
from diffusion_policy.spec import POSE, ObsField, action_semantics

ALWAYS_OPEN = Statistics((*STATISTICS.low[:7], 1.0), STATISTICS.high, STATISTICS.scale, STATISTICS.offset)
NARROW = Statistics(STATISTICS.low[:7], STATISTICS.high[:7], STATISTICS.scale[:7], STATISTICS.offset[:7])

PLANTED: list[tuple[str, str, dict[str, Any], str]] = [
    ("projection", "error", {"head_width": (7, 7)}, "not adapted: the config has 8 numbers, model head 7"),
    ("weights-finite", "error", {"not_finite": ("model.model.head.weight",)}, "1 tensors hold NaN"),
    ("gripper-statistics", "error", {"statistics": {"action": ALWAYS_OPEN}}, "the gripper never moved there"),
    ("gripper-statistics", "error", {"statistics": {"action": NARROW}}, "7 action dimensions, the config 8"),
    ("gripper-statistics", "error", {"layout": "xyz_rotvec_width"}, "rotation vector and gripper width"),
    ("gripper-row", "error", {"gripper_row": 0.0}, "still zero after 5000 updates: it was never trained"),
    ("gripper-row", "note", {"gripper_row": 0.0, "updates": 0}, "not trained yet"),
    ("ema-weights", "error", {"has_average": False}, "no ema_model, although its config trains one"),
    ("ema-weights", "error", {"head_width": (8, 7), "spec": None}, "predict 7 and 8 numbers"),
    ("ema-weights", "error", {"average_distance": None}, "different tensors"),
    ("ema-weights", "error", {"average_distance": 1.2}, "the pretrained weights were not loaded into it"),
    ("start", "warning", {"start": "scratch"}, "trained from scratch"),
    ("adaptation", "warning", {"proofs": {"model": True, "ema_model": False}}, "changed the predictions of ema_model"),
]


def test_a_sound_checkpoint_has_no_trouble() -> None:
    assert {finding.severity for finding in checkpoint_findings(CHECKPOINT)} == {"ok"}
    assert {finding.severity for finding in together_findings(CHECKPOINT, DATASET)} == {"ok"}


@pytest.mark.parametrize(("code", "severity", "changes", "says"), PLANTED, ids=[f"{p[0]}-{p[3][:20]}" for p in PLANTED])
def test_planted_trouble_is_found(code: str, severity: str, changes: dict[str, Any], says: str) -> None:
    found = checkpoint_findings(replace(CHECKPOINT, **changes))
    finding = only(found, code)
    assert finding.severity == severity
    assert re.search(says, finding.evidence)
    assert set(troubled(found)) <= {code}


def test_training_without_an_average_is_no_problem() -> None:
    found = checkpoint_findings(replace(CHECKPOINT, has_average=False, expects_average=False))
    assert only(found, "ema-weights").severity == "ok"


def test_a_pose_checkpoint_beside_a_gripper_dataset_is_to_be_grown() -> None:
    pose = replace(CHECKPOINT, spec=POSE_SPEC, statistics={})
    finding = only(together_findings(pose, DATASET), "checkpoint-fits-dataset")
    assert finding.severity == "error"
    assert "size mismatch" in finding.evidence
    assert finding.command.startswith("python scripts/finetune_from_7d_to_8d.py --old_ckpt best.ckpt")


def test_other_actions_images_and_meaning_do_not_fit() -> None:
    other = replace(DATASET, action_names=("a0", "a1"))
    assert only(together_findings(CHECKPOINT, other), "checkpoint-fits-dataset").command == ""
    small = replace(DATASET, image_size=(160, 90))
    assert "--resolution 320 180" in only(together_findings(CHECKPOINT, small), "checkpoint-fits-dataset").command
    closed = replace(DATASET, semantics={**action_semantics(), "gripper": {"open": 0.0, "closed": 1.0}})
    assert "gripper" in only(together_findings(CHECKPOINT, closed), "checkpoint-fits-dataset").evidence


@pytest.mark.parametrize(("x", "severity"), [(0.7, "ok"), (0.8, "warning"), (3.0, "error")])
def test_data_outside_the_normalizer(x: float, severity: str) -> None:
    finding = only(together_findings(CHECKPOINT, replace(DATASET, high=(x, *DATASET.high[1:]))), "normaliser-range")
    assert finding.severity == severity
    assert severity == "ok" or finding.evidence.startswith("x is 0.2 to")


@pytest.mark.parametrize("x", [0.7, 3.0])
def test_relative_actions_are_not_compared_with_absolute_ones(x: float) -> None:
    spec = CHECKPOINT.spec
    assert spec is not None
    pose = ObsField("robot_eef_pose", (7,), "low_dim", POSE)
    relative = replace(CHECKPOINT, spec=replace(spec, obs=(*spec.obs, pose), relative=True))
    findings = together_findings(relative, replace(DATASET, high=(x, *DATASET.high[1:])))
    finding = only(findings, "normaliser-range")
    assert finding.severity == "note"
    assert "relative to the current pose" in finding.evidence
    assert only(findings, "checkpoint-fits-dataset").severity == "ok"


@pytest.fixture(scope="module")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt")


def test_evidence_of_a_file(checkpoint_file: Path) -> None:
    evidence = look_at_checkpoint(checkpoint_file)
    assert evidence.spec is not None
    assert evidence.spec.action_dim == 8
    assert evidence.head_width == evidence.input_width == (8, 8)
    assert evidence.average_distance == 0.0
    assert evidence.not_finite == ()
    assert evidence.statistics["action"].high[7] == 1.0
    assert troubled(checkpoint_findings(evidence)) == []


def test_trouble_in_a_file_is_found(checkpoint_file: Path) -> None:
    planted = read_checkpoint(checkpoint_file)
    average = {key: tensor.clone() for key, tensor in planted.state_dicts["ema_model"].items()}
    average["model.head.weight"] = average["model.head.weight"][:7]
    average["model.head.bias"][0] = torch.nan
    planted.state_dicts["ema_model"] = average
    found = troubled(checkpoint_findings(look_at_checkpoint(checkpoint_file, planted)))
    assert found == ["projection", "weights-finite", "ema-weights"]


def test_the_reference_checkpoint_predicts_poses(reference_checkpoint: Path) -> None:
    evidence = look_at_checkpoint(reference_checkpoint)
    assert evidence.spec is not None
    assert evidence.spec.action_names == POSE
    assert evidence.gripper_row is None
    assert evidence.start is None
    assert "checkpoint-fits-dataset" in troubled(together_findings(evidence, DATASET))


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        look_at_checkpoint(tmp_path / "nothing.ckpt")
