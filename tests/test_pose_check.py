"""diffusion_policy.pose_check: every kind of numbers that claim to be a pose but are not, in memory and on disk."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
from report_factory import look_at_dataset
from scipy.spatial.transform import Rotation
from trajectory_factory import write_trajectory

from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.dataset.replay_buffer import DatasetError, ReplayBuffer
from diffusion_policy.diagnose.dataset_findings import dataset_findings
from diffusion_policy.diagnose.inspection import inspect_dataset
from diffusion_policy.pose_check import order_fault, pose_faults, tilt_from_down, tool_axis
from diffusion_policy.spec import POSE, POSE_GRIPPER, ROTVEC_WIDTH
from diffusion_policy.trajectory import TrajectoryError, open_trajectory

Change = Callable[[np.ndarray], None]


def turning(n: int = 60) -> np.ndarray:
    """(N, 8) an arm that moves and turns, tool nearly down, gripper 0/1."""
    t = np.linspace(0, 1, n)
    rotation = Rotation.from_euler("xyz", np.stack([np.pi - 0.3 * t, 0.2 * t, 1.5 * t], axis=1))
    position = np.stack([0.4 + 0.1 * t, 0.2 * t - 0.1, 0.3 - 0.1 * t], axis=1)
    return np.concatenate([position, rotation.as_quat(), (t[:, None] < 0.5).astype(float)], axis=1)


def euler(a: np.ndarray, *, degrees: bool) -> None:
    a[:, 3:6] = Rotation.from_quat(a[:, 3:7]).as_euler("xyz", degrees=degrees)
    a[:, 6] = 0


def rotation_vector(a: np.ndarray, last: float | np.ndarray) -> None:
    a[:, 3:6] = Rotation.from_quat(a[:, 3:7]).as_rotvec()
    a[:, 6] = last


def scale_columns(part: slice, factor: float) -> Change:
    def change(a: np.ndarray) -> None:
        a[:, part] *= factor

    return change


def put(rows: slice, part: slice, value: float) -> Change:
    def change(a: np.ndarray) -> None:
        a[rows, part] = value

    return change


KINDS: dict[str, tuple[Change, str, str]] = {
    "euler radians": (lambda a: euler(a, degrees=False), "rotation", "three angles in radians .* and a zero"),
    "euler degrees": (lambda a: euler(a, degrees=True), "rotation", "angles in degrees and a zero"),
    "rotation vector": (lambda a: rotation_vector(a, 0), "rotation", "Euler angles or a rotation vector"),
    "rotation vector, width": (
        lambda a: rotation_vector(a, np.linspace(0.03, 0.08, len(a))),
        "rotation",
        "a rotation vector .* and a gripper width",
    ),
    "rotation vector, gripper": (lambda a: rotation_vector(a, a[:, 7]), "rotation", "radians and a gripper"),
    "scaled quaternions": (scale_columns(slice(3, 7), 1000.0), "rotation", "quaternions scaled by 1e"),
    "millimeters": (scale_columns(slice(0, 3), 1000.0), "position-unit", "cannot be meters for an arm: millimeters"),
    "centimeters": (scale_columns(slice(0, 3), 100.0), "position-unit", "centimeters or millimeters"),
    "zero quaternions": (put(slice(5, 9), slice(3, 7), 0.0), "zero-quaternion", "at 4 of 60 steps, first at step 5"),
    "all zero quaternions": (put(slice(None), slice(3, 7), 0.0), "zero-quaternion", "zero at 60 of 60 steps"),
    "a norm that is off": (
        lambda a: scale_columns(slice(3, 7), 1.5)(a[7:8]),
        "quaternion-norm",
        "norm is 1.5 at 1 of 60 steps, first at step 7",
    ),
    "NaN position": (put(slice(9, 10), slice(2, 3), np.nan), "not-finite", "1 numbers are NaN .* first at step 9"),
    "NaN quaternion": (put(slice(9, 10), slice(3, 7), np.nan), "not-finite", "4 numbers are NaN"),
    "infinite gripper": (put(slice(3, 4), slice(7, 8), np.inf), "not-finite", "1 numbers are NaN or infinite"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_named(kind: str) -> None:
    change, code, message = KINDS[kind]
    numbers = turning()
    assert pose_faults(numbers, POSE_GRIPPER, "data/action") == ()
    change(numbers)
    (fault,) = pose_faults(numbers, POSE_GRIPPER, "data/action")
    assert fault.code == code
    assert re.search(message, fault.message), fault.message
    assert fault.message.startswith("data/action: ")
    assert fault.remedy


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "infinite gripper"])
def test_seven_numbers_as_eight(kind: str) -> None:
    numbers = turning()
    KINDS[kind][0](numbers)
    (fault,) = pose_faults(numbers[:, :7], POSE, "data/robot_eef_pose")
    assert fault.code == KINDS[kind][1]


def test_steps_are_named_by_their_episode() -> None:
    numbers = turning()
    numbers[45, 3:7] = 0
    (fault,) = pose_faults(numbers, POSE_GRIPPER, "data/action", [20, 40, 60])
    assert "first at step 5 of episode 2" in fault.message


def test_what_is_not_a_pose_is_checked_only_for_numbers() -> None:
    assert pose_faults(1000 * turning(), [f"a{i}" for i in range(8)], "data/action") == ()
    assert pose_faults(turning()[:, :7], ROTVEC_WIDTH, "data/action") == ()
    assert pose_faults(np.full((3, 8), np.nan), POSE_GRIPPER, "data/action")[0].code == "not-finite"
    assert pose_faults(np.zeros((0, 8)), POSE_GRIPPER, "data/action") == ()


def test_recorded_norms_are_quaternions() -> None:
    numbers = turning()
    numbers[:, 3:7] *= np.linspace(0.995, 1.005, len(numbers))[:, None]
    numbers[20:, 3:7] *= -1
    assert pose_faults(numbers, POSE_GRIPPER, "data/action") == ()


def test_two_orders_in_one_dataset_are_reported() -> None:
    poses = turning()[:, 3:7]
    scalar_first = np.roll(poses, 1, axis=1)
    assert order_fault(poses, poses, "data/action") is None
    assert order_fault(scalar_first, scalar_first, "data/action") is None, "alike in both: norms cannot tell"
    for action, pose in ((scalar_first, poses), (poses, scalar_first)):
        fault = order_fault(action, pose, "data/action")
        assert fault is not None
        assert fault.code == "quaternion-order"


def test_where_the_tool_points() -> None:
    quaternions = turning()[:, 3:7]
    assert tilt_from_down(tool_axis(quaternions)) < 15
    assert tilt_from_down(tool_axis(np.roll(quaternions, 1, axis=1), scalar_first=True)) < 15
    assert tilt_from_down(tool_axis([[0, 0, 0, 1.0]])) == pytest.approx(180)


# ---- on disk: training, evaluation and the checks of data say the same ----


def dataset(path: Path, change: Change | None = None, arrays: tuple[str, ...] = ("action",)) -> Path:
    """A dataset of the turning arm with these arrays changed; an existing one gets new numbers."""
    if not path.exists():
        tiny_run.write_dataset(path, (30, 30))
    buffer = ReplayBuffer.open(path, mode="r+")
    moving = turning()
    for key, width in (("action", 8), ("robot_eef_pose", 7)):
        numbers = moving.copy()
        if change is not None and key in arrays:
            change(numbers)
        rows = np.asarray(buffer[key][:])
        rows[:, :7] = numbers[:, :7]
        if not np.isfinite(numbers[:, 7:]).all() and width == 8:
            rows[~np.isfinite(numbers[:, 7]), 7] = np.inf
        buffer[key][:] = rows
    return path


def shape_meta(width: int = 8) -> dict[str, Any]:
    return {
        "obs": {
            "image": {"shape": [3, tiny_run.HEIGHT, tiny_run.WIDTH], "type": "rgb"},
            "robot_eef_pose": {"shape": [7], "type": "low_dim"},
            "robot_gripper_state": {"shape": [1], "type": "low_dim"},
        },
        "action": {"shape": [width]},
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a dataset whose numbers are rewritten for each kind."""
    return tmp_path_factory.mktemp("sets")


