"""GR00T N1.6 and N1.7: the formulas against built models, and every measured change of N1.7 at both sizes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from adapt_factory import file_shapes_of
from measured_changes import OURS, changes_of

from diffusion_policy.families import groot_flat, groot_n1_5, recognize
from diffusion_policy.families.family import FamilyError, Impact
from diffusion_policy.families.groot_flat_settings import RELEASED_N1_6, RELEASED_N1_7
from diffusion_policy.tensor_file import open_tensor_file
from diffusion_policy.whatif.config_change import what_if
from diffusion_policy.whatif.report import COUNTED

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "groot_n1_7"
TRUTH: dict[str, Any] = json.loads((SHARED / "TRUTH.json").read_text()) if SHARED.is_dir() else {}
needs_truth = pytest.mark.skipif(not TRUTH, reason="numbers of built models are not on this machine")


def numbers_in(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def head_of(**changes: Any) -> dict[str, tuple[int, ...]]:
    return groot_flat.shapes({**RELEASED_N1_6, **changes}, ["action_head"])


@needs_truth
def test_the_released_config_is_the_one_that_was_built():
    assert {key: value for key, value in RELEASED_N1_7.items() if key != "model_type"} == TRUTH["released_config_used"]


@needs_truth
def test_the_head_equals_the_built_one_in_order():
    manifest = json.loads((SHARED / "manifest_action_head.json").read_text())
    ours = groot_flat.shapes(RELEASED_N1_7, ["action_head"])
    assert [(name, list(shape)) for name, shape in ours.items()] == list(manifest.items())


@needs_truth
def test_totals_are_those_of_the_real_checkpoint():
    whole, reference = file_shapes_of("groot_n1_7"), TRUTH["reference"]
    backbone = {name: shape for name, shape in whole.items() if name.startswith("backbone.")}
    assert (len(whole), numbers_in(whole)) == (reference["checkpoint_tensors"], reference["checkpoint_elements_stored"])
    assert len(backbone) == reference["backbone_tensors_with_lm_head"]
    assert numbers_in(backbone) == reference["backbone_elements_with_lm_head"]
    visual = {name: shape for name, shape in backbone.items() if ".visual." in name}
    assert (len(visual), numbers_in(visual)) == (315, 406_957_056)


@needs_truth
def test_a_tiny_checkpoint_of_the_released_layout_is_recognized():
    file = open_tensor_file(SHARED / "golden_small" / "model.safetensors")
    found = {name: info.shape for name, info in file.tensors.items()}
    config = groot_flat.read_config(SHARED / "golden_small" / "config.json")
    assert config is not None
    assert found == {f"action_head.{name}": shape for name, shape in groot_flat.action_head(config)}
    recognized = recognize(found)
    assert recognized is not None
    assert (recognized.family.name, recognized.settings["max_action_dim"]) == ("groot_n1_7", 5)


@pytest.mark.parametrize("name", TRUTH.get("changes", {}))
def test_every_measured_change_at_the_released_size(name: str):
    case = TRUTH["changes"][name]
    report = what_if("groot_n1_7", changes_of(case["change"]))
    found = report.to_json()
    assert {one.verdict for one in report.verdicts} == OURS[case["verdict"]]
    assert found["constructs"] is case["constructs"]
    if case["constructs"]:
        assert found["counts"] == case["counts"]
        for kind in COUNTED[1:]:
            assert found[kind] == case[kind]


@pytest.mark.parametrize(
    "name", [name for name, case in TRUTH.get("changes", {}).items() if case["tiny_run"]["forward"]]
)
def test_it_runs_and_differs_as_the_tiny_model_did(name: str):
    run = TRUTH["changes"][name]["tiny_run"]
    report = what_if(SHARED / "golden_small" / "config.json", changes_of(run["change"]))
    assert report.runs is (run["forward"] == "runs")
    if report.verdict is Impact.SAFE:
        assert run["output_vs_base_eval"] == "identical"
    if report.verdict is Impact.DIFFERS:
        assert run["output_vs_base_eval"] != "identical"


@pytest.mark.parametrize(
    "name", [name for name in TRUTH.get("backbone_changes", {}) if name.startswith("select_layer:")]
)
def test_measured_depths_of_the_backbone(name: str):
    expected = TRUTH["backbone_changes"][name]
    depth = re.search(r"16->(-?\d+)", name)
    found = what_if("groot_n1_7", [f"select_layer={depth[1]}" if depth else "~select_layer"]).to_json()
    assert found["counts"]["tensors"] == expected["counts"]["tensors"]
    assert set(found["missing_new_init"]) == set(expected["missing_new_init"])
    assert set(found["unexpected_dropped"]) == set(expected["unexpected_dropped"])


@pytest.mark.parametrize("flags", TRUTH.get("freezing", {}))
def test_what_trains_under_the_vendors_flags(flags: str):
    if "=" not in flags:
        pytest.skip("a remark, no measurement")
    config = {
        **RELEASED_N1_7,
        **{flag: on == "True" for flag, _, on in (one.partition("=") for one in flags.split(","))},
    }
    shapes = groot_flat.shapes(config, ["action_head"])
    trained = groot_flat.trainable(config, list(shapes))
    expected = TRUTH["freezing"][flags]
    assert len(trained) == expected["trainable_tensors"]
    assert numbers_in({name: shapes[name] for name in trained}) == expected["trainable_elements"]


def test_n1_6_has_the_totals_of_the_built_heads():
    class_defaults = head_of(max_state_dim=29, max_action_dim=29)
    assert (len(class_defaults), numbers_in(class_defaults)) == (473, 1_407_266_720)
    ports = head_of()
    assert (len(ports), numbers_in(ports)) == (473, 1_418_624_000)
    masked = head_of(state_dropout_prob=0.2)
    assert (len(masked), numbers_in(masked) - numbers_in(ports), masked["mask_token"]) == (474, 1536, (1, 1, 1536))


def test_from_n1_6_to_n1_7_four_tensors_are_padded_and_64_are_new():
    old, new = head_of(), groot_flat.shapes(RELEASED_N1_7, ["action_head"])
    assert set(old) <= set(new)
    assert len(set(new) - set(old)) == 64
    assert {name for name in old if old[name] != new[name]} == {
        "state_encoder.layer1.W", "action_encoder.W1.W", "action_decoder.layer2.W", "action_decoder.layer2.b",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("groot_n1_5", {f"action_head.{name}": shape for name, shape in groot_n1_5.action_head(groot_n1_5.RELEASED)}),
        ("groot_n1_6", groot_flat.file_shapes(RELEASED_N1_6)),
        ("groot_n1_7", groot_flat.file_shapes(RELEASED_N1_7)),
    ],
)
def test_releases_are_distinguished_by_their_tensors(name: str, shapes: dict[str, tuple[int, ...]]):
    found = recognize({f"_groot_model.{tensor}": shape for tensor, shape in shapes.items()})
    assert found is not None
    assert (found.family.name, found.prefix) == (name, "_groot_model.")
    assert "of LeRobot's GrootPolicy" in found.sentence


@pytest.mark.parametrize("key", ["action_dim", "num_target_vision_tokens", "use_vl_self_attention", "attn_dropout"])
def test_a_key_that_no_code_reads_is_named_as_such(key: str):
    (judged,) = what_if(
        "groot_n1_7", [f"{key}={'0.5' if key == 'attn_dropout' else 'false' if 'use' in key else 14}"]
    ).verdicts
    assert judged.verdict is Impact.SAFE
    assert any(word in judged.why for word in ("read by no", "read by nothing", "never read"))


def test_an_unknown_key_is_refused_because_no_code_reads_it():
    with pytest.raises(FamilyError, match="no code of the model reads it"):
        what_if("groot_n1_7", ["max_action_dims=14"])


def test_a_config_of_something_else_is_refused(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "bert"}')
    with pytest.raises(FamilyError, match=r"N1\.6 and N1\.7 the model_type"):
        what_if(path, ["action_horizon=16"])
