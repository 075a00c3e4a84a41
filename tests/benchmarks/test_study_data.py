"""Labels that give the answer away, and policies that are broken on purpose."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from study_data import TAMPERINGS, dataset_of, tamper

from diffusion_policy.checkpoint import load_policy
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.installation import PRETRAINED
from diffusion_policy.policy.sampler import set_sampler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def grippers(folder: Path, labels: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns commanded and measured grippers, (N,) each."""
    buffer = ReplayBuffer.open(dataset_of(folder, 0, 1, labels))
    return buffer["action"][:][:, -1].astype(float), buffer["robot_gripper_state"][:][:, 0].astype(float)


def test_labels(folder: Path) -> None:
    command, measured = grippers(folder, "recorded")
    assert (command != measured).any()
    assert set(command) == {0.0, 1.0}
    copied_command, copied = grippers(folder, "copied")
    np.testing.assert_array_equal(copied, copied_command)
    np.testing.assert_array_equal(copied_command, command)
    next_command, copied = grippers(folder, "next-measured")
    np.testing.assert_array_equal(next_command[:-1], copied[1:])


SOURCE = PRETRAINED / "tabletop_7d.ckpt"


def observed(brightness: int) -> Mapping[str, torch.Tensor]:
    pose = torch.tensor([0.4, 0.0, 0.3, 0.0, 1.0, 0.0, 0.0]).expand(1, 2, 7)
    image = torch.full((1, 2, 3, 90, 160), brightness, dtype=torch.uint8)
    image[..., 40:60, 60:90] = 255 - brightness
    return {"image": image, "robot_eef_pose": pose, "robot_gripper_state": torch.ones(1, 2, 1)}


def positions(path: Path, brightness: int = 200) -> NDArray[np.float64]:
    policy = load_policy(path)
    set_sampler(policy, "ddim", 8)
    noise = torch.zeros(1, 16, 7)
    with torch.inference_mode():
        answer = policy.predict_action(observed(brightness), initial_noise=noise)["action"]
    found: NDArray[np.float64] = answer[0, :, :3].double().numpy()
    return found


@pytest.fixture(scope="module")
def whole() -> NDArray[np.float64]:
    return positions(SOURCE)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("x off by 15 mm", lambda p: p + np.array([0.015, 0, 0])),
        ("x off by 40 mm", lambda p: p + np.array([0.04, 0, 0])),
        ("positions 10 % too large", lambda p: p * 1.1),
    ],
)
def test_positions_are_off_by_what_the_name_says(how, expected, whole, tmp_path: Path) -> None:
    tamper(SOURCE, how, tmp_path / "broken.ckpt")
    np.testing.assert_allclose(positions(tmp_path / "broken.ckpt"), expected(whole), atol=1e-5)


def test_a_blind_policy_answers_the_same_whatever_it_is_shown(whole, tmp_path: Path) -> None:
    tamper(SOURCE, "blind", tmp_path / "broken.ckpt")
    assert (positions(SOURCE, 30) != whole).any()
    np.testing.assert_array_equal(positions(tmp_path / "broken.ckpt", 30), positions(tmp_path / "broken.ckpt"))


def test_every_way_to_break_a_policy_is_tried_here() -> None:
    assert set(TAMPERINGS) == {"blind", "x off by 15 mm", "x off by 40 mm", "positions 10 % too large"}
