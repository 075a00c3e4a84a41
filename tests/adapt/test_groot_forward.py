"""What keys and shapes cannot show, tested with numbers: the self-attention of GR00T N1.5's tiny model."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from diffusion_policy.adapt.apply import apply_plan
from diffusion_policy.adapt.plan import describe_state, make_plan
from diffusion_policy.adapt.rules import read_rules
from diffusion_policy.families import groot_n1_5

HEAD = "action_head."
State = Mapping[str, Tensor]


@pytest.fixture(scope="module")
def tiny(shared_data: Path) -> Path:
    return shared_data / "groot" / "golden_small"


@pytest.fixture(scope="module")
def weights(tiny: Path) -> State:
    return load_file(tiny / "model.safetensors")


@pytest.fixture(scope="module")
def golden(tiny: Path) -> State:
    return load_file(tiny / "vlsa_io.safetensors")


def forward(state: State, x: Tensor, *, heads: int, approximate: str = "tanh") -> Tensor:
    """LayerNorm, then pre-norm blocks x + attention(x), x + feed_forward(x); x is (batch, tokens, width)."""

    def apply(layer: str, x: Tensor) -> Tensor:
        return linear(x, state[f"{layer}.weight"], state.get(f"{layer}.bias"))

    def norm(layer: str, x: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], state[f"{layer}.weight"], state[f"{layer}.bias"])

    start = f"{HEAD}vl_self_attention.transformer_blocks."
    x = norm(f"{HEAD}vlln", x)
    for i in sorted({int(name[len(start) :].partition(".")[0]) for name in state if name.startswith(start)}):
        block, y = f"{start}{i}.", norm(f"{start}{i}.norm1", x)
        split = [apply(f"{block}attn1.to_{n}", y).unflatten(-1, (heads, -1)).transpose(1, 2) for n in "qkv"]
        mixed = scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        x = x + apply(f"{block}attn1.to_out.0", mixed)
        inner = gelu(apply(f"{block}ff.net.0.proj", norm(f"{block}norm3", x)), approximate=approximate)
        x = x + apply(f"{block}ff.net.2", inner)
    return x


def test_the_forward_pass_is_the_published_one(weights: State, golden: State):
    torch.testing.assert_close(forward(weights, golden["x"], heads=4), golden["y_base"], atol=1e-5, rtol=1e-5)


def test_the_same_tensors_in_other_heads_compute_something_else(weights: State, golden: State):
    """2 x 16 instead of 4 x 8: every key loads, and the output differs as published."""
    split = forward(weights, golden["x"], heads=2)
    torch.testing.assert_close(split, golden["y_heads2x16"], atol=1e-5, rtol=1e-5)
    assert (split - golden["y_base"]).abs().max() > 0.2


def test_another_gelu_computes_something_else(weights: State, golden: State):
    y = forward(weights, golden["x"], heads=4, approximate="none")
    torch.testing.assert_close(y, golden["y_gelu"], atol=1e-5, rtol=1e-5)
    assert not torch.equal(y, golden["y_base"])


def test_the_deeper_model_starts_as_the_old_one(repository: Path, tiny: Path, weights: State, golden: State):
    config = json.loads((tiny / "config.json").read_text())
    config["action_head_cfg"]["vl_self_attention_cfg"]["num_layers"] = 6
    target = {name: torch.randn(shape) for name, shape in groot_n1_5.file_shapes(config).items()}
    rules = read_rules(repository / "config" / "adapt" / "groot_n1_5_deeper.yaml")
    deeper = apply_plan(make_plan(describe_state(weights), describe_state(target), rules), weights, target)
    assert len(deeper) == len(weights) + 4 * 16
    torch.testing.assert_close(forward(deeper, golden["x"], heads=4), golden["y_base"], atol=1e-5, rtol=1e-5)
