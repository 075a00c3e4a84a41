"""diffusion_policy.export.onnx_policy: the graph equals the policy, and a policy that cannot be one is refused."""

import json
from pathlib import Path

import pytest
import torch
from evaluation_factory import write_tiny_checkpoint

from diffusion_policy.checkpoint import load_policy
from diffusion_policy.export import onnx_policy
from diffusion_policy.export.errors import ExportError
from diffusion_policy.export.onnx_policy import NOISE, PACKAGES, UnrolledPolicy, export_onnx
from diffusion_policy.policy.contract import PolicyModule
from diffusion_policy.policy.sampler import set_sampler


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("exported") / "tiny.ckpt")


def opened(checkpoint: Path, scheduler: str = "ddim") -> PolicyModule:
    policy = load_policy(checkpoint).eval()
    set_sampler(policy, scheduler, 3)
    return policy


def test_the_unrolled_loop_is_the_policy(checkpoint: Path) -> None:
    policy = opened(checkpoint)
    unrolled = UnrolledPolicy(policy)
    inputs = unrolled.inputs(3)
    obs = {key: inputs[key] for key in unrolled.keys}
    expected = policy.predict_action(obs, initial_noise=inputs[NOISE])["action_pred"]
    with torch.no_grad():
        torch.testing.assert_close(unrolled(*inputs.values()), expected, rtol=0, atol=0)
        program = torch.export.export(unrolled, tuple(inputs.values()), strict=False)
        torch.testing.assert_close(program.module()(*inputs.values()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheduler", ["ddpm", "dpm-solver++"])
def test_other_samplers_are_refused(checkpoint: Path, scheduler: str) -> None:
    with pytest.raises(ExportError, match="expected DDIM without noise"):
        UnrolledPolicy(opened(checkpoint, scheduler))


def test_features_that_depend_on_more_than_the_frame_are_refused(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "random.ckpt", policy={"eval_fixed_crop": False})
    with pytest.raises(ExportError, match="its crops are random"):
        UnrolledPolicy(opened(path))


def test_missing_packages_are_named(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_policy, "PACKAGES", ("no_such_runtime",))
    with pytest.raises(ExportError, match=r"no_such_runtime not installed: .*onnx"):
        export_onnx(opened(checkpoint), tmp_path / "policy.onnx", {})
    assert list(tmp_path.iterdir()) == []


def test_the_graph_answers_as_the_policy(checkpoint: Path, tmp_path: Path) -> None:
    for package in PACKAGES:
        pytest.importorskip(package, reason="the extra onnx is not installed")
    found = export_onnx(opened(checkpoint), tmp_path / "policy.onnx", {"steps": 3})
    assert found.difference < 1e-4
    about = json.loads((tmp_path / "policy.onnx.json").read_text())
    assert about["inputs"][NOISE]["shape"] == [1, 8, 8]
    assert (about["steps"], about["first_executed"]) == (3, 1)
    with pytest.raises(ExportError, match="exists"):
        export_onnx(opened(checkpoint), tmp_path / "policy.onnx", {})
