"""What-if: every published change of GR00T N1.5 at both sizes, other changes against properties, VPT, and refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_changes import OURS, changes_of
from printed import printed

from diffusion_policy.families.definitions import DEFINITIONS
from diffusion_policy.families.family import FamilyError, Impact
from diffusion_policy.installation import CONFIG
from diffusion_policy.whatif.config_change import what_if
from diffusion_policy.whatif.project_config import project_configs
from diffusion_policy.whatif.report import COUNTED

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "groot"


def cases(name: str, section: str | None = None, *, keep: Callable[[dict[str, Any]], bool] = bool) -> list[Any]:
    if not SHARED.is_dir():
        return []
    data = json.loads((SHARED / name).read_text())
    return [pytest.param(case, id=key) for key, case in (data[section] if section else data).items() if keep(case)]


@pytest.mark.parametrize("case", cases("TRUTH.json", "changes"))
def test_every_published_change_at_the_released_size(case: dict[str, Any]):
    report = what_if("groot_n1_5", changes_of(case["change"]))
    found = report.to_json()
    assert {one.verdict for one in report.verdicts} == OURS[case["verdict"]]
    assert found["constructs"] is case["constructs"]
    assert report.exit_status == int(case["verdict"].startswith(("shape", "does not")) or "fails" in case["verdict"])
    if case["constructs"]:
        assert found["counts"] == case["counts"]
        for kind in COUNTED[1:]:
            assert found[kind] == case[kind]
        assert len(found["loads"]) == case["counts"]["tensors"]["loads"]


@pytest.mark.parametrize("case", cases("golden_small/cases.json"))
def test_every_published_change_at_the_tiny_size(case: dict[str, Any]):
    found = what_if(SHARED / "golden_small" / "config.json", changes_of(case["change"])).to_json()
    assert found["constructs"] is case["constructs"]
    if case["constructs"]:
        head = "action_head."
        assert found["counts"]["tensors"] == case["counts"]
        mismatch = {head + name: [both["checkpoint"], both["model"]] for name, both in found["shape_mismatch"].items()}
        assert mismatch == case["shape_mismatch"]
        assert {head + name: shape for name, shape in found["missing_new_init"].items()} == case["missing_new_init"]
        assert [head + name for name in found["unexpected_dropped"]] == case["unexpected_dropped"]


@pytest.mark.parametrize("case", cases("TRUTH.json", "changes", keep=lambda case: case["tiny_run"]["forward"]))
def test_runs_and_differs_as_the_tiny_model_did(case: dict[str, Any]):
    """`tiny_run` was executed: whether the forward pass ran, and whether its output changed."""
    run = case["tiny_run"]
    report = what_if(SHARED / "golden_small" / "config.json", changes_of(run["change"]))
    assert report.runs is (run["forward"] == "runs")
    if report.verdict is Impact.SAFE:
        assert run["output_vs_base_eval"] == "identical"
    if report.verdict is Impact.DIFFERS:
        assert run["output_vs_base_eval"] != "identical"


@pytest.mark.parametrize("case", cases("TRUTH.json", "changes", keep=lambda case: "claim_holds" in case))
def test_common_beliefs_are_named_where_they_are_wrong(case: dict[str, Any]):
    report = what_if("groot_n1_5", changes_of(case["change"]))
    named = any(one.belief for one in report.verdicts)
    # "safe" only by names: the output changes.
    gelu = case["change"].get("vl_self_attention_cfg.activation_fn") == "gelu"
    assert named is (case["claim_holds"] is not True or gelu)


@pytest.mark.parametrize(("change", "kind"), [
    ("backbone_cfg.select_layer=16", "backbone_cfg.select_layer:12->16"),
    ("backbone_cfg.select_layer=8", "backbone_cfg.select_layer:12->8"),
    ("backbone_cfg.project_to_dim=1536", "backbone_cfg.project_to_dim:null->1536"),
])  # fmt: skip
def test_published_changes_of_the_backbone(change: str, kind: str):
    if not SHARED.is_dir():
        pytest.skip("published comparisons are not on this machine")
    expected = json.loads((SHARED / "TRUTH.json").read_text())["backbone_changes"][kind]
    found = what_if("groot_n1_5", [change]).to_json()
    assert found["counts"]["tensors"] == expected["counts"]["tensors"]
    assert found["missing_new_init"] == expected["missing_new_init"]
    assert found["unexpected_dropped"] == expected.get("unexpected_dropped", {})


def test_a_projection_of_the_backbone_needs_a_head_of_that_width():
    assert what_if("groot_n1_5", ["~backbone_cfg.project_to_dim"]).verdict is Impact.CANNOT_RUN
    attended = ["diffusion_model_cfg.cross_attention_dim=1536", "vl_self_attention_cfg.attention_head_dim=48"]
    report = what_if("groot_n1_5", ["backbone_cfg.project_to_dim=1536", "backbone_embedding_dim=1536", *attended])
    assert report.runs
    assert report.verdict is Impact.BREAKING


def test_removing_select_layer_runs_out_of_layers():
    report = what_if("groot_n1_5", ["~backbone_cfg.select_layer"])
    assert report.verdict is Impact.NOT_CONSTRUCTED
    assert "runs out of them" in report.error


def test_the_vendors_path_to_the_backbone_is_ignored():
    report = what_if("groot_n1_5", ["backbone_cfg.eagle_path=/elsewhere"])
    assert report.verdict is Impact.SAFE
    assert "vendored" in report.verdicts[0].why


def test_the_vendors_partial_copy_leaves_what_breaks_here_random():
    """32 -> 48 action dimensions: the three tensors that the vendor's own script leaves random, 3,933,696 elements."""
    report = what_if("groot_n1_5", ["action_dim=48"])
    assert report.counts["elements"]["shape_mismatch_in_model"] == 3_933_696
    assert set(report.to_json()["shape_mismatch"]) == {
        "action_encoder.W1.W", "action_decoder.layer2.W", "action_decoder.layer2.b"}  # fmt: skip
    assert "called W and b" in report.verdicts[0].why


