"""Checkpoints of other programs: named, planned, and transferred to a policy that training starts from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapt_factory import policy_cfg, policy_state
from foreign_checkpoints import HIGH, LOW, MAKERS, OUR_TRUNK, UMI, Maker, trunk
from omegaconf import OmegaConf

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.files import apply_file, open_target, plan_file, rules_of
from diffusion_policy.adapt.inspection import inspect_file
from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.adapt.starting_point import plan_pretrained
from diffusion_policy.adapt.target import Target
from diffusion_policy.checkpoint import read_checkpoint, write_checkpoint
from diffusion_policy.tensor_file import open_tensor_file

FROM = "{{rules: [{{encoder: '*', from: {0}}}, {{strip: '*'}}, {{drop: '*'}}, {{fresh: '*'}}]}}"
# One for each way in which weights are found; the others are only planned, in a tenth of the time.
CARRIED_OUT = ("lerobot", "umi, timm resnet", "batch norm", "lightning, callback", "before 1.6")
KNOWN_STATISTICS = "{rules: [{copy: normalizer.params_dict.action.*, from: statistics.action.*}]}"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: maker.write(tmp_path_factory.mktemp("foreign")) for name, maker in MAKERS.items()}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of poses and grippers that observes one image and the gripper, whose range is known."""
    obs = {"image": {"shape": [3, 48, 64], "type": "rgb"}, "robot_gripper_state": {"shape": [1], "type": "low_dim"}}
    path = tmp_path_factory.mktemp("configs") / "gripper.yaml"
    cfg = policy_cfg(["gripper"], obs)
    cfg.pretrained = {"which": "same", "min_coverage": 1.0}
    cfg.training = {"use_ema": False}
    OmegaConf.save(cfg, path)
    return path


@pytest.fixture(scope="module")
def goals(target: Path) -> dict[tuple[str, ...], Target]:
    """The target, with the config changes that a maker needs; its values are built once."""
    return {
        changes: open_target(target, changes=list(changes)) for changes in {maker.changes for maker in MAKERS.values()}
    }


@pytest.mark.parametrize("name", MAKERS)
def test_each_is_named_and_its_weights_are_found(name: str, written: dict[str, Path]) -> None:
    maker = MAKERS[name]
    found = inspect_file(written[name])
    assert maker.family in found.family
    assert "open that entry" not in found.family
    assert found.carried is not None
    assert maker.container in found.carried.container
    assert found.carried.weights.startswith(f"{maker.live} live")
    assert (f"{maker.averaged} averaged" in found.carried.weights) == bool(maker.averaged)
    assert found.carried.encoders
    assert json.loads(json.dumps(found.to_json()))["carried"]["weights"] == found.carried.weights


def summary(ledger: Ledger) -> list[tuple[str, str, str, str]]:
    return [(entry.part, entry.action, entry.key, entry.rule) for entry in ledger]


def rules_for(maker: Maker) -> list[str]:
    return [FROM.format(maker.camera)] if maker.camera else ["image_encoder"]


@pytest.mark.parametrize("name", MAKERS)
def test_the_encoder_is_taken_over_and_training_starts_from_it(
    name: str, written: dict[str, Path], goals: dict[tuple[str, ...], Target], tmp_path: Path
) -> None:
    maker, source = MAKERS[name], written[name]
    if maker.refused:
        with pytest.raises(AdaptError, match=maker.refused):
            plan_file(source, goals[()], rules_of(["image_encoder"]))
        if not maker.camera and not maker.changes:
            return
    goal = goals[maker.changes]
    planned = plan_file(source, goal, rules_of(rules_for(maker)))
    keys = {key for key in goal.infos if "image.backbone.nets." in key or "image.nets.0.nets." in key}
    for part in planned.target_totals.keys() - {"pickles"}:
        assert {entry.key for entry in planned.of("copied", part=part)} == keys
    if name not in CARRIED_OUT:
        return
    ledger = apply_file(source, goal, rules_of(rules_for(maker)), tmp_path / "new.ckpt")
    assert summary(planned) == summary(ledger)
    made = read_checkpoint(tmp_path / "new.ckpt")
    parts = ["model", "ema_model"] if maker.averaged else ["model"]
    assert list(made.state_dicts) == parts
    for seed, part in enumerate(reversed(parts)):
        held = {
            key.removeprefix(OUR_TRUNK): t for key, t in made.state_dicts[part].items() if key.startswith(OUR_TRUNK)
        }
        wanted = trunk(group_norm=not maker.changes, seed=seed)
        assert held.keys() == wanted.keys()
        assert all(torch.equal(held[key], wanted[key]) for key in wanted)
    ledger.check()
    assert any("was not run: nothing is proven" in note for note in ledger.notes)
    assert goal.cfg is not None
    start = plan_pretrained(tmp_path / "new.ckpt", goal.cfg)
    assert {entry.key for entry in start.of("copied", part="model")} >= keys
    assert start.of("fresh"), "training knows which tensors are untrained"


