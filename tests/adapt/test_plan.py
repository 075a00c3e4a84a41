"""The planner on small sets of tensors: every kind of rule, every refusal, and the totals."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.apply import apply_plan
from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.adapt.plan import Plan, PlanError, describe_state, make_plan
from diffusion_policy.adapt.rules import parse_rules

State = dict[str, Tensor]


def filled(**shapes: tuple[int, ...]) -> State:
    """Tensors of different numbers; dots are written as two underscores."""
    return {
        key.replace("__", "."): torch.arange(float(torch.Size(shape).numel())).reshape(shape) + 100 * index
        for index, (key, shape) in enumerate(shapes.items(), start=1)
    }


def planned(source: State, target: State, *rules: dict[str, Any], **top: Any) -> Plan:
    parsed = parse_rules({"name": "test", "rules": list(rules), **top})
    return make_plan(describe_state(source), describe_state(target), parsed)


def adapted(source: State, target: State, *rules: dict[str, Any], **top: Any) -> tuple[State, Ledger]:
    plan = planned(source, target, *rules, **top)
    return apply_plan(plan, source, target), plan.ledger


def test_identical_sets_are_copied_without_rules() -> None:
    source = filled(a__w=(2, 3), a__b=(2,))
    state, ledger = adapted(source, {key: torch.zeros_like(t) for key, t in source.items()})
    assert all(state[key] is source[key] for key in source)
    assert ledger.counts()["copied"].to_json() == {"keys": 2, "tensors": 2, "parameters": 8}
    assert ledger.coverage("model") == 1


def test_drop_fresh_strip_and_recompute() -> None:
    source = filled(old=(4,), head=(2,), mask=(3, 3))
    target = filled(new=(5,), head=(2,), mask=(4, 4))
    rules = [{"drop": "old"}, {"fresh": "new", "init": "zeros"}, {"strip": "head"}, {"recompute": "mask"}]
    state, ledger = adapted(source, target, *rules)
    assert not state["new"].any()
    assert torch.equal(state["head"], target["head"])
    assert torch.equal(state["mask"], target["mask"])
    assert [(entry.action, entry.key) for entry in ledger] == [
        ("fresh", "new"), ("fresh", "head"), ("dropped", "head"), ("recomputed", "mask"), ("dropped", "old"),
    ]  # fmt: skip
    assert ledger.parameters("model") == {"inherited": 0, "grown": 0, "fresh": 7, "recomputed": 16}


@pytest.mark.parametrize(
    ("rename", "old"),
    [
        ({"prefix": "module.", "to": ""}, "module.blocks.0.w"),
        ({"pattern": r"^layers\.(\d+)", "to": r"blocks.\1"}, "layers.0.w"),
    ],
)
def test_renames_tell_the_old_name_in_the_ledger(rename: dict[str, str], old: str) -> None:
    source = {old: torch.ones(2)}
    state, ledger = adapted(source, filled(blocks__0__w=(2,)), {"rename": rename})
    assert torch.equal(state["blocks.0.w"], torch.ones(2))
    (entry,) = ledger
    assert entry.source is not None
    assert (entry.source.key, entry.key) == (old, "blocks.0.w")


def test_grow_by_names_adds_removes_and_reorders() -> None:
    source, target = filled(w=(2, 3)), filled(w=(2, 3))
    slots = {"joint": {"source": ["a", "b", "c"], "target": ["c", "new", "a"]}}
    state, ledger = adapted(source, target, {"grow": "w", "axes": {1: "joint"}, "init": "zeros"}, slots=slots)
    assert state["w"].tolist() == [[102, 0, 100], [105, 0, 103]]
    assert ledger.of("grown")[0].slots[0].describe() == "axis 1 (joint): 2 kept, new new, removed b, reordered"
    assert ledger.parameters("model") == {"inherited": 4, "grown": 2, "fresh": 0, "recomputed": 0}


def test_grow_by_position_along_two_axes() -> None:
    source, target = filled(w=(2, 2)), filled(w=(3, 4))
    state, _ = adapted(source, target, {"grow": "w", "axes": {0: "first", 1: "first"}, "init": "target"})
    assert state["w"].tolist() == [[100, 101, 102, 103], [102, 103, 106, 107], [108, 109, 110, 111]]


@pytest.mark.parametrize(
    ("init", "expected"),
    [("mean", [102.5, 103.5]), ({"copy": "1"}, [102, 103]), ("zeros", [0, 0]), ("target", [104, 105])],
)
def test_new_slots_are_made_as_the_rule_says(init: Any, expected: list[float]) -> None:
    source = {"w": filled(w=(2, 2))["w"] + torch.tensor([[0.0], [0.0]])}
    source["w"][0] += 3
    state, _ = adapted(source, filled(w=(3, 2)), {"grow": "w", "axes": {0: "first"}, "init": init})
    assert state["w"][2].tolist() == expected
    assert torch.equal(state["w"][:2], source["w"])


def test_normal_init_is_seeded_by_rule_and_name() -> None:
    source, target = filled(a=(1,), b=(1,)), filled(a=(50,), b=(50,))
    rule = {"grow": ["a", "b"], "axes": {0: "first"}, "init": {"normal": 0.02}}
    first, again = (adapted(source, target, rule, seed=3)[0] for _ in range(2))
    other, ledger = adapted(source, target, rule, seed=4)
    assert torch.equal(first["a"], again["a"])
    assert not torch.equal(first["a"][1:], first["b"][1:])
    assert not torch.equal(first["a"][1:], other["a"][1:])
    assert 0.01 < first["a"][1:].std() < 0.03
    assert ledger.of("grown")[0].init == "normal(0, 0.02), seed 4"


def test_copy_takes_stars_along() -> None:
    source = filled(net__image__w=(2,), net__image__b=(1,))
    target = filled(net__image__w=(2,), net__image__b=(1,), net__wrist__w=(2,), net__wrist__b=(1,))
    state, ledger = adapted(source, target, {"copy": "net.wrist.*", "from": "net.image.*"})
    assert torch.equal(state["net.wrist.w"], source["net.image.w"])
    assert ledger.counts()["copied"].keys == 4
    assert ledger.source_totals["model"].keys == 2


def test_the_first_rule_that_can_decide_does() -> None:
    target = filled(l__out__w=(2,), l__in__w=(2,))
    state, _ = adapted({}, target, {"fresh": "*.out.*", "init": "zeros"}, {"fresh": "l.*"})
    assert not state["l.out.w"].any()
    assert state["l.in.w"].any()


def test_two_names_of_one_tensor_stay_one() -> None:
    shared, fresh = torch.ones(3), torch.zeros(3)
    state, ledger = adapted({"a": shared, "b": shared}, {"a": fresh, "b": fresh})
    assert state["a"] is state["b"] is shared
    assert ledger.counts()["copied"].to_json() == {"keys": 2, "tensors": 1, "parameters": 3}


def test_lost_sharing_is_refused_if_the_values_differ() -> None:
    fresh = torch.zeros(3)
    target = {"a": fresh, "b": fresh}
    same, _ = adapted({"a": torch.ones(3), "b": torch.ones(3)}, target)
    assert same["a"] is same["b"]
    with pytest.raises(AdaptError, match="lost its sharing"):
        adapted({"a": torch.ones(3), "b": torch.zeros(3)}, target)


def test_one_tensor_cannot_be_decided_in_two_ways() -> None:
    fresh = torch.zeros(3)
    with pytest.raises(AdaptError, match="one tensor of the target, but one is copied and the other fresh"):
        planned({"a": torch.ones(3)}, {"a": fresh, "b": fresh}, {"fresh": "b"})


def test_half_precision_sources_are_cast_and_reported() -> None:
    state, ledger = adapted({"w": torch.ones(2, dtype=torch.float16)}, {"w": torch.zeros(2)})
    assert state["w"].dtype == torch.float32
    assert "float16 -> float32" in next(iter(ledger)).rule


@pytest.mark.parametrize(
    ("source", "target", "rules", "message"),
    [
        (filled(a=(2,)), filled(a=(2,), b=(2,)), [], "1 target names missing"),
        (filled(a=(2,), b=(2,)), filled(a=(2,)), [], "1 source names unexpected"),
        (filled(a=(2,)), filled(a=(3,)), [], r"a: \[2\] in the source, \[3\] in the target"),
        (filled(a=(2,)), filled(a=(2,)), [{"drop": "zzz"}], "(?s)1 rules without effect.*drop zzz"),
        (filled(a=(2,)), filled(a=(2,)), [{"fresh": "a"}], "rules without effect:"),
        (filled(a=(2,)), filled(a=(2,)), [{"rename": {"prefix": "x.", "to": ""}}], "rename .* to ''"),
        (filled(a=(2, 2)), filled(a=(3,)), [{"grow": "a", "init": "zeros"}], "2 dimensions cannot grow into 1"),
        (filled(a=(2, 2)), filled(a=(3, 3)), [{"grow": "a", "axes": {0: "first"}, "init": "zeros"}], "axis 1 differs"),
        (filled(a=(2,)), filled(a=(3,)), [{"grow": "a", "axes": {0: "joint"}, "init": "zeros"}], "under `slots`"),
        (filled(a=(2,)), filled(a=(3,)), [{"grow": "a", "axes": {4: "first"}, "init": "zeros"}], "names axis 4"),
        (filled(a=(2,)), {"a": torch.zeros(2, dtype=torch.int64)}, [], "float32 where int64 is expected"),
        (filled(a=(2,)), filled(b=(3,)), [{"copy": "b", "from": "a"}], "by rule: copy b from a"),
    ],
)
def test_what_is_not_accounted_for_is_an_error(source: State, target: State, rules: list[Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        planned(source, target, *rules)


def test_slots_must_fit_the_tensor() -> None:
    slots = {"joint": {"source": ["a"], "target": ["a", "b", "c"]}}
    with pytest.raises(PlanError, match="2 -> 3 wide, but joint has 1 -> 3 names"):
        planned(filled(a=(2,)), filled(a=(3,)), {"grow": "a", "axes": {0: "joint"}, "init": "zeros"}, slots=slots)


def test_renaming_two_names_to_one_is_refused() -> None:
    with pytest.raises(AdaptError, match=r"maps both 'a' and 'net\.a' to 'a'"):
        planned({"a": torch.ones(1), "net.a": torch.ones(1)}, filled(a=(1,)), {"rename": {"prefix": "net.", "to": ""}})


def test_numbers_that_are_not_finite_are_refused_but_masks_pass() -> None:
    mask = torch.full((2, 2), float("-inf")).triu(1)
    state, _ = adapted({"mask": mask}, {"mask": torch.zeros(2, 2)})
    assert state["mask"] is mask
    for bad in (float("nan"), float("inf")):
        with pytest.raises(AdaptError, match="source: w holds 1 numbers that are NaN or infinite, of 2"):
            adapted({"w": torch.tensor([1.0, bad])}, filled(w=(2,)))


def test_copy_init_of_an_unknown_slot_and_fresh_mean_are_refused() -> None:
    rule = {"grow": "a", "axes": {0: "first"}, "init": {"copy": "nine"}}
    with pytest.raises(AdaptError, match="no slot 'nine' to copy"):
        adapted(filled(a=(2,)), filled(a=(3,)), rule)
    with pytest.raises(AdaptError, match="a fresh tensor has no source"):
        adapted({}, filled(a=(3,)), {"fresh": "a", "init": "mean"})


def test_a_ledger_that_does_not_add_up_is_refused() -> None:
    _, ledger = adapted(filled(a=(2,), b=(3,)), filled(a=(2,), b=(3,)))
    ledger.check()
    with pytest.raises(AdaptError, match="holds 2 keys, 2 tensors, 5 parameters, but the rows account for 1 keys"):
        Ledger(ledger.entries[:1], ledger.source_totals, ledger.target_totals).check()
    with pytest.raises(AdaptError, match=r"fills .'a'. more than once"):
        Ledger(ledger.entries + ledger.entries[:1], ledger.source_totals, ledger.target_totals).check()


def test_ledger_survives_json() -> None:
    slots = {"joint": {"source": ["a", "b"], "target": ["b", "new"]}}
    _, ledger = adapted(
        filled(w=(2,)), filled(w=(2,)), {"grow": "w", "axes": {0: "joint"}, "init": "zeros"}, slots=slots
    )
    assert Ledger.from_json(ledger.to_json()) == ledger
    with pytest.raises(AdaptError, match="ledger has version 99"):
        Ledger.from_json({"version": 99})
