"""Roles, learning rates, stages, and old slots that stay fixed."""

from typing import Any

import pytest
import torch
from torch import nn

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.adapt.plan import describe_state, make_plan
from diffusion_policy.adapt.rules import parse_rules
from diffusion_policy.workspace.optimization import Stages
from diffusion_policy.workspace.param_groups import (
    KINDS,
    OldSlots,
    Role,
    Stage,
    parameter_roles,
    read_stages,
    split_groups,
    stage_at,
)


class Net(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.old, self.grown, self.fresh = nn.Linear(2, 2), nn.Linear(width, 2, bias=False), nn.Linear(2, 1)
        self.constant = nn.Parameter(torch.ones(1), requires_grad=False)


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def ledger(net: Net) -> Ledger:
    source = {key: tensor for key, tensor in Net(2).state_dict().items() if "fresh" not in key}
    rules = parse_rules({"rules": [{"grow": "grown.*", "axes": {1: "first"}, "init": "zeros"}, {"fresh": "fresh.*"}]})
    return make_plan(describe_state(source), describe_state(net.state_dict()), rules).ledger


def test_roles_follow_from_the_ledger(net: Net, ledger: Ledger) -> None:
    roles = parameter_roles(ledger, net)
    kinds = {name: role.kind for name, role in roles.items()}
    assert kinds == {
        "old.weight": "inherited", "old.bias": "inherited", "grown.weight": "grown",
        "fresh.weight": "fresh", "fresh.bias": "fresh",
    }  # fmt: skip
    assert roles["grown.weight"].new_mask((2, 3)).tolist() == [[False, False, True]] * 2
    assert roles["fresh.bias"].new_mask((1,)).all()
    assert not roles["old.bias"].new_mask((2,)).any()
    with pytest.raises(AdaptError, match="no row for parameter 'weight'"):
        parameter_roles(ledger, nn.Linear(2, 2))


def test_groups_split_by_role_with_their_own_learning_rates(net: Net, ledger: Ledger) -> None:
    roles = parameter_roles(ledger, net)
    weights = [net.old.weight, net.grown.weight, net.fresh.weight]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": [net.old.bias], "weight_decay": 0.0}]
    split = split_groups(groups, net, roles, {"grown": 1e-3, "fresh": 1e-2})
    assert [(group["role"], len(group["params"]), group["weight_decay"], group.get("lr")) for group in split] == [
        ("inherited", 1, 0.1, None), ("grown", 1, 0.1, 1e-3), ("fresh", 1, 0.1, 1e-2), ("inherited", 1, 0.0, None),
    ]  # fmt: skip
    torch.optim.AdamW(split, lr=1e-4)
    with pytest.raises(AdaptError, match=r"\['new'\] are not kinds of parameters"):
        split_groups(groups, net, roles, {"new": 1.0})


def train(net: Net, optimizer: torch.optim.Optimizer, stages: Stages | None = None, steps: int = 3) -> None:
    for _ in range(steps):
        loss = (net.fresh(net.old(torch.ones(2))) + net.grown(torch.ones(3)).sum()).square().sum()
        optimizer.zero_grad()
        loss.backward()
        if stages is not None:
            stages.drop_gradients()
        optimizer.step()


def test_old_slots_hold_still_while_new_ones_learn(net: Net, ledger: Ledger) -> None:
    roles = parameter_roles(ledger, net)
    # Weight decay changes numbers without gradient, but must not change old slots.
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    before = net.grown.weight.detach().clone()
    slots = OldSlots.of(net, roles)
    slots.freeze(optimizer)
    slots.freeze(optimizer)
    train(net, optimizer)
    assert torch.equal(net.grown.weight[:, :2], before[:, :2])
    assert not torch.equal(net.grown.weight[:, 2], before[:, 2])
    assert not optimizer.state[net.grown.weight]["exp_avg"][:, :2].any()
    slots.release()
    train(net, optimizer)
    assert not torch.equal(net.grown.weight[:, :2], before[:, :2])


def test_stages_freeze_and_release(net: Net, ledger: Ledger) -> None:
    roles = parameter_roles(ledger, net)
    stages = read_stages([{"steps": 10, "learn": ["grown", "fresh"]}, {"learn": list(KINDS)}])
    assert [stage.start for stage in stages] == [0, 10]
    assert [stage_at(stages, step) for step in (0, 9, 10, 99)] == [stages[0], stages[0], stages[1], stages[1]]
    assert stage_at((), 5).learn == frozenset(KINDS)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    running = Stages([{"steps": 10, "learn": ["grown", "fresh"]}, {"learn": list(KINDS)}], net, roles, optimizer)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert running.enter(0)
    train(net, optimizer, running)
    assert torch.equal(net.old.weight, before["old.weight"])
    assert torch.equal(net.grown.weight[:, :2], before["grown.weight"][:, :2])
    assert not torch.equal(net.fresh.weight, before["fresh.weight"])
    assert running.enter(10)
    train(net, optimizer, running)
    assert not torch.equal(net.old.weight, before["old.weight"])
    assert not net.constant.requires_grad


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"learn": "all"}], "expected steps and learn"),
        ([{"learn": ["new"]}], r"training stage 0: \['new'\] are not kinds"),
        ([{"learn": ["fresh"], "step": 3}], "expected steps and learn"),
        ([{"learn": ["fresh"]}, {"learn": ["grown"]}], "steps is None; all but the last need"),
        ([{"learn": ["fresh"], "steps": 5}], "steps is 5; all but the last"),
        ([{"learn": ["fresh"], "steps": 0}, {"learn": ["grown"]}], "steps is 0; all but the last"),
    ],
)
def test_stages_that_make_no_sense_are_refused(entries: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        read_stages(entries)


def test_roles_without_slots() -> None:
    assert Role("fresh").new_mask((2,)).all()
    assert Stage(0, frozenset({"fresh"})) == read_stages([{"learn": ["fresh"]}])[0]
