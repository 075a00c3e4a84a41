"""GR00T's progressive layers: the self-attention of a trained action head grown from 4 to 8 blocks, old ones frozen.

On given features the head starts as the same function. The old tensors stay bit-equal while only new blocks learn to
read a changed backbone's features, and the loss falls; then all of them learn.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.files import apply_file, open_target, rules_of
from diffusion_policy.adapt.initial import read_init
from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.families import groot_n1_5
from diffusion_policy.workspace.optimization import Stages
from diffusion_policy.workspace.param_groups import parameter_roles
from tests.groot_head import Features, GrootHead

HEAD = "action_head."
STEPS_BEFORE, STEPS_OF_NEW_BLOCKS, STEPS_OF_ALL = 100, 70, 30
VL = "vl_self_attention_cfg"


def settings(layers: int) -> dict[str, Any]:
    """A small head; its widths are consistent like those of the released one."""
    return {
        "action_dim": 5, "action_horizon": 4, "add_pos_embed": True, "backbone_embedding_dim": 32, "hidden_size": 20,
        "input_embedding_dim": 24, "max_num_embodiments": 3, "max_seq_len": 26, "max_state_dim": 6,
        "num_target_vision_tokens": 9, "num_timestep_buckets": 1000, "use_vlln": True,
        "diffusion_model_cfg": {
            "attention_head_dim": 6, "num_attention_heads": 4, "num_layers": 3, "output_dim": 20,
            "cross_attention_dim": 32, "interleave_self_attention": True, "norm_type": "ada_norm",
            "positional_embeddings": None,
        },
        VL: {"attention_head_dim": 8, "num_attention_heads": 4, "num_layers": layers, "positional_embeddings": None},
    }  # fmt: skip


def config_of(layers: int) -> dict[str, Any]:
    return {
        "model_type": "gr00t_n1_5", "architectures": ["GR00T_N1_5"], "action_dim": 5, "action_horizon": 4,
        "hidden_size": 32, "action_head_cfg": settings(layers),
    }  # fmt: skip


def given(n: int, seed: int, *, changed: bool) -> tuple[Features, Tensor]:
    """Features and the actions they determine, from a changed backbone that permutes its features."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(n, 7, 32, generator=generator)
    state = torch.randn(n, 1, 6, generator=generator)
    task = torch.Generator().manual_seed(99)
    of_tokens, of_state = torch.randn(32, 5, generator=task), torch.randn(6, 5, generator=task) / 3
    actions = (tokens.mean(1, keepdim=True) @ of_tokens + state @ of_state) * torch.linspace(0.5, 1.5, 4)[:, None]
    return Features(tokens.flip(-1) if changed else tokens, state, torch.arange(n) % 3), actions


