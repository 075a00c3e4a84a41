"""GR00T N1.5: the formulas against published headers and manifests, and growth of its action dimensions."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from adapt_factory import file_shapes_of

from diffusion_policy.families import groot_n1_5, recognize
from diffusion_policy.families.family import ConstructionError, FamilyError
from diffusion_policy.families.groot_n1_5_settings import RELEASED
from diffusion_policy.tensor_file import open_tensor_file

HEAD = "action_head."


@pytest.fixture(scope="session")
def groot(shared_data: Path) -> Path:
    return shared_data / "groot"


@pytest.fixture(scope="session")
def truth(groot: Path) -> dict[str, Any]:
    return json.loads((groot / "TRUTH.json").read_text())


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def test_released_config_is_the_published_one(groot: Path):
    published = load(groot / "golden_small" / "real_headers" / "config.json")
    for key, value in RELEASED.items():
        assert published[key] == value, key


def test_action_head_equals_the_published_manifest_in_order(groot: Path):
    manifest = load(groot / "manifest_action_head.json")
    ours = groot_n1_5.shapes(RELEASED, ["action_head"])
    assert [(name, list(shape)) for name, shape in ours.items()] == list(manifest.items())


def test_the_whole_model_equals_the_headers_of_a_real_checkpoint(groot: Path):
    """A 7.6 GB checkpoint, from its two headers (8 bytes of length, then JSON) without tensor data."""
    shapes: dict[str, list[int]] = {}
    for path in sorted((groot / "golden_small" / "real_headers").glob("*.header")):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        shapes |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    ours = file_shapes_of("groot_n1_5")
    assert len(shapes) == 899
    assert {name: list(shape) for name, shape in ours.items()} == shapes


def test_tiny_model_equals_its_manifest(groot: Path):
    config = load(groot / "golden_small" / "config.json")
    manifest = load(groot / "golden_small" / "manifest_tiny.json")
    assert {HEAD + name: list(shape) for name, shape in groot_n1_5.action_head(config)} == manifest
    ours = file_shapes_of(groot / "golden_small" / "config.json")
    assert {name: list(shape) for name, shape in ours.items()} == manifest


def test_settings_are_read_off_the_tensors():
    read = groot_n1_5.settings_from(groot_n1_5.shapes(RELEASED, ["action_head"]))
    assert read == {
        "action_dim": 32,
        "max_state_dim": 64,
        "max_num_embodiments": 32,
        "hidden_size": 1024,
        "input_embedding_dim": 1536,
        "diffusion_model_cfg heads x head width": 1536,
        "diffusion_model_cfg.num_layers": 16,
        "diffusion_model_cfg.output_dim": 1024,
        "num_target_vision_tokens": 32,
        "max_seq_len": 1024,
        "backbone_embedding_dim": 2048,
        "vl_self_attention_cfg.num_layers": 4,
        "vl_self_attention_cfg heads x head width": 2048,
    }


@pytest.mark.parametrize("projector", [True, False])
@pytest.mark.parametrize("diffusion", [True, False])
def test_what_trains_under_the_vendors_flags(truth: dict[str, Any], projector: bool, diffusion: bool):
    config = {**RELEASED, "action_head_cfg": {**RELEASED["action_head_cfg"], "tune_projector": projector,
                                              "tune_diffusion_model": diffusion}}  # fmt: skip
    names = list(groot_n1_5.shapes(config, ["action_head"]))
    expected = truth["freezing"][f"tune_projector={projector},tune_diffusion_model={diffusion}"]
    trained = groot_n1_5.trainable(config, names)
    assert len(trained) == expected["trainable_tensors"]
    assert {name.partition(".")[0] for name in trained} == set(expected["modules"])


@pytest.mark.parametrize(("prefix", "cause"), [
    ("", "under its own names"),
    ("_groot_model.", "of LeRobot's GrootPolicy"),
])  # fmt: skip
def test_a_checkpoint_is_recognized_under_its_prefix(prefix: str, cause: str):
    named = {f"{prefix}{HEAD}{name}": shape for name, shape in groot_n1_5.shapes(RELEASED, ["action_head"]).items()}
    found = recognize(named)
    assert found is not None
    assert (found.family.name, found.prefix, found.settings["action_dim"]) == ("groot_n1_5", prefix, 32)
    assert cause in found.sentence


def test_a_bare_action_head_is_recognized_as_such():
    found = recognize(groot_n1_5.shapes(RELEASED, ["action_head"]))
    assert found is not None
    assert found.stripped == HEAD
    assert "contains only the inner module" in found.sentence


def test_a_config_without_a_needed_value_does_not_construct():
    head = {key: value for key, value in RELEASED["action_head_cfg"].items() if key != "max_state_dim"}
    with pytest.raises(ConstructionError, match="max_state_dim is absent and the class has no default"):
        groot_n1_5.shapes({**RELEASED, "action_head_cfg": head}, ["action_head"])


def test_the_backbone_of_a_config_without_one_is_refused(groot: Path):
    with pytest.raises(FamilyError, match="no backbone_cfg"):
        groot_n1_5.shapes(load(groot / "golden_small" / "config.json"), ["backbone"])


def test_a_config_that_is_not_json_is_refused(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(FamilyError, match="cannot be read as a JSON configuration"):
        groot_n1_5.read_config(path)


def test_a_real_checkpoint_is_opened_by_its_headers_and_recognized(groot: Path, tmp_path: Path):
    """The real headers, extended sparsely to the real 7.6 GB: names and shapes without reading any tensor."""
    headers = groot / "golden_small" / "real_headers"
    sizes = {"model-00001-of-00002.safetensors": 4_999_367_032, "model-00002-of-00002.safetensors": 2_586_705_312}
    for name, size in sizes.items():
        with (tmp_path / name).open("wb") as file:
            file.write((headers / f"{name}.header").read_bytes())
            file.truncate(size)
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes((headers / index.name).read_bytes())
    found = {name: info.shape for name, info in open_tensor_file(index).tensors.items()}
    assert found == file_shapes_of("groot_n1_5")
    recognized = recognize(found)
    assert recognized is not None
    assert recognized.settings["num_target_vision_tokens"] == 32
