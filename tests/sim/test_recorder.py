"""Recorded episodes have the robot's format, are equal for equal seeds, and hold a lagging gripper."""

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.geometry import check_unit_quaternions
from diffusion_policy.sim.recorder import make_trajectories
from diffusion_policy.trajectory import open_trajectory

SIZE = (64, 36)


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


def test_resumed_files_are_those_of_a_recording_that_was_not_interrupted(tmp_path: Path) -> None:
    make_trajectories(tmp_path / "whole", 3, seed=4, image_size=SIZE)
    make_trajectories(tmp_path / "resumed", 1, seed=4, image_size=SIZE)
    (tmp_path / "resumed" / ".part.episode_0001" / "images").mkdir(parents=True)
    folders = make_trajectories(tmp_path / "resumed", 3, seed=4, image_size=SIZE, resume=True)
    assert [folder.name for folder in folders] == ["episode_0000", "episode_0001", "episode_0002"]
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "resumed").rglob("*"))]
    make_trajectories(tmp_path / "resumed", 3, seed=4, image_size=SIZE, resume=True)
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "resumed").rglob("*"))] == before


@pytest.fixture(scope="module")
def two_episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trajectories(tmp_path_factory.mktemp("two"), 2, seed=0, image_size=SIZE)[0].parent


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"image_size": (32, 18)},
        {"task": "distractors"},
        {"variation": 0.3},
        {"referee": "physics"},
        {"episodes": 1},
    ],
    ids=str,
)
def test_a_recording_is_not_resumed_with_other_settings(two_episodes: Path, other: dict[str, Any]) -> None:
    before = files(two_episodes)
    with pytest.raises(WorkspaceError, match=r"episode_000[12]"):
        make_trajectories(two_episodes, resume=True, **{"episodes": 3, "seed": 0, "image_size": SIZE, **other})
    assert files(two_episodes) == before


def test_what_an_interrupted_run_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".part.episode_0000" / "images").mkdir(parents=True)
    make_trajectories(tmp_path, 1, seed=0, image_size=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["episode_0000"]


def test_no_episodes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="0 episodes requested"):
        make_trajectories(tmp_path, 0, seed=0)


def test_recordings_of_the_defaults_are_those_of_the_first_release(tmp_path: Path) -> None:
    """Steps, not pixels, which depend on OpenCV's build."""
    (folder,) = make_trajectories(tmp_path, 1, seed=3, image_size=SIZE)
    trajectory = open_trajectory(folder)
    assert trajectory.n_steps == 80
    measured = [[0.466306, 0.091315, 0.151021, 0.996675], [0.465914, -0.120469, 0.15, 0.999899]]
    np.testing.assert_allclose(trajectory.pose[[10, 40], :4], measured, atol=2e-6)
    commanded = [[0.467067, 0.092363, 0.15, 0.996632], [0.465769, -0.147275, 0.15, 0.999976]]
    np.testing.assert_allclose(trajectory.action[[10, 40], :4], commanded, atol=2e-6)
    assert not json.loads((folder / "meta.json").read_text()).keys() & {"task", "variation", "referee"}


@pytest.mark.parametrize("referee", ["physics", "kinematic"])
def test_other_demonstrations_say_what_they_are(tmp_path: Path, referee: str) -> None:
    (folder,) = make_trajectories(
        tmp_path, 1, seed=0, image_size=SIZE, task="two_in_order", variation=1.0, referee=referee
    )
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["task"], meta["variation"]) == ("two_in_order", 1.0)
    assert meta.get("referee", "kinematic") == referee
    assert open_trajectory(folder).n_steps > 110


def test_wrong_choices_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for choice in ({"task": "juggle"}, {"referee": "umpire"}, {"variation": 2.0}):
        with pytest.raises(WorkspaceError, match="expected"):
            make_trajectories(tmp_path, 1, seed=0, image_size=SIZE, **choice)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
