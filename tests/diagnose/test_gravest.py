"""One-line summaries of data: the verdict of a check, and the warnings at the start of training."""

import importlib.util
import logging
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tiny_run
from gripper_scales import rewrite_gripper

from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.diagnose.doctor import Examination
from diffusion_policy.diagnose.findings import Finding, exit_status, ok
from diffusion_policy.diagnose.gravest import by_gravity, gravest_before_training, verdict_of
from diffusion_policy.spec import SpecError

SLOW = Finding("step-spacing", "warning", "it will move 8.0 times as fast as the demonstration", "serve slower")
FEW = Finding("size", "warning", "5 episodes: few", "record more")
ZERO = Finding("quaternions", "error", "the quaternion is zero at 3 steps", "cut them")
NOTE = Finding("idle", "note", "3 idle stretches")


def test_the_verdict_is_what_was_found() -> None:
    assert verdict_of([ok("size", "many"), NOTE]) == "Nothing was found that argues against training on it."
    assert verdict_of([FEW, SLOW, NOTE]) == (
        "No error was found: 2 warnings. The gravest: it will move 8.0 times as fast as the demonstration."
    )
    assert verdict_of([FEW, ZERO, SLOW]) == (
        "Do not train on it yet: 1 error, 2 warnings. The gravest: the quaternion is zero at 3 steps."
    )
    assert by_gravity([FEW, NOTE, SLOW, ZERO]) == [ZERO, SLOW, FEW]


@pytest.mark.parametrize(("findings", "status"), [([], 0), ([NOTE], 0), ([SLOW, FEW], 0), ([SLOW, ZERO], 1)])
def test_doctor_inspect_and_verify_agree_on_the_exit_status(findings: list[Finding], status: int) -> None:
    assert exit_status(findings) == status
    assert Examination({"dataset": findings}).exit_status == status


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A dataset recorded at 1.25 Hz."""
    path = tiny_run.write_dataset(tmp_path / "slow.zarr")
    times = ReplayBuffer.open(path, mode="r+")["timestamp"]
    times[:] = np.asarray(times[:]) * 8
    return path


def test_before_training_the_gravest_comes_first(slow: Path) -> None:
    first, *more, last = gravest_before_training(tiny_run.settings(slow))
    assert first.startswith(f"{slow}: steps are 0.8 s apart")
    assert "it will move 8.0 times as fast as the demonstration; record at the robot's rate, or serve at" in first
    assert "control_hz=1.25" in first
    assert any("closes 4 times" in line for line in more)
    assert last.startswith("all findings: ")
    assert f"verify_converted_data.py --zarr-path {slow}" in last
    poses = gravest_before_training(tiny_run.settings(slow, "task=cogact_robot_7d"))
    assert not any("closes" in line for line in poses), "a pose policy has no gripper"


def test_before_training_a_declared_scale_is_used(tmp_path: Path) -> None:
    path = rewrite_gripper(tiny_run.write_dataset(tmp_path / "set.zarr"), "percent")
    with pytest.raises(SpecError):
        gravest_before_training(tiny_run.settings(path, "task.dataset.gripper_scale=signed_open1"))
    *_, last = gravest_before_training(tiny_run.settings(path, "task.dataset.gripper_scale=percent"))
    assert last.endswith("--gripper-scale percent")


def test_what_training_refuses_is_reported_only_by_its_refusal(tmp_path: Path) -> None:
    path = rewrite_gripper(tiny_run.write_dataset(tmp_path / "set.zarr"), "percent")
    assert gravest_before_training(tiny_run.settings(path)) == []


@pytest.fixture
def train(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_script", repository / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_train_says_it_in_its_first_process(
    slow: Path, train: ModuleType, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny_run.settings(slow)
    with caplog.at_level(logging.WARNING, logger="train"):
        train.warn_of_data(cfg)
        assert "8.0 times as fast as the demonstration" in caplog.text
        caplog.clear()
        monkeypatch.setenv("RANK", "1")
        train.warn_of_data(cfg)
        monkeypatch.delenv("RANK")
        train.warn_of_data(tiny_run.settings(slow.with_name("nothing.zarr")))  # the run itself refuses it
        assert not caplog.text
