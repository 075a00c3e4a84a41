"""Why names do not match: each cause seen in practice is recognized, with its fix; the two reported accidents first."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from adapt_factory import policy_cfg
from torch import Tensor

from diffusion_policy.adapt.folding import fold
from diffusion_policy.adapt.plan import PlanError, describe_state, make_plan
from diffusion_policy.adapt.rules import Rules, parse_rules, read_rules
from diffusion_policy.adapt.target import target_from_config, target_from_manifest
from diffusion_policy.tensor_file.wrapped_names import WRAPPERS

State = dict[str, Tensor]


def names(*keys: str) -> State:
    return {key: torch.zeros(index + 1) for index, key in enumerate(keys)}


def refusal(source: State, target: State) -> PlanError:
    with pytest.raises(PlanError) as caught:
        make_plan(describe_state(source), describe_state(target), Rules())
    return caught.value


@pytest.fixture(scope="module")
def policy() -> State:
    return dict(target_from_config(policy_cfg(), "policy").state)


def test_accident_the_file_was_loaded_one_level_too_high(policy: State) -> None:
    whole = {f"{part}.{key}": tensor for part in ("model", "ema_model") for key, tensor in policy.items()}
    error = refusal({**whole, "optimizer.state.0.step": torch.zeros(1)}, policy)
    # One name is found but is another tensor: the dummy of the policy's own submodule `model`.
    assert len(error.problems.missing) == len(policy) - 1
    assert "rename" not in str(error)
    assert "Wrong nesting: the source's top level is 'model', 'ema_model', 'optimizer'" in str(error)
    assert f"{len(policy)} of {len(policy)} target names match inside 'model'" in str(error)


def test_accident_three_names_for_a_whole_model(policy: State) -> None:
    with pytest.raises(PlanError, match=r"3 source names unexpected(?s:.)*Another network: 0 of"):
        make_plan(describe_state(names("model", "ema_model", "optimizer")), describe_state(policy), Rules())


def test_accident_vpt_without_net(shared_data: Path) -> None:
    manifest = target_from_manifest(shared_data / "vpt" / "manifest_2x.json")
    # The published file holds five more names, a second value head; its `net.` was stripped with replace().
    published = dict(manifest.state)
    published |= {key.replace("value_head", "aux_value_head"): t for key, t in published.items() if "value_head" in key}
    stripped = {key.replace("net.", ""): tensor for key, tensor in published.items()}
    error = refusal(stripped, dict(manifest.state))
    assert (len(error.problems.missing), len(error.problems.unexpected)) == (125, 130)
    assert "A prefix is missing: 125 of the 125 missing names are in the source without 'net.'" in str(error)
    fix = parse_rules({"rules": [
        {"rename": {"pattern": r"^(final_ln|img_process|lastlayer|recurrent_layer)\.", "to": r"net.\1."}},
        {"drop": "aux_value_head.*"},
    ]})  # fmt: skip
    assert r"^(final_ln|img_process|lastlayer|recurrent_layer)\." in str(error)
    plan = make_plan(describe_state(stripped), manifest.infos, fix)
    assert plan.ledger.counts()["dropped"].keys == 5


@pytest.mark.parametrize("prefix", [*(f"{part}." for part in WRAPPERS), "_orig_mod.module."])
@pytest.mark.parametrize("where", ["", "deep."])
def test_wrapped_names(prefix: str, where: str) -> None:
    keys = ("deep.a.w", "deep.a.b", "deep.c.w", "deep.d.w")
    wrapped = [where + prefix + key.removeprefix(where) for key in keys[1:]]
    error = refusal(names(keys[0], *wrapped), names(*keys))
    assert f"Wrapped names: 3 of the 3 missing names are in the source; 3 of 3 names carry '{prefix[:6]}" in str(error)
    assert "Fix: --rules bare_weights" in str(error)
    assert "- rename: wrappers" in str(error)
    infos = (describe_state(side) for side in (names(keys[0], *wrapped), names(*keys)))
    assert make_plan(*infos, read_rules("bare_weights")).ledger.counts("model")["copied"].keys == 4


@pytest.mark.parametrize("prefix", ["policy.", "net.", "module.policy."])
def test_a_prefix_too_much(prefix: str) -> None:
    keys = ("a.w", "a.b", "c.w")
    error = refusal(names(*(prefix + key for key in keys)), names(*keys))
    assert f"A superfluous prefix: 3 of the 3 missing names are in the source under {prefix!r}" in str(error)
    assert f"prefix: {prefix}" in str(error)


def test_a_renamed_group() -> None:
    source, target = names("head.w", "enc.0.w", "enc.0.b"), names("head.w", "encoder.0.w", "encoder.0.b")
    assert "A group was renamed: the 2 missing names under 'encoder'" in str(refusal(source, target))


def test_transposed_tensors() -> None:
    error = refusal({"w": torch.zeros(2, 3)}, {"w": torch.zeros(3, 2)})
    assert "1 tensors are transposed (w, ...)" in str(error)
    assert "- strip:\n  - w" in str(error)


def test_another_family(shared_data: Path, policy: State) -> None:
    vpt = json.loads((shared_data / "vpt" / "manifest_1x.json").read_text())["tensors"]
    source = {key: torch.zeros(entry["shape"], device="meta") for key, entry in vpt.items()}
    assert "Another family: the source is VPT agent policy" in str(refusal(source, policy))


def test_a_missing_rule_is_shown_and_solves_it(policy: State) -> None:
    source, target = (target_from_config(policy_cfg(action=width), str(width)) for width in (7, 8))
    with pytest.raises(PlanError) as caught:
        make_plan(source.infos, target.infos, Rules(), source_axes=source.axes, target_axes=target.axes)
    assert "Source and target differ in action_dim 7 -> 8" in str(caught.value)
    for rule in ("- grow:\n  - model.input_emb.weight", "- normalizer.params_dict.action.*"):
        assert rule in str(caught.value)


def test_suggested_rules_of_a_grown_horizon_and_crop_settle_it() -> None:
    source = target_from_config(policy_cfg(), "old")
    target = target_from_config(policy_cfg(horizon=12, crop_shape=[20, 24], n_layer=3), "new")
    named = {"source_axes": source.axes, "target_axes": target.axes}
    with pytest.raises(PlanError) as caught:
        make_plan(source.infos, target.infos, Rules(), **named)
    suggested = yaml.safe_load(str(caught.value).split("`rules:` in a rules file):\n")[1])
    plan = make_plan(source.infos, target.infos, parse_rules({"rules": suggested}), **named)
    assert plan.ledger.counts()["fresh"].keys == 18


def test_another_width_starts_anew_rather_than_growing_into_nonsense() -> None:
    source, target = (target_from_config(policy_cfg(n_emb=width), str(width)) for width in (32, 64))
    with pytest.raises(PlanError, match=r"differ in n_emb 32 -> 64(?s:.)*- strip:") as caught:
        make_plan(source.infos, target.infos, Rules(), source_axes=source.axes, target_axes=target.axes)
    assert "- grow" not in str(caught.value)


def test_fold_names_whole_subtrees_only() -> None:
    everything = ["a.x.w", "a.x.b", "a.y.w", "c.w", "d.w"]
    assert fold(["a.x.w", "a.x.b", "c.w"], everything) == ["a.x.*", "c.w"]
    assert fold(["a.x.w", "a.x.b", "a.y.w"], everything) == ["a.*"]