@pytest.mark.parametrize("arrays", [("action",), ("robot_eef_pose",), ("action", "robot_eef_pose")], ids="+".join)
@pytest.mark.parametrize("kind", KINDS)
def test_training_refuses_what_the_checks_call_an_error(home: Path, kind: str, arrays: tuple[str, ...]) -> None:
    if kind == "infinite gripper" and "action" not in arrays:
        return
    path = dataset(home / "set.zarr", KINDS[kind][0], arrays)
    for width in (8, 7):
        if kind == "infinite gripper" and width == 7:
            continue
        with pytest.raises(DatasetError, match=r"data/(action|robot_eef_pose)") as refused:
            CogActImageDataset(shape_meta(width), path)
        assert str(path) in str(refused.value)
    found = dataset_findings(look_at_dataset(path))
    assert any(finding.severity == "error" for finding in found), "the doctor and verify say so, too"


def test_a_sound_dataset_passes_them(tmp_path: Path) -> None:
    path = dataset(tmp_path / "set.zarr")
    assert len(CogActImageDataset(shape_meta(), path)) == 60
    errors = [finding for finding in dataset_findings(look_at_dataset(path)) if finding.severity == "error"]
    assert errors == []


def test_verify_says_it_without_a_traceback(tmp_path: Path) -> None:
    for kind in ("zero quaternions", "all zero quaternions", "NaN quaternion", "euler radians"):
        path = dataset(tmp_path / f"{kind[:5]}{len(kind)}.zarr", KINDS[kind][0])
        inspection = inspect_dataset(path)
        assert inspection.exit_status == 1