def train(head: GrootHead, stages: list[dict[str, Any]], roles: Mapping[str, Any], steps: int, start: int) -> None:
    """Updates on the changed features from number `start` on, with these stages."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=1e-4)
    learning = Stages(stages, head, roles, optimizer)
    generator = torch.Generator().manual_seed(start)
    for step in range(start, start + steps):
        learning.enter(step)
        loss = head.loss(*given(64, 1000 + step, changed=True), generator)
        optimizer.zero_grad()
        loss.backward()
        learning.drop_gradients()
        optimizer.step()


def error(head: GrootHead, *, changed: bool) -> float:
    """The loss on unused features, with the same noise each time."""
    with torch.no_grad():
        losses = [head.loss(*given(512, 2, changed=changed), torch.Generator().manual_seed(seed)) for seed in range(2)]
    return float(torch.stack(losses).mean())


@pytest.fixture(scope="module")
def pretrained() -> GrootHead:
    """A head of four blocks that has partly learned its task."""
    torch.manual_seed(0)
    head = GrootHead(settings(4))
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(5)
    for step in range(STEPS_BEFORE):
        optimizer.zero_grad()
        head.loss(*given(64, 100_000 + step, changed=False), generator).backward()
        optimizer.step()
    return head


@pytest.fixture(scope="module")
def grown(pretrained: GrootHead, tmp_path_factory: pytest.TempPathFactory) -> tuple[GrootHead, Ledger]:
    """The same head with eight blocks, made from files as a user would, and its ledger."""
    folder = tmp_path_factory.mktemp("groot")
    save_file({HEAD + name: value for name, value in pretrained.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_of(8)))
    torch.manual_seed(1)
    ledger = apply_file(
        folder / "model.safetensors", open_target(folder / "config.json"), rules_of(["groot_n1_5_deeper"]),
        folder / "deeper.pth",
    )  # fmt: skip
    head = GrootHead(settings(8))
    weights = torch.load(folder / "deeper.pth", weights_only=True)
    head.load_state_dict({name.removeprefix(HEAD): value for name, value in weights.items()})
    return head, ledger


def test_the_head_has_the_names_and_shapes_of_released_ones():
    for layers in (4, 8):
        built = {name: tuple(value.shape) for name, value in GrootHead(settings(layers)).state_dict().items()}
        assert built == groot_n1_5.shapes({"action_head_cfg": settings(layers)}, ["action_head"])


def test_its_self_attention_computes_what_the_published_one_does(shared_data: Path):
    tiny = shared_data / "groot" / "golden_small"
    config = json.loads((tiny / "config.json").read_text())["action_head_cfg"]
    head = GrootHead(config).eval()
    weights = load_file(tiny / "model.safetensors")
    head.load_state_dict({name.removeprefix(HEAD): value for name, value in weights.items() if name.startswith(HEAD)})
    golden = load_file(tiny / "vlsa_io.safetensors")
    with torch.no_grad():
        answer = head.vl_self_attention(head.vlln(golden["x"]))
    torch.testing.assert_close(answer, golden["y_base"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "mean", "std"),
    [
        ("a.weight", (64, 64), 0, 0.02),
        ("norm.weight", (64,), 1, 0),
        ("a.bias", (64,), 0, 0),
        ("a.weight", (8, 8, 3, 3), 0, 0.02),
    ],
)
def test_a_new_layer_starts_as_transformers_initialize_it(name: str, shape: tuple[int, ...], mean: float, std: float):
    values = read_init({"layer": 0.02}, "rule 1", seed=0).whole(name, torch.full(shape, torch.nan))
    assert abs(float(values.mean()) - mean) < 2e-3
    assert abs(float(values.std()) - std) < 2e-3


@pytest.mark.parametrize(("name", "shape"), [("pos_embed.pe", (1, 8, 4)), ("a.bias", (3, 4)), ("table", (4,))])
def test_a_buffer_is_not_started_as_a_layer(name: str, shape: tuple[int, ...]):
    with pytest.raises(AdaptError, match="give it its own rule"):
        read_init({"layer": 0.02}, "rule 1", seed=0).whole(name, torch.zeros(shape))


def test_a_described_target_has_no_values_to_start_from(pretrained: GrootHead, tmp_path: Path):
    save_file({HEAD + name: value for name, value in pretrained.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config_of(8)))
    rules = rules_of(["{rules: [{fresh: '*transformer_blocks.*', init: target}]}"])
    with pytest.raises(AdaptError, match=r"only described.*\{layer: 0.02\}"):
        apply_file(tmp_path / "model.safetensors", open_target(tmp_path / "config.json"), rules, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_four_new_blocks_change_nothing_at_first(pretrained: GrootHead, grown: tuple[GrootHead, Ledger]):
    head, ledger = grown
    counts = {action: count.tensors for action, count in ledger.counts().items() if count.tensors}
    assert counts == {"copied": 132, "fresh": 4 * 16}
    features, actions = given(8, 3, changed=False)
    time = torch.linspace(0, 0.99, 8)
    with torch.no_grad():
        before, after = pretrained(features, actions, time), head(features, actions, time)
    assert torch.equal(before, after)


def test_old_blocks_rest_while_new_ones_learn_and_are_then_released(grown: tuple[GrootHead, Ledger]):
    head, ledger = copy.deepcopy(grown[0]), grown[1]
    roles = {name.removeprefix(HEAD): role for name, role in parameter_roles(ledger, _Under(head), "weights").items()}
    stages = [{"steps": STEPS_OF_NEW_BLOCKS, "learn": ["fresh"]}, {"learn": ["inherited", "fresh"]}]
    old = {name: value.clone() for name, value in head.state_dict().items() if roles[name].kind == "inherited"}
    known, started = error(head, changed=False), error(head, changed=True)
    train(head, stages, roles, STEPS_OF_NEW_BLOCKS, 0)
    rested = error(head, changed=True)
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in old.items())
    assert known < rested < started - 0.7 * (started - known)  # the new blocks regain most of it
    train(head, stages, roles, STEPS_OF_ALL, STEPS_OF_NEW_BLOCKS)
    assert not any(torch.equal(value, head.state_dict()[name]) for name, value in old.items() if value.ndim == 2)
    assert error(head, changed=True) < rested


class _Under(torch.nn.Module):
    """The head under the name used in its files."""

    def __init__(self, head: GrootHead):
        super().__init__()
        self.action_head = head