def test_each_value_is_judged_in_the_company_of_the_others():
    split = what_if("groot_n1_5", ["vl_self_attention_cfg.num_attention_heads=64",
                                   "vl_self_attention_cfg.attention_head_dim=32", "action_dim=48",
                                   "vl_self_attention_cfg.dropout=0"])  # fmt: skip
    assert [one.verdict for one in split.verdicts] == [Impact.DIFFERS, Impact.DIFFERS, Impact.BREAKING, Impact.SAFE]
    alone = what_if("groot_n1_5", ["vl_self_attention_cfg.num_attention_heads=64"])
    assert alone.verdict is Impact.CANNOT_RUN


def test_changes_of_backbone_and_head_are_distinguished():
    report = what_if("groot_n1_5", ["backbone_cfg.select_layer=16", "action_dim=48"])
    assert [one.verdict for one in report.verdicts] == [Impact.PARTLY, Impact.BREAKING]
    assert report.counts["tensors"] == {
        "loads": 896, "shape_mismatch": 3, "missing_new_init": 44, "unexpected_dropped": 0}  # fmt: skip


def test_a_value_that_does_not_construct_does_not_hide_the_verdict_on_others():
    report = what_if("groot_n1_5", ["vl_self_attention_cfg.activation_fn=relu", "action_dim=48", "max_action_dim=48"])
    assert [one.verdict for one in report.verdicts] == [Impact.NOT_CONSTRUCTED, Impact.BREAKING, Impact.SAFE]
    assert report.counts == {}
    assert "diffusers 0.30.2" in report.error


def test_the_value_that_is_there_already_changes_nothing():
    for change in ("action_dim=32", "max_seq_len=1024", "~use_vlln"):
        report = what_if("groot_n1_5", [change])
        assert report.verdict is Impact.SAFE
        assert "already" in report.verdicts[0].why


