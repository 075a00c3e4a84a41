"""Diffusion policies of LeRobot: formulas against saved ones, inspection of folders, and the encoder carried over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diffusion_policy.adapt.files import apply_file, open_target, plan_file, rules_of
from diffusion_policy.adapt.inspection import inspect_file
from diffusion_policy.errors import AdaptError
from diffusion_policy.families import lerobot_diffusion, recognize
from diffusion_policy.families.family import ConstructionError, FamilyError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "lerobot_diffusion"
SAVED = sorted(path.name for path in SHARED.iterdir()) if SHARED.is_dir() else []
TINY: dict[str, Any] = {
    "type": "diffusion", "n_obs_steps": 2, "horizon": 16, "n_action_steps": 8, "vision_backbone": "resnet18",
    "input_features": {
        "observation.state": {"type": "STATE", "shape": [8]},
        "observation.images.front": {"type": "VISUAL", "shape": [3, 96, 160]},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [8]}}, "crop_shape": None, "use_group_norm": True,
    "use_separate_rgb_encoder_per_camera": False, "spatial_softmax_num_keypoints": 32, "down_dims": [16, 32],
    "kernel_size": 5, "diffusion_step_embed_dim": 16, "use_film_scale_modulation": True,
}  # fmt: skip


def write_policy(folder: Path, config: dict[str, Any], *, processors: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: torch.zeros(shape) for name, shape in lerobot_diffusion.shapes(config).items()},
        folder / "model.safetensors",
    )
    if processors:
        statistics = {"action.min": torch.zeros(8), "action.max": torch.ones(8)}
        save_file(statistics, folder / "policy_postprocessor_step_0_unnormalizer_processor.safetensors")
    return folder


@pytest.mark.parametrize("name", SAVED)
def test_names_and_shapes_are_those_that_lerobot_saved(name: str):
    config = lerobot_diffusion.read_config(SHARED / name)
    assert config is not None
    manifest = json.loads((SHARED / name / "model.manifest.json").read_text())
    saved = {key: tuple(shape) for key, shape in manifest.items() if not key.startswith(lerobot_diffusion.STATISTICS)}
    assert lerobot_diffusion.shapes(config) == saved
    found = recognize({key: tuple(shape) for key, shape in manifest.items()})
    assert found is not None
    assert (found.family.name, found.settings["action_dim"]) == ("lerobot_diffusion", 8)
    holds = len(manifest) != len(saved)
    assert found.settings["statistics"] == ("in the model" if holds else "in processor files")


def test_a_folder_is_inspected_by_its_model_and_config(tmp_path: Path):
    found = inspect_file(write_policy(tmp_path / "pretrained_model", TINY))
    assert "LeRobot's diffusion policy, under its own names" in found.family
    assert found.observations == {"observation.state": "8 numbers", "observation.images.front": "image 160x96"}
    assert found.action["names"] == ["8 numbers"]
    assert found.config["config.json"] == "describes these tensors"
    assert found.settings["encoders"] == "1, shared"
    assert found.settings["down_dims"] == [16, 32]


def test_a_config_of_other_sizes_is_named(tmp_path: Path):
    folder = write_policy(tmp_path / "pretrained_model", TINY)
    (folder / "config.json").write_text(json.dumps({**TINY, "kernel_size": 3}))
    assert inspect_file(folder).config["config.json"].startswith("differs in ")


def test_weights_alone_do_not_tell_their_defaults(tmp_path: Path):
    folder = write_policy(tmp_path / "pretrained_model", TINY)
    (folder / "config.json").unlink()
    assert "depends on the version" in inspect_file(folder).config["config.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_backbone": "resnet50"}, "vision_backbone 'resnet50' is not supported"),
        ({"down_dims": "many"}, "does not describe a diffusion policy"),
        ({"input_features": {"observation.state": 3}}, "does not describe a diffusion policy"),
    ],
)
def test_configs_that_describe_no_policy_are_refused(change: dict[str, Any], message: str):
    with pytest.raises(ConstructionError, match=message):
        lerobot_diffusion.shapes({**TINY, **change})


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_a_config_that_is_not_json_is_refused(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FamilyError, match="cannot be read as a JSON configuration"):
        lerobot_diffusion.read_config(tmp_path)


def test_the_encoder_is_carried_over_and_all_else_is_accounted_for(tmp_path: Path):
    folder = write_policy(tmp_path / "pretrained_model", TINY, processors=False)
    target = open_target("train_unet_cogact_robot")
    ledger = plan_file(folder, target, rules_of(["lerobot_encoder"]))
    copied = {entry.key for entry in ledger.of("copied")}
    names = ("obs_encoder.obs_nets.image.backbone.nets.", "obs_encoder.obs_nets.image.nets.0.nets.")
    assert copied == {name for name in target.infos if name.startswith(names)}
    assert len(copied) == 2 * 60, "every tensor has two names in the policy"
    with pytest.raises(AdaptError, match="statistics of new dimensions come from a dataset"):
        apply_file(folder, target, rules_of(["lerobot_encoder"]), tmp_path / "started.pt")


def test_an_encoder_with_batch_norm_is_not_taken_for_one_with_group_norm(tmp_path: Path):
    folder = write_policy(tmp_path / "pretrained_model", {**TINY, "use_group_norm": False}, processors=False)
    with pytest.raises(AdaptError, match="running_mean"):
        plan_file(folder, open_target("train_unet_cogact_robot"), rules_of(["lerobot_encoder"]))
