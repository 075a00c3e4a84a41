"""A person's steps on a robot, cut out of marked recordings with their frames, and nothing else."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from diffusion_policy import safe_pickle
from diffusion_policy.dagger.corrections import CorrectionError
from diffusion_policy.dagger.marked import cut_marked
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_scale import parse_scales
from diffusion_policy.sim.recorder import make_trajectories
from diffusion_policy.trajectory import open_trajectory


def recording(folder: Path, marks: object) -> Path:
    """One recording with marks: ranges of steps, an array, or a function of the length; None for no marks."""
    (path,) = make_trajectories(folder / "made", 1, seed=len(list(folder.glob("*"))), image_size=(64, 36))
    data = safe_pickle.load((path / "data.pkl").read_bytes(), allowed=safe_pickle.NUMPY_GLOBALS, where="test")
    if isinstance(marks, list):
        flags = np.zeros(len(data["timestamp"]), dtype=bool)
        for steps in marks:
            flags[steps.start : steps.stop] = True
        data["intervention"] = flags
    elif marks is not None:
        data["intervention"] = marks(len(data["timestamp"])) if callable(marks) else marks
    (path / "data.pkl").write_bytes(pickle.dumps(data))
    number = len(list(folder.glob("episode_*")))
    (path / "meta.json").unlink()
    path.rename(folder / f"episode_{number:04d}")
    (folder / "made").rmdir()
    return folder / f"episode_{number:04d}"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


def test_each_marked_part_is_an_episode(source: Path, tmp_path: Path) -> None:
    first = recording(source, [range(10, 30), range(40, 44), range(50, 52)])
    recording(source, [])
    recording(source, [range(60)])
    cuts = cut_marked(source, tmp_path / "out", first_number=1000)
    assert [cut.episodes for cut in cuts] == [("episode_1000", "episode_1001"), (), ("episode_1002",)]
    assert [(cut.frames, cut.too_short) for cut in cuts] == [(24, 1), (0, 0), (60, 0)]
    whole, cut = open_trajectory(first), open_trajectory(tmp_path / "out" / "episode_1000")
    np.testing.assert_array_equal(cut.pose, whole.pose[10:30])
    np.testing.assert_array_equal(cut.action, whole.action[10:30])
    np.testing.assert_array_equal(cut.action_gripper, whole.action_gripper[10:30])
    np.testing.assert_array_equal(cut.timestamp, whole.timestamp[10:30])
    for step in range(20):
        assert cut.frame_path(step).read_bytes() == whole.frame_path(10 + step).read_bytes()
    assert not cut.notes, "no frame that no step shows"


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
@pytest.mark.parametrize("column", [False, True])
def test_marks_as_recorders_write_them(dtype: type, column: bool, source: Path, tmp_path: Path) -> None:
    def marks(n_steps: int) -> np.ndarray:
        flags = np.zeros(n_steps, dtype=dtype)
        flags[5:20] = 1
        return flags[:, None] if column else flags

    recording(source, marks)
    (cut,) = cut_marked(source, tmp_path / "out")
    assert cut.frames == 15


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        (None, "data.pkl has no 'intervention'; expected"),
        (np.ones(3, dtype=bool), r"intervention is bool \(3,\); expected"),
        (np.full(400, 0.5), "intervention is float64"),
        ([], "no step of 1 recordings is marked as an intervention"),
        ([range(3, 6)], "1 parts are shorter than 4 steps"),
    ],
)
def test_invalid_marks(marks: object, message: str, source: Path, tmp_path: Path) -> None:
    recording(source, marks)
    with pytest.raises(CorrectionError, match=message):
        cut_marked(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"], "nothing half-written"


def test_a_gripper_in_another_scale_stays_in_it(source: Path, tmp_path: Path) -> None:
    path = recording(source, [range(60)])
    data = safe_pickle.load((path / "data.pkl").read_bytes(), allowed=safe_pickle.NUMPY_GLOBALS, where="test")
    for key in ("robot_gripper", "action_gripper"):
        data[key] = data[key] * 100
    (path / "data.pkl").write_bytes(pickle.dumps(data))
    with pytest.raises(WorkspaceError):
        cut_marked(source, tmp_path / "out")
    scale = parse_scales("percent")
    cut_marked(source, tmp_path / "out", gripper_scale=scale)
    cut = open_trajectory(tmp_path / "out" / "episode_0000", scale)
    np.testing.assert_array_equal(cut.action_gripper, open_trajectory(path, scale).action_gripper[:60])


def test_the_output_is_not_mixed_with_something_else(source: Path, tmp_path: Path) -> None:
    recording(source, [range(60)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(CorrectionError, match="is not empty"):
        cut_marked(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
