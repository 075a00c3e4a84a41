"""Names and numbers of the released checkpoints' policy, tested on every checkout; see tests/golden/make.py."""

import json
from pathlib import Path
from typing import Any

import golden_policy
import pytest
import torch

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "reference_policy.json"

Golden = dict[str, Any]


@pytest.fixture(scope="module")
def golden() -> Golden:
    return dict(json.loads(GOLDEN.read_text()))


@pytest.fixture(scope="module")
def found() -> dict[str, torch.Tensor]:
    return golden_policy.outputs(golden_policy.formula_policy())


@pytest.mark.parametrize(("size", "n_keys"), [("tiny", 187), ("full", 295)])
def test_names_shapes_and_order(golden: Golden, size: str, n_keys: int) -> None:
    """211 and 319 names in a file, less the normalizer's 24, which exist only after the first fit."""
    with torch.device("meta"):
        state = golden_policy.make_policy(size).state_dict()
    assert len(golden[size]) == n_keys
    assert [(key, list(tensor.shape)) for key, tensor in state.items()] == list(golden[size].items())


@pytest.mark.parametrize("name", ["features", "predicted_noise", "loss", "ddim8", "ddpm8"])
def test_numbers(golden: Golden, found: dict[str, torch.Tensor], name: str) -> None:
    expected = torch.tensor(golden[name])
    torch.testing.assert_close(found[name].flatten(), expected, atol=1e-5, rtol=0)


def test_the_numbers_tell_policies_apart(golden: Golden) -> None:
    """No output is constant, saturated or independent of the picture; a policy with other heads fails."""
    for name, shape in (("features", (4, 72)), ("predicted_noise", (2, 16, 7)), ("ddim8", (2, 16, 7))):
        values = torch.tensor(golden[name]).reshape(shape)
        assert values.std() > 0.01
        assert not torch.equal(values[0], values[1])
    policy = golden_policy.formula_policy()
    for layer in policy.model.decoder.layers:
        layer.self_attn.num_heads, layer.self_attn.head_dim = 8, 8
    moved = golden_policy.outputs(policy)["predicted_noise"].flatten() - torch.tensor(golden["predicted_noise"])
    assert moved.abs().max() > 1e-4  # ten times the tolerance
