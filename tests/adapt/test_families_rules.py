"""The rules files of VPT and GR00T N1.5, applied to their tiny models: what is dropped, grown, new and frozen."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from adapt_factory import vpt_config_of
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion_policy.adapt.apply import apply_plan
from diffusion_policy.adapt.plan import PlanError, describe_state, make_plan
from diffusion_policy.adapt.rules import Rules, read_rules
from diffusion_policy.families import groot_n1_5, vpt
from diffusion_policy.families.family import Shape
from diffusion_policy.workspace.optimization import Stages
from diffusion_policy.workspace.param_groups import parameter_roles

HEAD = "action_head."
VL = f"{HEAD}vl_self_attention.transformer_blocks."


@pytest.fixture(scope="session")
def rules_directory(repository: Path) -> Path:
    return repository / "config" / "adapt"


@pytest.fixture(scope="session")
def tiny_vpt(shared_data: Path) -> dict[str, Tensor]:
    return torch.load(shared_data / "vpt" / "tiny.weights", weights_only=True)


@pytest.fixture(scope="session")
def tiny_groot(shared_data: Path) -> dict[str, Tensor]:
    return load_file(shared_data / "groot" / "golden_small" / "model.safetensors")


@pytest.fixture
def tiny_config(shared_data: Path) -> dict:
    return json.loads((shared_data / "groot" / "golden_small" / "config.json").read_text())


def built(shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """A freshly built target filled with fives, so that no number passes for the source's or a zero."""
    return {name: torch.full(shape, 5.0) for name, shape in shapes.items()}


def head_of(config: dict) -> dict[str, Tensor]:
    return built({HEAD + name: shape for name, shape in groot_n1_5.shapes(config, ["action_head"]).items()})


class Named(nn.Module):
    """Parameters under dotted names, for code that asks a module for its parameters."""

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__()
        for name, tensor in state.items():
            *path, last = name.split(".")
            node: nn.Module = self
            for part in path:
                if part not in dict(node.named_children()):
                    node.add_module(part, nn.Module())
                node = node.get_submodule(part)
            node.register_parameter(last, nn.Parameter(tensor.clone()))