def test_sinusoidal_positions_limit_the_sequence():
    sinusoidal = "diffusion_model_cfg.positional_embeddings=sinusoidal"
    assert what_if("groot_n1_5", [sinusoidal, "action_horizon=479"]).runs
    report = what_if("groot_n1_5", [sinusoidal, "action_horizon=480"])
    assert not report.runs
    assert "sequence of 513 tokens" in report.to_json()["clashes"][0]


@settings(max_examples=40, deadline=None)
@given(
    action=st.integers(1, 99), state=st.integers(1, 99), embodiments=st.integers(1, 40), tokens=st.integers(1, 64),
    layers=st.integers(0, 20), vl_layers=st.integers(0, 9),
)  # fmt: skip
def test_other_changes_keep_the_sums(
    action: int, state: int, embodiments: int, tokens: int, layers: int, vl_layers: int
):
    """For any change, each tensor is counted once, and depth alone never causes a shape conflict."""
    changes = [f"action_dim={action}", f"max_state_dim={state}", f"max_num_embodiments={embodiments}",
               f"num_target_vision_tokens={tokens}", f"diffusion_model_cfg.num_layers={layers}",
               f"vl_self_attention_cfg.num_layers={vl_layers}"]  # fmt: skip
    report = what_if("groot_n1_5", changes)
    tensors, elements = report.counts["tensors"], report.counts["elements"]
    assert report.runs
    assert tensors["loads"] + tensors["shape_mismatch"] + tensors["unexpected_dropped"] == 314
    used = elements["loads"] + elements["shape_mismatch_in_checkpoint"] + elements["unexpected_dropped"]
    assert used == 1_068_806_144
    assert tensors["missing_new_init"] == 14 * max(0, layers - 16) + 16 * max(0, vl_layers - 4)
    assert tensors["unexpected_dropped"] == 14 * max(0, 16 - layers) + 16 * max(0, 4 - vl_layers)
    grown = 14 if embodiments != 32 else 3 * (action != 32) + (state != 64)
    assert tensors["shape_mismatch"] == grown + (tokens != 32)


@settings(max_examples=40, deadline=None)
@given(heads=st.integers(1, 64), width=st.integers(1, 128))
def test_heads_times_width_decides(heads: int, width: int):
    report = what_if("groot_n1_5", [f"diffusion_model_cfg.num_attention_heads={heads}",
                                    f"diffusion_model_cfg.attention_head_dim={width}"])  # fmt: skip
    assert report.runs is (heads * width == 1536)
    if report.runs and (heads, width) != (32, 48):
        assert report.verdict is Impact.DIFFERS


@pytest.mark.parametrize(("changes", "verdict"), [
    (["hidsize=1024"], Impact.BREAKING),
    (["pi_head_kwargs.temperature=1.0"], Impact.DIFFERS),
    (["timesteps=64"], Impact.BREAKING),
    (["timesteps=64", "attention_memory_size=192"], Impact.SAFE),
    (["timesteps=256"], Impact.CANNOT_RUN),
    (["n_recurrence_layers=6"], Impact.PARTLY),
    (["attention_heads=7"], Impact.NOT_CONSTRUCTED),
    (["attention_mask_style=none"], Impact.DIFFERS),
    (["only_img_input=false"], Impact.SAFE),
    (["aux_value_head=true"], Impact.PARTLY),
])  # fmt: skip
def test_vpt(changes: list[str], verdict: Impact):
    assert what_if("vpt", changes).verdict is verdict


def test_vpt_in_other_sizes():
    assert what_if("vpt_1x", ["hidsize=2048", "impala_width=8", "attention_heads=16"]).counts["tensors"]["loads"] < 134
    assert what_if("vpt_3x", []).counts["elements"]["loads"] == 532_504_318


