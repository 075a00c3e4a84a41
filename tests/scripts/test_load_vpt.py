"""VPT's weights by a command: the account of a real load, and what is refused."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from diffusion_policy.model.vpt.network import VPTSettings
from diffusion_policy.policy.vpt_policy import MinecraftAgentPolicy

TINY = VPTSettings(
    hidsize=16, impala_width=1, impala_chans=(2, 2, 2), n_recurrence_layers=2, attention_heads=2,
    attention_memory_size=8, timesteps=4, img_shape=(16, 16, 3),
)  # fmt: skip


@pytest.fixture
def main(repository: Path) -> Callable[[Sequence[str]], int]:
    return runpy.run_path(str(repository / "scripts" / "load_vpt.py"))["main"]


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return MinecraftAgentPolicy(TINY).state_dict()


def test_a_load_is_reported_tensor_by_tensor(main, weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    extra = {name: torch.zeros(1) for name in ("aux_value_head.linear.weight", "aux_value_head.linear.bias")}
    torch.save({**weights, **extra}, tmp_path / "a.weights")
    assert main([str(tmp_path / "a.weights"), "--json", str(tmp_path / "out.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"file {len(weights) + 2}, model {len(weights)}, missing 0, dropped 2 (aux_value_head.*)")
    assert lines[1].startswith("size: custom (hidsize 16, 2 blocks, 2 heads, impala_width 1, window 4)")
    assert lines[2:] == [f"dropped by rule: {name}" for name in extra]
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["load"]["file_keys"], found["settings"]["hidsize"]) == (len(weights) + 2, 16)


@pytest.mark.parametrize("prefix", ["module.policy.", "mine_policy."])
def test_a_wrappers_prefix_is_repaired_on_request(prefix: str, main, weights, tmp_path: Path, capsys):
    torch.save({prefix + name: value for name, value in weights.items()}, tmp_path / "a.weights")
    assert main([str(tmp_path / "a.weights")]) == 2
    assert "--repair" in capsys.readouterr().err
    assert main([str(tmp_path / "a.weights"), "--repair"]) == 0
    assert f"the prefix {prefix!r} was removed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name: name.removeprefix("net."), "'net.' was stripped"),
        (lambda name: f"other.{name}", "not the tensors of a VPT policy"),
    ],
    ids=["net. stripped", "a wholly wrong prefix"],
)
def test_wrong_names_are_never_an_empty_load(change, message: str, main, weights, tmp_path: Path, capsys):
    torch.save({change(name): value for name, value in weights.items()}, tmp_path / "a.weights")
    assert main([str(tmp_path / "a.weights")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