@pytest.mark.parametrize("name", ["lightning, classes", "lightning, classes, before 1.6"])
def test_objects_of_missing_classes_are_listed_and_not_read(
    name: str, written: dict[str, Path], goals: dict[tuple[str, ...], Target]
) -> None:
    found = inspect_file(written[name])
    unread = {f"other_program.{kind}" for kind in ("ModelConfig", "Box", "Stages")}
    assert unread <= found.stand_ins.keys()
    assert found.stand_ins.keys() - unread <= {"foreign_checkpoints.Typed"}
    assert found.stand_ins["other_program.ModelConfig"] == 2, "an object, and the class itself"
    assert found.action["layout"].startswith("position (3)"), "a dictionary of Lightning's is read"
    tree = open_tensor_file(written[name]).tree["hyper_parameters"]
    assert tree["args"] == {"lr": 1e-4, "device": "cuda:0"}
    assert (tree["where"], tree["more"]["b"]) == ("/data/runs", 2)
    assert tree["typed"] == {"lr": 0.1, "name": "a"}
    notes = plan_file(written[name], goals[()], rules_of(["image_encoder"])).notes
    assert any("objects of other programs' classes were not read: other_program.ModelConfig" in note for note in notes)


@pytest.mark.parametrize("name", ["umi, timm resnet", "lightning, twins"])
def test_the_layout_of_an_action_is_determined_by_the_config(name: str, written: dict[str, Path]) -> None:
    found = inspect_file(written[name])
    assert found.action["names"] == ["10 numbers"]
    assert found.action["layout"].startswith("position (3), rotation as two rows of its matrix (6), gripper width (1)")
    assert ("relative to the current pose" in found.action["layout"]) == (name == "umi, timm resnet")
    assert found.observations["camera0_rgb"] == "image 64x48"
    assert found.observations["robot0_eef_rot_axis_angle"] == "6 numbers"


@pytest.mark.parametrize("name", ["lerobot", "lerobot of 0.3"])
def test_the_statistics_of_lerobot_tell_the_layout_and_become_the_normalizer(
    name: str, written: dict[str, Path], tmp_path: Path
) -> None:
    found = inspect_file(written[name])
    assert found.action["layout"].startswith("numbers 4 to 7 look like a unit quaternion: their ")
    assert found.action["layout"].endswith("nothing in the policy's files says what they are; its dataset does")
    assert found.carried is not None
    assert "statistics.observation.state.*" in found.carried.statistics
    OmegaConf.save(policy_cfg(8, {"image": {"shape": [3, 48, 64], "type": "rgb"}}), tmp_path / "eight.yaml")
    goal = open_target(tmp_path / "eight.yaml")
    with pytest.raises(AdaptError, match="statistics of new dimensions come from a dataset"):
        apply_file(written[name], goal, rules_of(["image_encoder"]), tmp_path / "new.ckpt")
    ledger = apply_file(written[name], goal, rules_of([KNOWN_STATISTICS, "image_encoder"]), tmp_path / "new.ckpt")
    state = read_checkpoint(tmp_path / "new.ckpt").state_dicts["model"]
    scale, offset = (state[f"normalizer.params_dict.action.{entry}"] for entry in ("scale", "offset"))
    assert torch.allclose(torch.tensor(LOW) * scale + offset, torch.tensor(-1.0), atol=1e-5)
    assert torch.allclose(torch.tensor(HIGH) * scale + offset, torch.tensor(1.0), atol=1e-5)
    assert any("its min and max, mapped to -1..1" in note for note in ledger.notes)


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.0, 1.0)], ids=str)
def test_ranges_that_no_data_gave_say_nothing_of_the_layout(ends: tuple[float, float], tmp_path: Path) -> None:
    cfg = policy_cfg(8)
    state = policy_state(cfg)
    for end, name in zip(ends, ("min", "max"), strict=True):
        state[f"normalizer.params_dict.action.input_stats.{name}"].fill_(end)
    write_checkpoint(tmp_path / "a.ckpt", cfg=cfg, state_dicts={"model": state}, pickles={})
    assert (
        inspect_file(tmp_path / "a.ckpt").action["layout"] == "the range of its numbers does not determine the layout"
    )


def test_what_the_policy_cannot_take_over_is_reported_with_the_reason(written: dict[str, Path]) -> None:
    (vit,) = inspect_file(written["umi, timm vit"]).carried.encoders
    assert (vit.reason, vit.command) == ("the policies here have a ResNet-18", "")
    assert "a vision transformer" in vit.what
    (norm,) = inspect_file(written["batch norm"]).carried.encoders
    assert "--set policy.obs_encoder_group_norm=false" in norm.command
    (alone,) = inspect_file(written["data parallel"]).carried.encoders
    assert alone.name == "module.encoder"
    assert "--rules image_encoder" in alone.command
    assert "60 in lists, without names" in inspect_file(written["shadow parameters"]).carried.weights
    assert UMI in inspect_file(written["resnet34"]).family


def test_no_proof_is_promised_for_a_policy_that_is_missing(
    written: dict[str, Path], target: Path, tmp_path: Path
) -> None:
    with pytest.raises(AdaptError, match="holds no policy that can be run here"):
        apply_file(written["lerobot"], open_target(target), rules_of(["image_encoder"]), tmp_path / "a.ckpt",
                   must_preserve=True)  # fmt: skip
    assert not (tmp_path / "a.ckpt").exists()


def test_a_list_of_tensors_has_no_names_to_go_by(target: Path, tmp_path: Path) -> None:
    torch.save(list(trunk().values()), tmp_path / "list.pt")
    found = inspect_file(tmp_path / "list.pt")
    assert found.carried is not None
    assert found.carried.weights == "none with names; 60 in lists, without names: nothing tells which tensor is which"
    with pytest.raises(AdaptError, match="there are no weights with names in it"):
        plan_file(tmp_path / "list.pt", open_target(target), rules_of(["image_encoder"]))