def behavior_cloning_target(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    config = vpt_config_of({name: tuple(tensor.shape) for name, tensor in state.items()})
    return built(vpt.shapes(config | {"aux_value_head": False}))


def test_behavior_cloning_leaves_exactly_the_second_value_head(rules_directory: Path, tiny_vpt: dict[str, Tensor]):
    target = behavior_cloning_target(tiny_vpt)
    with pytest.raises(PlanError, match=r"0 target names missing, 5 source names unexpected"):
        make_plan(describe_state(tiny_vpt), describe_state(target), Rules())
    rules = read_rules(rules_directory / "vpt_behaviour_cloning.yaml")
    plan = make_plan(describe_state(tiny_vpt), describe_state(target), rules)
    dropped = [entry for entry in plan.ledger.entries if entry.action == "dropped"]
    assert [entry.key for entry in dropped] == [f"aux_value_head.{name}" for name in vpt.VALUE_HEAD]
    assert all("behavior cloning" in entry.rule for entry in dropped)
    loaded = apply_plan(plan, tiny_vpt, target)
    assert all(torch.equal(loaded[name], tiny_vpt[name]) for name in target)


def test_net_stripped_by_replace_is_diagnosed_and_put_back(rules_directory: Path):
    full = built(vpt.shapes(vpt.released(1) | {"aux_value_head": True, "policy_kwargs": _small()}))
    stripped = {name.replace("net.", ""): tensor for name, tensor in full.items()}
    target = behavior_cloning_target(full)
    with pytest.raises(PlanError, match=r"125 target names missing, 130 source names unexpected(?s:.)*'net\.'"):
        make_plan(describe_state(stripped), describe_state(target), Rules())
    rules = read_rules(rules_directory / "vpt_put_back_net.yaml", rules_directory / "vpt_behaviour_cloning.yaml")
    plan = make_plan(describe_state(stripped), describe_state(target), rules)
    actions = [entry.action for entry in plan.ledger.entries]
    assert (actions.count("copied"), actions.count("dropped")) == (134, 5)


def _small() -> dict:
    return vpt.released(1)["policy_kwargs"] | {"hidsize": 16, "impala_width": 1, "attention_heads": 2}


def test_action_dimensions_grow_along_the_right_axes(
    rules_directory: Path, tiny_groot: dict[str, Tensor], tiny_config: dict
):
    tiny_config["action_head_cfg"]["action_dim"] = 8
    target = head_of(tiny_config)
    rules = read_rules(rules_directory / "groot_n1_5_action_dim.yaml")
    plan = make_plan(describe_state(tiny_groot), describe_state(target), rules)
    grown = apply_plan(plan, tiny_groot, target)
    assert {entry.key for entry in plan.ledger.entries if entry.action == "grown"} == {
        f"{HEAD}action_encoder.W1.W", f"{HEAD}action_decoder.layer2.W", f"{HEAD}action_decoder.layer2.b"}  # fmt: skip
    for name, (old, new) in {
        "action_encoder.W1.W": (lambda t: t[:, :5], lambda t: t[:, 5:]),
        "action_decoder.layer2.W": (lambda t: t[:, :, :5], lambda t: t[:, :, 5:]),
        "action_decoder.layer2.b": (lambda t: t[:, :5], lambda t: t[:, 5:]),
    }.items():
        assert torch.equal(old(grown[HEAD + name]), tiny_groot[HEAD + name])
        assert not new(grown[HEAD + name]).any()
    unchanged = grown.keys() - {entry.key for entry in plan.ledger.entries if entry.action == "grown"}
    assert all(torch.equal(grown[name], tiny_groot[name]) for name in unchanged)


def test_the_grown_encoder_and_decoder_compute_what_the_old_ones_did(
    rules_directory: Path, tiny_groot: dict[str, Tensor], tiny_config: dict
):
    """First linear map of the action encoder and last of the decoder, per embodiment: x W + b."""
    tiny_config["action_head_cfg"]["action_dim"] = 8
    target = head_of(tiny_config)
    rules = read_rules(rules_directory / "groot_n1_5_action_dim.yaml")
    grown = apply_plan(make_plan(describe_state(tiny_groot), describe_state(target), rules), tiny_groot, target)
    noisy = torch.randn(3, 4, 8)
    heard = [state[f"{HEAD}action_encoder.W1.W"] for state in (tiny_groot, grown)]
    torch.testing.assert_close(noisy[..., :5] @ heard[0], noisy @ heard[1])
    hidden = torch.randn(3, 4, 20)
    messages = [
        hidden @ state[f"{HEAD}action_decoder.layer2.W"] + state[f"{HEAD}action_decoder.layer2.b"][:, None]
        for state in (tiny_groot, grown)
    ]
    torch.testing.assert_close(messages[0], messages[1][..., :5])
    assert not messages[1][..., 5:].any()


def test_new_blocks_start_as_identity_and_the_old_ones_freeze(
    rules_directory: Path, tiny_groot: dict[str, Tensor], tiny_config: dict
):
    tiny_config["action_head_cfg"]["vl_self_attention_cfg"]["num_layers"] = 4
    target = head_of(tiny_config)
    rules = read_rules(rules_directory / "groot_n1_5_deeper.yaml")
    plan = make_plan(describe_state(tiny_groot), describe_state(target), rules)
    deeper = apply_plan(plan, tiny_groot, target)
    fresh = {entry.key for entry in plan.ledger.entries if entry.action == "fresh"}
    assert fresh == {name for name in target if name.startswith((f"{VL}2.", f"{VL}3."))}
    assert len(fresh) == 32
    for block in (2, 3):
        for name in ("attn1.to_out.0.weight", "attn1.to_out.0.bias", "ff.net.2.weight", "ff.net.2.bias"):
            assert not deeper[f"{VL}{block}.{name}"].any()
    model = Named(deeper)
    roles = parameter_roles(plan.ledger, model)
    stages = Stages([{"learn": ["fresh"]}], model, roles, torch.optim.SGD(model.parameters(), lr=1.0))
    stages.enter(0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    stages.drop_gradients()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == fresh
