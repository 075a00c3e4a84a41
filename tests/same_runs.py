"""Whether two runs ended bit-equal."""

from pathlib import Path

import torch

from diffusion_policy.checkpoint import Checkpoint, read_checkpoint
from diffusion_policy.workspace.metrics import read_metrics
from diffusion_policy.workspace.start import LATEST


def assert_same(first, second, where=""):
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert first == second, where


def assert_same_runs(folder: Path, straight: Path) -> Checkpoint:
    """Compares weights, everything that evolves, and every line of metrics except the speed; returns the checkpoint."""
    ours, theirs = (read_checkpoint(path / "checkpoints" / LATEST) for path in (folder, straight))
    assert_same(ours.state_dicts, theirs.state_dicts)
    assert_same(ours.run_state, theirs.run_state)
    assert ours.pickles["global_step"] == theirs.pickles["global_step"]
    lines = [read_metrics(path / "logs.json.txt") for path in (folder, straight)]
    for line in (*lines[0], *lines[1]):
        line.pop("samples_per_second", None)
        line.pop("frames_per_second", None)
    assert lines[0] == lines[1]
    return ours
