"""Recorded episodes have the robot's format, are equal for equal seeds, and hold a lagging gripper."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from diffusion_policy.geometry import check_unit_quaternions
from diffusion_policy.sim.recorder import make_trajectories
from diffusion_policy.spec import WorkspaceError
from diffusion_policy.trajectory import open_trajectory

SIZE = (64, 36)


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_episodes_open_as_trajectories(tmp_path: Path) -> None:
    first, second = make_trajectories(tmp_path, 2, seed=1, image_size=SIZE)
    assert [first.name, second.name] == ["episode_0000", "episode_0001"]
    trajectory = open_trajectory(first)
    n_steps = len(trajectory.timestamp)
    assert 60 < n_steps < 90
    assert trajectory.pose.shape == trajectory.action.shape == (n_steps, 7)
    check_unit_quaternions(trajectory.pose[:, 3:7], "pose")
    np.testing.assert_allclose(np.diff(trajectory.timestamp), 0.1, atol=1e-6)
    np.testing.assert_array_equal(trajectory.image_index, np.arange(n_steps))
    frame = cv2.imread(str(first / "images" / f"frame_{n_steps - 1:04d}.jpg"))
    assert frame.shape == (36, 64, 3)
    meta = json.loads((first / "meta.json").read_text())
    assert meta["n_steps"] == meta["n_images"] == n_steps
    assert meta["data_shapes"]["action"] == [n_steps, 7]


def test_commands_lead_the_measurement(tmp_path: Path) -> None:
    (folder,) = make_trajectories(tmp_path, 1, seed=2, image_size=SIZE)
    trajectory = open_trajectory(folder)
    commanded, measured = np.asarray(trajectory.action_gripper), np.asarray(trajectory.gripper)
    lag = np.flatnonzero(np.diff(measured)) - np.flatnonzero(np.diff(commanded))
    np.testing.assert_array_equal(lag, [4, 3])
    next_error = np.linalg.norm(trajectory.pose[1:, :3] - trajectory.action[:-1, :3], axis=1)
    assert next_error.max() < 0.01, "the commanded pose is the pose reached at the next step, nearly"


def test_equal_seeds_make_equal_files(tmp_path: Path) -> None:
    one, other, different = (
        make_trajectories(tmp_path / name, 1, seed=seed, image_size=SIZE)[0]
        for name, seed in (("one", 5), ("other", 5), ("different", 6))
    )
    assert digest(one) == digest(other)
    assert digest(one) != digest(different)


def test_an_existing_episode_is_never_replaced(tmp_path: Path) -> None:
    make_trajectories(tmp_path, 1, seed=0, image_size=SIZE)
    before = digest(tmp_path)
    with pytest.raises(WorkspaceError, match="episode_0000 exists already"):
        make_trajectories(tmp_path, 2, seed=0, image_size=SIZE)
    assert digest(tmp_path) == before


def test_what_an_interrupted_run_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".episode_0000.partial" / "images").mkdir(parents=True)
    make_trajectories(tmp_path, 1, seed=0, image_size=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["episode_0000"]


def test_no_episodes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="0 episodes asked for"):
        make_trajectories(tmp_path, 0, seed=0)
