"""Opening recorded episodes: what is read, what is refused, what is noted."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trajectory_factory import recorded_arrays, write_trajectory

from diffusion_policy.recording import image_runs
from diffusion_policy.safe_pickle import UnsafePickleError
from diffusion_policy.trajectory import TrajectoryError, find_trajectories, open_trajectory

SMALL = (32, 18)


def test_opens_what_was_recorded(tmp_path: Path) -> None:
    folder = write_trajectory(tmp_path, 7, n_steps=9, size=SMALL)
    recorded = recorded_arrays(9, seed=7)
    trajectory = open_trajectory(folder)
    assert (trajectory.number, trajectory.n_steps, trajectory.cameras, trajectory.notes) == (7, 9, ("image",), ())
    np.testing.assert_array_equal(trajectory.pose, recorded["robot_eef_pose"])
    np.testing.assert_array_equal(trajectory.gripper, recorded["robot_gripper"])
    np.testing.assert_array_equal(trajectory.action, recorded["action"])
    np.testing.assert_array_equal(trajectory.action_gripper, recorded["action_gripper"])
    np.testing.assert_array_equal(trajectory.timestamp, recorded["timestamp"])
    assert [array.dtype for array in (trajectory.pose, trajectory.gripper, trajectory.timestamp)] == [
        np.float32,
        np.float32,
        np.float64,
    ]
    assert trajectory.frame_path(3) == folder / "images" / "frame_0003.jpg"
    assert image_runs(trajectory.image_index) == [(0, 9)]


def test_opens_the_real_recordings(shared_data: Path) -> None:
    paths = find_trajectories(shared_data / "real_trajectories")
    opened = [open_trajectory(path) for path in paths]
    assert [t.number for t in opened] == [0, 1, 2, 4, 6, 8]
    assert sum(t.n_steps for t in opened) == 216
    assert not any(t.notes for t in opened)


def test_opening_changes_nothing(tmp_path: Path) -> None:
    folder = write_trajectory(tmp_path, n_steps=3, size=SMALL, images_folder="Images")
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}
    open_trajectory(folder)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")} == before


def test_reads_pickles_of_numpy_1_and_2(tmp_path: Path) -> None:
    folder = write_trajectory(tmp_path, n_steps=3, size=SMALL)
    data = pickle.loads((folder / "data.pkl").read_bytes())
    for protocol in range(5):
        modern = pickle.dumps(data, protocol=protocol)
        (folder / "data.pkl").write_bytes(modern)
        assert open_trajectory(folder).n_steps == 3
        if protocol <= 2:  # module names stand in plain lines there
            (folder / "data.pkl").write_bytes(modern.replace(b"numpy._core", b"numpy.core"))
            assert open_trajectory(folder).n_steps == 3


def test_accepts_what_real_robots_record(tmp_path: Path) -> None:
    arrays = recorded_arrays(6)
    arrays["action"][:, 3:] *= 1.004
    arrays["action"][3:, 3:] *= -1  # the same rotations
    arrays["action_gripper"][:] = 1
    trajectory = open_trajectory(write_trajectory(tmp_path, n_steps=6, size=SMALL, arrays=arrays))
    assert trajectory.notes == ()


def _with(key: str, value: Any) -> dict[str, Any]:
    return {key: value}


def _nan_pose() -> np.ndarray:
    pose = recorded_arrays(6)["robot_eef_pose"]
    pose[2, 1] = np.nan
    return pose


def _rotation_vectors() -> np.ndarray:
    return np.tile(np.asarray([0.4, 0.0, 0.5, 3.1, 0.1, 0.0, 0.05], dtype=np.float32), (6, 1))


DAMAGED_ARRAYS = {
    "no action_gripper": (_with("action_gripper", None), "lacks action_gripper"),
    "no timestamp": (_with("timestamp", None), "lacks timestamp"),
    "list": (_with("action", [[0.0] * 7] * 6), "action is a list"),
    "integer pose": (_with("action", np.zeros((6, 7), dtype=np.int64)), "action has dtype int64"),
    "text": (_with("timestamp", np.asarray(["a"] * 6)), "timestamp has dtype <U1"),
    "float index": (_with("image_index", np.arange(6.0)), "image_index has dtype float64"),
    "width": (_with("action", np.zeros((6, 8), dtype=np.float32)), r"shape \(6, 8\); expected \(N, 7\)"),
    "column": (_with("robot_gripper", np.ones((6, 1), dtype=np.int64)), r"shape \(6, 1\); expected \(N\)"),
    "lengths": (_with("timestamp", np.arange(5.0)), "lengths differ"),
    "NaN": (_with("robot_eef_pose", _nan_pose()), "NaN or infinity, first at step 2"),
    "zero quaternion": (_with("action", np.zeros((6, 7), dtype=np.float32)), "quaternion 0 has norm 0"),
    "rotation vector": (_with("action", _rotation_vectors()), "older layout x y z, rotation vector, gripper width"),
    "gripper width": (_with("robot_gripper", np.full(6, 8)), r"robot_gripper holds \[8\]"),
    "index -2": (_with("image_index", np.asarray([0, 1, 2, -2, 3, 4])), "image_index is -2 at step 3"),
    "no image": (_with("image_index", np.full(6, -1)), "image_index is -1 at every step"),
    "absent frame": (_with("image_index", np.asarray([0, 1, 2, 3, 4, 9])), "step 5 shows frame 9"),
}


@pytest.mark.parametrize(("arrays", "message"), DAMAGED_ARRAYS.values(), ids=DAMAGED_ARRAYS)
def test_refuses_arrays_that_training_would_learn_from(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    folder = write_trajectory(tmp_path, n_steps=6, size=SMALL, arrays=arrays)
    with pytest.raises(TrajectoryError, match=message):
        open_trajectory(folder)


def test_refuses_an_episode_of_no_steps(tmp_path: Path) -> None:
    folder = write_trajectory(tmp_path, n_steps=0, size=SMALL, n_images=1)
    with pytest.raises(TrajectoryError, match="0 steps"):
        open_trajectory(folder)


def test_refuses_fewer_images_than_steps(tmp_path: Path) -> None:
    folder = write_trajectory(tmp_path, n_steps=6, size=SMALL, n_images=4)
    with pytest.raises(TrajectoryError, match=r"step 4 shows frame 4.*2 of 6 steps lack their frame"):
        open_trajectory(folder)


def test_notes_images_that_no_step_shows(tmp_path: Path) -> None:
    index = np.asarray([0, 0, 2, 4, -1, -1])
    folder = write_trajectory(tmp_path, n_steps=6, size=SMALL, n_images=8, arrays={"image_index": index})
    trajectory = open_trajectory(folder)
    assert trajectory.notes == (
        "2 steps without an image",
        "1 steps show a frame that another step also shows",
        "5 frames of camera 'image' are not shown at any step",
    )
    assert trajectory.frame_path(1) == folder / "images" / "frame_0000.jpg"
    assert image_runs(trajectory.image_index) == [(0, 4)]
    with pytest.raises(TrajectoryError, match="step 5 has no image"):
        trajectory.frame_path(5)


def test_reads_several_cameras(tmp_path: Path) -> None:
    folder = write_trajectory(tmp_path, n_steps=4, size=SMALL, cameras=("front", "wrist"))
    trajectory = open_trajectory(folder)
    assert trajectory.cameras == ("front", "wrist")
    assert trajectory.frame_path(2, "wrist") == folder / "images" / "wrist" / "frame_0002.jpg"
    (folder / "images" / "wrist" / "frame_0001.jpg").unlink()
    with pytest.raises(TrajectoryError, match="lack their frame of camera 'wrist'"):
        open_trajectory(folder)


def test_refuses_ambiguous_frames(tmp_path: Path) -> None:
    folder = write_trajectory(tmp_path, n_steps=3, size=SMALL, cameras=("front",))
    frame = (folder / "images" / "front" / "frame_0000.jpg").read_bytes()
    (folder / "images" / "front" / "frame_0.jpg").write_bytes(frame)
    with pytest.raises(TrajectoryError, match="frame 0 occurs twice"):
        open_trajectory(folder)
    (folder / "images" / "front" / "frame_0.jpg").rename(folder / "images" / "frame_0000.jpg")
    with pytest.raises(TrajectoryError, match="frames are both in it and in front/"):
        open_trajectory(folder)


def test_refuses_an_episode_without_its_parts(tmp_path: Path) -> None:
    folder = write_trajectory(tmp_path, 1, n_steps=3, size=SMALL)
    (folder / "data.pkl").rename(tmp_path / "elsewhere.pkl")
    with pytest.raises(TrajectoryError, match=r"data.pkl: cannot be read"):
        open_trajectory(folder)
    folder = write_trajectory(tmp_path, 2, n_steps=3, size=SMALL)
    (folder / "images").rename(folder / "pictures")
    with pytest.raises(TrajectoryError, match="neither images/ nor Images/"):
        open_trajectory(folder)
    (folder / "images").mkdir()
    with pytest.raises(TrajectoryError, match="holds no frame"):
        open_trajectory(folder)
    (folder / "Images").mkdir()
    with pytest.raises(TrajectoryError, match="both images/ and Images/"):
        open_trajectory(folder)


def test_meta_json_is_checked_where_it_is_there(tmp_path: Path) -> None:
    folder = write_trajectory(tmp_path, 1, n_steps=3, size=SMALL, meta={"episode_id": 5, "n_images": 9})
    assert open_trajectory(folder).notes == (
        "meta.json calls it episode 5; the folder's number is used",
        "meta.json says 9 images, 3 are there",
    )
    (folder / "meta.json").write_text(json.dumps({"n_steps": 8}))
    with pytest.raises(TrajectoryError, match=r"says 8 steps, data.pkl has 3"):
        open_trajectory(folder)
    (folder / "meta.json").write_text("{")
    with pytest.raises(TrajectoryError, match="cannot be read as JSON"):
        open_trajectory(folder)
    (folder / "meta.json").write_text("[]")
    with pytest.raises(TrajectoryError, match="holds a list"):
        open_trajectory(folder)
    (folder / "meta.json").unlink()
    assert open_trajectory(folder).notes == ("meta.json is missing",)


class _Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def test_runs_nothing_that_a_pickle_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_trajectory(tmp_path, n_steps=3, size=SMALL)
    (folder / "data.pkl").write_bytes(pickle.dumps({"action": _Attack()}))
    with pytest.raises(UnsafePickleError, match="system"):
        open_trajectory(folder)
    assert not (tmp_path / "pwned").exists()
    (folder / "data.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(TrajectoryError, match="holds a list; expected a dict"):
        open_trajectory(folder)
    (folder / "data.pkl").write_bytes(b"\x80\x04cut")
    with pytest.raises(UnsafePickleError, match="broken"):
        open_trajectory(folder)


def test_finds_episodes_in_order_of_number(tmp_path: Path) -> None:
    for number in (66, 7, 120):
        write_trajectory(tmp_path, number, n_steps=2, size=SMALL)
    (tmp_path / "episode_0009").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme_1.txt").touch()
    names = [path.name for path in find_trajectories(tmp_path)]
    assert names == ["episode_0007", "episode_0009", "episode_0066", "episode_0120"]


def test_says_where_it_looked_for_episodes(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match="is not a directory"):
        find_trajectories(tmp_path / "nowhere")
    with pytest.raises(TrajectoryError, match="holds no episode"):
        find_trajectories(tmp_path)
    folder = write_trajectory(tmp_path, n_steps=2, size=SMALL)
    with pytest.raises(TrajectoryError, match="looks like one episode: give the folder above"):
        find_trajectories(folder)
    (tmp_path / "episode_last").mkdir()
    with pytest.raises(TrajectoryError, match="no number at the end"):
        find_trajectories(tmp_path)