def test_two_orders_are_refused_before_training(tmp_path: Path) -> None:
    def scalar_first(a: np.ndarray) -> None:
        a[:, 3:7] = np.roll(a[:, 3:7], 1, axis=1)

    path = dataset(tmp_path / "set.zarr", scalar_first)
    with pytest.raises(DatasetError, match="one of the two is scalar-first"):
        CogActImageDataset(shape_meta(), path)
    assert "error" in {f.severity for f in dataset_findings(look_at_dataset(path)) if f.code == "quaternion-order"}
    alike = dataset(tmp_path / "alike.zarr", scalar_first, ("action", "robot_eef_pose"))
    CogActImageDataset(shape_meta(), alike)
    (order,) = (f for f in dataset_findings(look_at_dataset(alike)) if f.code == "quaternion-order")
    assert order.severity == "warning"
    assert "are the quaternions scalar-first?" in order.evidence


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "gripper" not in kind])
def test_recordings_are_refused_by_the_same_check(tmp_path: Path, kind: str) -> None:
    numbers = turning()
    KINDS[kind][0](numbers)
    folder = write_trajectory(tmp_path, n_steps=60, size=(32, 18), arrays={"action": numbers[:, :7].astype(np.float32)})
    with pytest.raises(TrajectoryError, match="action"):
        open_trajectory(folder)


@pytest.mark.parametrize("name", ["nan", "nanp", "zq", "eul", "mm", "longer", "u8"])
def test_trial_of_dataset_values(trial: Callable[..., Path], name: str) -> None:
    with pytest.raises(DatasetError):
        CogActImageDataset(shape_meta(), trial("25") / f"{name}.zarr")


def test_trial_of_millimeters_and_scalar_first(trial: Callable[..., Path]) -> None:
    with pytest.raises(TrajectoryError, match="cannot be meters for an arm"):
        open_trajectory(trial("11") / "episode_0000")
    open_trajectory(trial("10") / "episode_0000")  # it cannot be detected; the checks report where the tool points


def test_trial_of_other_keys_and_widths(trial: Callable[..., Path]) -> None:
    with pytest.raises(DatasetError, match="camera0_rgb"):
        CogActImageDataset(shape_meta(), trial("21") / "x.zarr")
    with pytest.raises(DatasetError, match="shape_meta also wants"):
        CogActImageDataset(shape_meta(), trial("22") / "x.zarr")
