"""A policy built for its shapes alone has the names, shapes and types of a whole one, and nothing is drawn."""

import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from diffusion_policy.checkpoint import build_policy
from diffusion_policy.installation import CONFIG
from diffusion_policy.model.shapes_only import shapes_only
from diffusion_policy.training_config import compose_training

CONFIGS = sorted(
    path.stem for path in CONFIG.glob("train_*.yaml") if re.search(r"^policy:", path.read_text(), re.MULTILINE)
)  # PPO starts from a checkpoint, which has its policy


@pytest.mark.parametrize("config", CONFIGS)
def test_it_has_the_names_and_shapes_of_the_policy(config: str) -> None:
    cfg = compose_training(config)
    before = torch.get_rng_state()
    described = build_policy(cfg, values=False).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    built = build_policy(cfg).state_dict()
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in described.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in built.items()
    }
    assert all(tensor.is_meta for tensor in described.values())


def test_every_initialization_is_left_out() -> None:
    """Through functions, through methods, and by torch's own layers."""
    with shapes_only():
        weight = torch.empty(3, 2)
        named = ("normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "xavier_uniform_", "orthogonal_", "zeros_")
        assert all(getattr(nn.init, name)(weight) is weight for name in named)
        assert weight.normal_() is weight
        assert weight.uniform_(-1, 1) is weight
        layers = (nn.Conv2d(3, 4, 3), nn.Embedding(5, 2), nn.MultiheadAttention(4, 2), nn.LSTM(2, 3))
    assert all(parameter.is_meta for layer in layers for parameter in layer.parameters())
    assert not torch.empty(1).is_meta


def test_policies_sampler_and_engine_load_neither_a_compiler_nor_statistics() -> None:
    """Which would be a second of every command that builds a policy."""
    program = (
        "import sys; from diffusion_policy.checkpoint import build_policy\n"
        "from diffusion_policy.training_config import compose_training\n"
        f"configs = [compose_training(name) for name in {CONFIGS}]\n"
        "for values in (False, True): [build_policy(config, values=values) for config in configs]\n"
        "from diffusion_policy.policy import sampler; from diffusion_policy.serve import engine\n"
        "sys.exit(sorted({'torch._dynamo', 'scipy.stats'} & set(sys.modules)) or None)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