@pytest.mark.parametrize(("model", "change", "message"), [
    ("groot", "a=1", "closest is 'groot_n1_7'"),
    ("vpt", "hidsise=3", "closest is 'hidsize'"),
    ("vpt", "temperature=1", "closest is 'pi_head_kwargs.temperature'"),
    ("groot_n1_5", "future_tokens=64", "has no setting 'future_tokens'"),
    ("groot_n1_5", "vl_self_atention_cfg.dropout=0", "closest is 'vl_self_attention_cfg.dropout'"),
    ("groot_n1_5", "action_dim", "expected key=value, or ~key"),
    ("groot_n1_5", "~action_dim=3", "expected key=value, or ~key"),
    ("groot_n1_5", "~max_seq_len", "class default already applies"),
    ("groot_n1_5", "action_dim=many", "expected a whole number, at least 1"),
    ("groot_n1_5", "action_dim=null", "expected a whole number, at least 1"),
    ("groot_n1_5", "use_vlln=1", "expected true or false"),
    ("groot_n1_5", "action_dim=[", "is not a YAML value"),
    ("groot_n1_5", "diffusion_model_cfg.norm_type=rms", "only covers 'ada_norm' or 'layer_norm'"),
    ("vpt", "recurrence_type=lstm", "only covers 'transformer'"),
])  # fmt: skip
def test_refusals(model: str, change: str, message: str):
    with pytest.raises(FamilyError, match=message):
        what_if(model, [change])


MODELS = [name for name in project_configs() if "\npolicy:" in (CONFIG / f"{name}.yaml").read_text()]


@pytest.mark.parametrize("model", sorted(set(project_configs()) - set(MODELS) - {"serve"}))
def test_a_config_without_its_own_policy_is_refused_by_name(model: str):
    with pytest.raises(FamilyError, match="has no `policy` section, so there is no model to change"):
        what_if(model, ["a=1"])


@pytest.mark.parametrize("model", [*DEFINITIONS, *MODELS])
def test_a_key_that_no_code_reads_is_named_whatever_the_model(model: str):
    """Isaac-GR00T#755: a key in a run's config looked as if it had an effect."""
    for change in ("not_a_key_of_any_model=3", "~not_a_key_of_any_model"):
        with pytest.raises(
            FamilyError, match=r"'not_a_key_of_any_model' \(no code of the (model|policy) reads it\); the"
        ):
            what_if(model, [change])


def test_one_value_may_change_once():
    with pytest.raises(FamilyError, match="action_dim is changed more than once"):
        what_if("groot_n1_5", ["action_dim=3", "action_head_cfg.action_dim=4"])


def test_a_key_without_class_default_cannot_be_removed():
    report = what_if("groot_n1_5", ["~action_horizon"])
    assert report.verdict is Impact.NOT_CONSTRUCTED
    assert "action_horizon has no class default" in report.error
    with pytest.raises(FamilyError, match="reproject_vision is True: this definition"):
        what_if("groot_n1_5", ["~backbone_cfg.reproject_vision"])


def test_a_config_of_another_model_is_refused(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "other"}')
    with pytest.raises(FamilyError, match=r"not the config\.json of a GR00T model"):
        what_if(path, [])


def test_a_key_that_the_constructor_refuses_names_the_closest():
    report = what_if("groot_n1_5", ["vl_self_attention_cfg.num_layer=8"])
    assert report.verdict is Impact.NOT_CONSTRUCTED
    assert "closest is 'vl_self_attention_cfg.num_layers'" in report.error


def test_the_table_shows_verdict_counts_and_names():
    changes = ["num_target_vision_tokens=64", "vl_self_attention_cfg.num_layers=8"]
    text = printed(what_if("groot_n1_5", changes).table(), width=140)
    assert "num_target_vision_tokens: 32 -> 64" in text
    assert "commonly believed to be safe: it is not" in text
    assert "future_tokens.weight [32, 1536] -> [64, 1536]" in text
    assert "... and 56 more" in text
    assert "pretrained share" in text
    assert "does not construct" in printed(what_if("groot_n1_5", ["vl_self_attention_cfg.activation_fn=relu"]).table())
