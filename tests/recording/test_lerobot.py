"""LeRobot datasets become what training reads: numbers exact, frames as PyAV decodes them."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from lerobot_factory import FPS, LeRobotSet, decode, poses

from diffusion_policy.convert import ConversionError, ConversionReport, ConversionSettings, convert
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.recording import open_recordings
from diffusion_policy.recording.errors import RecordingError
from diffusion_policy.recording.mapping import MappingError

pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: lerobot)")
SIZE = (32, 24)


def run(source: Path, output: Path, **options: Any) -> ConversionReport:
    return convert(ConversionSettings(source, output, resolution=SIZE, workers=1, **options))


def shrunk(frames: Any) -> np.ndarray:
    return np.stack([cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA) for frame in frames])


def numbers(path: Path) -> dict[str, np.ndarray]:
    buffer = ReplayBuffer.open(path)
    return {key: buffer.read(key) for key in buffer.keys if key not in buffer.cameras}


@pytest.mark.parametrize(
    "recorded",
    [
        LeRobotSet(),
        LeRobotSet(version="v2.1"),
        LeRobotSet(wide=True, row_group=4, gop=1),
        LeRobotSet(lengths=(5, 1, 7), files=(0, 1, 1), gop=250),
        LeRobotSet(cameras={"observation.images.front": (64, 48), "observation.picture.wrist": (40, 30)}, row_group=7),
    ],
    ids=["v3", "v2.1", "lists, small row groups", "several files", "two cameras, one of pictures"],
)
def test_numbers_are_exact_and_frames_as_decoded(tmp_path: Path, recorded: LeRobotSet) -> None:
    source = recorded.write(tmp_path / "set")
    report = run(source, tmp_path / "out.zarr")
    found = numbers(tmp_path / "out.zarr")
    columns = recorded.columns()
    np.testing.assert_array_equal(found["action"], columns["action"][2])
    np.testing.assert_array_equal(
        np.concatenate([found["robot_eef_pose"], found["robot_gripper_state"]], axis=1), columns["observation.state"][2]
    )
    np.testing.assert_array_equal(found["timestamp"], columns["frame_index"][2] / FPS)
    buffer = ReplayBuffer.open(tmp_path / "out.zarr")
    np.testing.assert_array_equal(buffer.episode_ends, np.cumsum(recorded.lengths))
    for camera in recorded.cameras:
        short = camera.rsplit(".", 1)[-1] if len(recorded.cameras) > 1 else "image"
        videos = sorted(source.rglob(f"*{camera}*/**/*.mp4"))
        frames = [frame for video in videos for frame in decode(video)] or recorded.frames(camera)
        np.testing.assert_array_equal(buffer[short][:], shrunk(frames), err_msg=camera)
    assert [entry.n_kept for entry in report.kept] == list(recorded.lengths)
    assert all(entry.metadata["tasks"] == ["task 0"] for entry in report.kept)


def test_two_layouts_of_the_same_recordings_have_the_same_content(tmp_path: Path) -> None:
    hashes = {
        run(
            LeRobotSet(version=version, cameras={"picture": (40, 30)}).write(tmp_path / version),
            tmp_path / f"{version}.zarr",
        ).content_sha256
        for version in ("v3.0", "v2.1")
    }
    assert len(hashes) == 1


def test_tasks_success_and_interventions_are_carried_along(tmp_path: Path) -> None:
    driven = np.zeros(15, dtype=bool)
    driven[8:11] = True
    recorded = LeRobotSet(
        tasks=[1] * 6 + [0] * 4 + [1] * 5,
        extra={
            "intervention": ("bool", [1], driven),
            "next.success": ("bool", [1], np.arange(15) == 5),
            "next.done": ("bool", [1], np.isin(np.arange(15), [5, 14])),
            "phase": ("string", [1], np.array(["reach"] * 15)),
        },
    )
    report = run(recorded.write(tmp_path / "set"), tmp_path / "out.zarr")
    first, second = report.kept
    assert first.metadata == {"tasks": ["task 1"], "success": True, "interventions": []}
    assert second.metadata == {"tasks": ["task 0", "task 1"], "success": False, "interventions": [[2, 5]]}
    attributes = ReplayBuffer.open(tmp_path / "out.zarr").root.attrs
    assert attributes["episodes"][1]["interventions"] == [[2, 5]]  # type: ignore[index,call-overload]
    ledger = json.loads((tmp_path / "out.zarr.conversion.json").read_text())
    assert set(ledger["recordings"]["left_out"]) == {"next.done", "phase"}
    assert ledger["recordings"]["control_hz"] == FPS


def test_resume_and_append_go_by_content(tmp_path: Path) -> None:
    first = LeRobotSet().write(tmp_path / "set")
    whole = run(first, tmp_path / "whole.zarr").content_sha256
    run(first, tmp_path / "out.zarr", max_episodes=1)
    again = run(first, tmp_path / "out.zarr", append=True)
    assert [entry.reason for entry in again.episodes if entry.number == 0][-1] == "already in the dataset"
    assert again.content_sha256 == whole
    assert run(first, tmp_path / "whole.zarr", resume=True).content_sha256 == whole
    names = [f"left.{name}" for name in recorded_names()]
    other = LeRobotSet(lengths=(8,), state=poses(8, 5), action=poses(8, 5), names=names).write(tmp_path / "other")
    with pytest.raises(ConversionError, match=r"data/robot_eef_pose is left.x.*convert it to a separate dataset"):
        run(other, tmp_path / "out.zarr", append=True)


def test_a_change_of_a_video_is_seen_when_resuming(tmp_path: Path) -> None:
    source = LeRobotSet().write(tmp_path / "set")
    recordings = open_recordings(source)
    before = recordings.open(recordings.find()[0]).fingerprint()
    LeRobotSet(gop=3).write(tmp_path / "other")
    (video,) = source.rglob("*.mp4")
    shutil.copy(next((tmp_path / "other").rglob("*.mp4")), video)
    recordings = open_recordings(source)
    assert recordings.open(recordings.find()[0]).fingerprint() != before


ANGLES = np.array([0.1, -0.2, 0.3])


@pytest.mark.parametrize(
    ("rotation", "written"),
    [
        ({"as": "quaternion_wxyz"}, lambda q: np.roll(q, 1, axis=1)),
        ({"as": "rotation_vector", "unit": "rad"}, lambda q: rotation(q).as_rotvec()),
        ({"as": "rotation_vector", "unit": "deg"}, lambda q: rotation(q).as_rotvec(degrees=True)),
        ({"as": "euler_xyz", "unit": "rad"}, lambda q: rotation(q).as_euler("xyz")),
        ({"as": "rotation_6d_rows"}, lambda q: rotation(q).as_matrix()[:, :2].reshape(-1, 6)),
        ({"as": "rotation_6d_columns"}, lambda q: rotation(q).as_matrix()[:, :, :2].transpose(0, 2, 1).reshape(-1, 6)),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_every_representation_and_unit_becomes_ours(tmp_path: Path, rotation: dict[str, str], written: Any) -> None:
    expected = poses(12)
    turned = written(expected[:, 3:7])
    state = np.concatenate([expected[:, :3] * 1000, turned, 100 - 100 * expected[:, 7:]], axis=1).astype(np.float32)
    width = turned.shape[1]
    recorded = LeRobotSet(lengths=(12,), state=state, action=state, names=None)
    source = recorded.write(tmp_path / "set")
    given = {
        array: {
            "position": {"feature": feature, "columns": [0, 1, 2], "unit": "mm"},
            "rotation": {"feature": feature, "columns": list(range(3, 3 + width)), **rotation},
            "gripper": {"feature": feature, "columns": [3 + width], "scale": "percent_closed"},
        }
        for array, feature in (("action", "action"), ("state", "observation.state"))
    }
    (tmp_path / "mapping.yaml").write_text(json.dumps(given))
    run(source, tmp_path / "out.zarr", mapping=str(tmp_path / "mapping.yaml"))
    found = numbers(tmp_path / "out.zarr")
    for key, values in (("action", expected), ("robot_eef_pose", expected[:, :7])):
        sign = np.sign((found[key][:1, 3:7] * values[:1, 3:7]).sum())  # q and -q are one rotation
        found[key][:, 3:7] *= sign
        np.testing.assert_allclose(found[key], values, atol=2e-6)
    assert ReplayBuffer.open(tmp_path / "out.zarr").names("action") == recorded_names()


def recorded_names() -> tuple[str, ...]:
    return ("x", "y", "z", "qx", "qy", "qz", "qw", "gripper")


def rotation(quaternions: np.ndarray) -> Any:
    from scipy.spatial.transform import Rotation

    return Rotation.from_quat(quaternions)


def test_two_arms_and_joints_keep_their_names_and_units(tmp_path: Path) -> None:
    both = np.concatenate([poses(12), poses(12, seed=3)], axis=1)
    names = [f"{arm}.{name}" for arm in ("left", "right") for name in recorded_names()]
    source = LeRobotSet(lengths=(12,), state=both, action=both, names=names).write(tmp_path / "arms")
    run(source, tmp_path / "arms.zarr")
    buffer = ReplayBuffer.open(tmp_path / "arms.zarr")
    assert buffer.names("action") == tuple(names)
    np.testing.assert_allclose(buffer.read("action"), both, atol=1e-7)
    joints = np.concatenate([np.linspace(-90, 90, 12)[:, None].repeat(5, axis=1), 100 * poses(12)[:, 7:]], axis=1)
    motors = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
    recorded = LeRobotSet(
        lengths=(12,),
        state=joints.astype(np.float32),
        action=joints.astype(np.float32),
        names=[f"{motor}.pos" for motor in motors],
    )
    run(recorded.write(tmp_path / "joints"), tmp_path / "joints.zarr", mapping="joints_gripper_percent")
    buffer = ReplayBuffer.open(tmp_path / "joints.zarr")
    assert buffer.label is not None
    assert buffer.label["units"] == ["deg"] * 5 + ["1"]
    np.testing.assert_array_equal(buffer.read("action")[:, :5], joints[:, :5].astype(np.float32))
    np.testing.assert_allclose(buffer.read("action")[:, 5], poses(12)[:, 7], atol=1e-7)
    np.testing.assert_array_equal(buffer.read("robot_joints"), joints[:, :5].astype(np.float32))


def test_names_that_do_not_say_it_are_asked_for_with_a_mapping_to_fill_in(tmp_path: Path) -> None:
    names = ["x", "y", "z", "roll", "pitch", "yaw", "gripper_width"]
    state = np.concatenate([poses(12)[:, :3], np.tile(ANGLES, (12, 1)), 0.08 * poses(12)[:, 7:]], axis=1)
    recorded = LeRobotSet(lengths=(12,), state=state.astype(np.float32), action=state.astype(np.float32), names=names)
    source = recorded.write(tmp_path / "set")
    with pytest.raises(MappingError, match="--mapping FILE") as refused:
        run(source, tmp_path / "out.zarr")
    printed = str(refused.value).split("\n\n", 1)[1]
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(printed)
    with pytest.raises(MappingError, match=r"action.position.unit is '\?': fill it in"):
        run(source, tmp_path / "out.zarr", mapping=str(mapping))
    filled = printed.replace("unit: '?'", "unit: m").replace("as: '?'", "as: euler_xyz")
    mapping.write_text(filled.replace("scale: '?'", "scale: meters:0.08"))
    run(source, tmp_path / "out.zarr", mapping=str(mapping))
    np.testing.assert_allclose(numbers(tmp_path / "out.zarr")["action"][:, 7], poses(12)[:, 7], atol=1e-6)


def test_a_gripper_of_an_unknown_scale_is_asked_for(tmp_path: Path) -> None:
    state = poses(12)
    state[:, 7] *= 100
    source = LeRobotSet(lengths=(12,), state=state, action=state).write(tmp_path / "set")
    with pytest.raises(RecordingError, match=r"gripper is 0 to 100.*--gripper-scale percent"):
        run(source, tmp_path / "out.zarr")
    run(source, tmp_path / "out.zarr", gripper_scale="percent")
    np.testing.assert_allclose(numbers(tmp_path / "out.zarr")["action"][:, 7], poses(12)[:, 7], atol=1e-7)


@pytest.mark.parametrize(
    ("name", "mapping"),
    [
        ("pose8_one_camera", None),
        ("joints_two_cameras", "joints_gripper_percent"),
        ("v21_pose8_two_cameras", None),
        ("v21_converted_to_v30", None),
    ],
)
def test_sets_that_lerobot_wrote(shared_data: Path, tmp_path: Path, name: str, mapping: str | None) -> None:
    source = shared_data / "lerobot" / name
    truth_at = source if (source / "truth.npz").is_file() else source.with_name("v21_pose8_two_cameras")
    truth = np.load(truth_at / "truth.npz", allow_pickle=False)
    report = run(source, tmp_path / "out.zarr", mapping=mapping, quaternion_sign="keep")
    found = numbers(tmp_path / "out.zarr")
    exact = 8 if mapping is None else 5
    np.testing.assert_array_equal(found["action"][:, :exact], truth["action"][:, :exact])
    assert [entry.steps for entry in report.kept] == truth["episode_lengths"].tolist()
    buffer = ReplayBuffer.open(tmp_path / "out.zarr")
    for camera in buffer.cameras:
        videos = sorted(source.rglob("*.mp4") if camera == "image" else source.rglob(f"*images.{camera}/**/*.mp4"))
        frames = [frame for video in videos for frame in decode(video)]
        np.testing.assert_array_equal(buffer[camera][:], shrunk(frames), err_msg=camera)
    if name == "pose8_one_camera":
        assert [entry.metadata.get("success") for entry in report.kept] == [True, False, True]
        assert report.kept[2].metadata["interventions"] == [[10, 17]]


def test_depth_is_not_a_color_camera(shared_data: Path, tmp_path: Path) -> None:
    given = {"action": {"joints": {"feature": "action", "unit": "rad"}}}
    (tmp_path / "mapping.yaml").write_text(json.dumps(given))
    with pytest.raises(MappingError, match="has no color camera"):
        run(shared_data / "lerobot" / "depth_and_odd_features", tmp_path / "o.zarr", mapping=f"{tmp_path}/mapping.yaml")
