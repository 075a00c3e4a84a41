"""A policy for one pose becomes one for another layout: two arms, one of them known, and joints, none known."""

from pathlib import Path

import pytest
import torch
from adapt_factory import policy_cfg, save_checkpoint
from layout_factory import JOINTS, POSE_6D

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.apply import adapt_checkpoint
from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.adapt.plan import PlanError
from diffusion_policy.adapt.rules import Rules, parse_rules, read_rules
from diffusion_policy.adapt.target import target_from_config
from diffusion_policy.checkpoint import Checkpoint, read_checkpoint
from diffusion_policy.dataset.replay_buffer import ReplayBuffer, low_dim_layout
from diffusion_policy.shape_meta import step_spec_of
from diffusion_policy.spec import POSE, POSE_GRIPPER, action_semantics

TWO_ARMS = tuple(f"{arm}.{name}" for arm in ("right", "left") for name in POSE_GRIPPER)
LEFT = [f"left.{name}" for name in POSE]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save_checkpoint(tmp_path_factory.mktemp("source") / "old.ckpt", policy_cfg(), parts=("model",))


def dataset(path: Path, names: tuple[str, ...]) -> Path:
    buffer = ReplayBuffer.create(path, {"action": low_dim_layout(names)})
    buffer.append({"action": torch.rand(20, len(names)).numpy()})
    buffer.root.attrs["action_semantics"] = action_semantics(names)
    return path


def adapted(source: Checkpoint, names: tuple[str, ...], folder: Path, rules: Rules) -> Ledger:
    target = target_from_config(policy_cfg(action=names), "target", dataset(folder / "d.zarr", names))
    return adapt_checkpoint(source, target, rules, folder / "new.ckpt")


def left_arm() -> Rules:
    """The rules for new action dimensions, and the new names of the known ones."""
    both = {"source": LEFT, "target": list(TWO_ARMS)}
    renamed = parse_rules({"name": "left arm", "slots": {"sample": both, "action": both}, "rules": []}, "here")
    rules = read_rules("action_dims")
    return Rules(renamed.name, rules.rules, rules.weights, renamed.slots, (*rules.text, *renamed.text))


def test_the_known_pose_becomes_the_left_arms(source: Checkpoint, tmp_path: Path) -> None:
    ledger = adapted(source, TWO_ARMS, tmp_path, left_arm())
    assert "7 shared action dimensions" in ledger.notes[-1], ledger.notes
    assert "agree within" in ledger.notes[-1]
    written = read_checkpoint(tmp_path / "new.ckpt")
    old, new = source.state_dicts["model"], written.state_dicts["model"]
    rows = [TWO_ARMS.index(name) for name in LEFT]
    for key, axis in (("model.head.weight", 0), ("model.input_emb.weight", 1)):
        assert torch.equal(new[key].index_select(axis, torch.tensor(rows)), old[key])
    scale = "normalizer.params_dict.action.scale"
    assert torch.equal(new[scale][rows], old[scale])
    others = [column for column in range(len(TWO_ARMS)) if column not in rows]
    assert not new["model.input_emb.weight"][:, others].any(), "a known arm does not depend on a new one"
    assert step_spec_of(written.cfg).layout.labels("gripper") == ("right", "left")
    assert written.provenance is not None
    assert written.provenance["action_semantics"]["names"] == list(TWO_ARMS)


def test_without_the_rule_no_name_is_shared_and_nothing_is_written(source: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="share no action dimension"):
        adapted(source, TWO_ARMS, tmp_path, read_rules("action_dims"))
    assert not (tmp_path / "new.ckpt").exists()


@pytest.mark.parametrize("names", [(*JOINTS, "gripper"), JOINTS], ids=["joints and gripper", "as many joints"])
def test_joints_are_not_a_pose(source: Checkpoint, tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(PlanError, match="joint_1" if len(names) == 7 else "head.weight"):
        adapted(source, names, tmp_path, Rules())
    with pytest.raises(AdaptError, match="share no action dimension"):
        adapted(source, names, tmp_path / "grown", read_rules("action_dims"))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_six_numbers_of_a_rotation_are_new_ones(source: Checkpoint, tmp_path: Path) -> None:
    """The position is kept by its names; the proof shows what leaving out the quaternion changes."""
    ledger = adapted(source, (*POSE_6D, "gripper"), tmp_path, read_rules("action_dims"))
    (slot,) = next(entry for entry in ledger.of("grown") if entry.key == "model.head.weight").slots
    new = "r11, r12, r13, r21, r22, r23 and 1 more"
    assert slot.describe() == f"axis 0 (sample): 3 kept, new {new}, removed qx, qy, qz, qw"
    assert "3 shared action dimensions" in ledger.notes[-1]
    assert "not preserved: outputs change by" in ledger.notes[-1]
