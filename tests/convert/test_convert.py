"""Recordings to dataset: what arrives on disk, and what the ledger records about the rest."""

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import zarr
from trajectory_factory import recorded_arrays, write_trajectory

from diffusion_policy.convert import ConversionError, ConversionReport, ConversionSettings, convert
from diffusion_policy.dataset.image_codecs import image_codec
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.safe_pickle import UnsafePickleError
from diffusion_policy.spec import action_semantics
from diffusion_policy.trajectory import TrajectoryError, find_trajectories, open_trajectory

SIZE = (64, 36)


def run(source: Path, output: Path, **settings: Any) -> ConversionReport:
    return convert(ConversionSettings(source, output, **{"resolution": (32, 18), "workers": 2, **settings}))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number, n_steps in ((3, 20), (5, 33), (66, 7)):
        write_trajectory(tmp_path / "in", number, n_steps=n_steps, size=SIZE)
    return tmp_path / "in"


def expected_frames(folder: Path, width: int, height: int) -> np.ndarray:
    trajectory = open_trajectory(folder)
    decoded = [cv2.imread(str(trajectory.frame_path(i))) for i in range(trajectory.n_steps)]
    resized = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in decoded]
    return np.stack(resized)[..., ::-1]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_layout_and_content(tmp_path: Path, source: Path, zarr_format: int) -> None:
    report = run(source, tmp_path / "out.zarr", zarr_format=zarr_format)
    root = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    assert root.metadata.zarr_format == zarr_format
    assert root["meta/episode_ends"][:].tolist() == [20, 53, 60]
    assert root["meta/episode_ends"].dtype == np.int64
    shapes = {key: (array.shape, array.dtype) for key, array in root["data"].arrays()}
    assert shapes == {
        "image": ((60, 18, 32, 3), np.uint8),
        "robot_eef_pose": ((60, 7), np.float32),
        "robot_gripper_state": ((60, 1), np.float32),
        "action": ((60, 8), np.float32),
        "timestamp": ((60,), np.float64),
    }
    assert root["data/image"].chunks == (1, 18, 32, 3)
    recorded = recorded_arrays(33, seed=5)
    np.testing.assert_array_equal(root["data/robot_eef_pose"][20:53], recorded["robot_eef_pose"])
    np.testing.assert_array_equal(root["data/robot_gripper_state"][20:53, 0], recorded["robot_gripper"])
    np.testing.assert_array_equal(root["data/action"][20:53, :7], recorded["action"])
    np.testing.assert_array_equal(root["data/action"][20:53, 7], recorded["action_gripper"])
    np.testing.assert_array_equal(root["data/timestamp"][20:53], recorded["timestamp"])
    np.testing.assert_array_equal(root["data/image"][20:53], expected_frames(source / "episode_0005", 32, 18))
    assert root.attrs["action_semantics"] == action_semantics()
    assert root["data/action"].attrs["names"][-1] == "gripper"
    assert report.n_steps == 60
    assert not report.dropped


def test_pixels_of_the_real_recordings(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "real_trajectories"
    report = run(source, tmp_path / "out.zarr", resolution=(160, 90))
    buffer = ReplayBuffer.open(tmp_path / "out.zarr")
    assert (buffer.n_episodes, buffer.n_steps, report.n_steps) == (6, 216, 216)
    expected = np.concatenate([expected_frames(path, 160, 90) for path in find_trajectories(source)])
    np.testing.assert_array_equal(buffer["image"][:], expected)
    recorded = np.concatenate([open_trajectory(path).action for path in find_trajectories(source)])
    np.testing.assert_array_equal(buffer["action"][:, :7], recorded)


def test_format_2_reads_like_the_reference_wrote_it(tmp_path: Path, source: Path) -> None:
    run(source, tmp_path / "out.zarr")
    described = json.loads((tmp_path / "out.zarr" / "data" / "image" / ".zarray").read_text())
    assert described["zarr_format"] == 2
    assert described["dimension_separator"] == "."
    assert described["compressor"]["id"] == "blosc"
    assert (tmp_path / "out.zarr" / "data" / "image" / "59.0.0.0").is_file()


def test_a_frame_of_zeros_has_a_chunk(tmp_path: Path) -> None:
    folder = write_trajectory(tmp_path / "in", n_steps=4, size=SIZE)
    cv2.imwrite(str(folder / "images" / "frame_0002.jpg"), np.zeros((36, 64, 3), dtype=np.uint8))
    run(tmp_path / "in", tmp_path / "out.zarr")
    buffer = ReplayBuffer.open(tmp_path / "out.zarr")
    assert not buffer["image"][2].any()
    assert buffer["image"].nchunks_initialized == 4
    (tmp_path / "out.zarr" / "data" / "image" / "1.0.0.0").unlink()
    assert buffer["image"].nchunks_initialized == 3


def test_selects_by_episode_number(tmp_path: Path, source: Path) -> None:
    report = run(source, tmp_path / "out.zarr", start_episode=4, max_episodes=1)
    assert [entry.name for entry in report.kept] == ["episode_0005"]
    assert [(entry.name, entry.reason) for entry in report.dropped] == [
        ("episode_0003", "not selected: before episode 4"),
        ("episode_0066", "not selected: beyond 1 episodes"),
    ]
    with pytest.raises(ConversionError, match="no episode is left to convert"):
        run(source, tmp_path / "other.zarr", start_episode=100)


def test_image_index_is_honored(tmp_path: Path) -> None:
    index = np.asarray([-1, 3, 3, 1, 0, -1])
    folder = write_trajectory(tmp_path / "in", n_steps=6, size=SIZE, arrays={"image_index": index})
    report = run(tmp_path / "in", tmp_path / "out.zarr")
    buffer = ReplayBuffer.open(tmp_path / "out.zarr")
    shown = [cv2.imread(str(folder / "images" / f"frame_{i:04d}.jpg")) for i in (3, 3, 1, 0)]
    expected = [cv2.resize(frame, (32, 18), interpolation=cv2.INTER_AREA)[..., ::-1] for frame in shown]
    np.testing.assert_array_equal(buffer["image"][:], np.stack(expected))
    np.testing.assert_array_equal(buffer["action"][:, :7], recorded_arrays(6)["action"][1:5])
    (entry,) = report.kept
    assert entry.kept == ((1, 5),)
    assert [(run.start, run.end, run.why) for run in entry.dropped_steps] == [(0, 1, "no image"), (5, 6, "no image")]
    assert [(run.start, run.end) for run in entry.dropped_frames["image"]] == [(2, 3), (4, 6)]


def test_a_gap_is_refused_or_splits_the_episode(tmp_path: Path) -> None:
    index = np.asarray([0, 1, -1, -1, 4, 5, 6])
    write_trajectory(tmp_path / "in", n_steps=7, size=SIZE, arrays={"image_index": index})
    with pytest.raises(ConversionError, match=r"steps 2 to 3 have no image.*--gaps split"):
        run(tmp_path / "in", tmp_path / "out.zarr")
    report = run(tmp_path / "in", tmp_path / "out.zarr", gaps="split")
    buffer = ReplayBuffer.open(tmp_path / "out.zarr")
    assert buffer.episode_ends.tolist() == [2, 5]
    np.testing.assert_array_equal(buffer["action"][:, :7], recorded_arrays(7)["action"][[0, 1, 4, 5, 6]])
    assert report.kept[0].kept == ((0, 2), (4, 7))
    assert [piece["steps"] for piece in buffer.root.attrs["episodes"]] == [[0, 2], [4, 7]]


def test_a_bad_episode_stops_or_is_left_out(tmp_path: Path, source: Path) -> None:
    (source / "episode_0005" / "data.pkl").unlink()
    with pytest.raises(TrajectoryError, match=r"episode_0005/data.pkl: cannot be read"):
        run(source, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()
    report = run(source, tmp_path / "out.zarr", on_error="skip")
    assert [entry.name for entry in report.kept] == ["episode_0003", "episode_0066"]
    assert "cannot be read" in (report.dropped[0].reason or "")
    assert ReplayBuffer.open(tmp_path / "out.zarr").n_steps == 27
    ledger = json.loads((tmp_path / "out.zarr.conversion.json").read_text())
    assert ledger["episodes"][1]["reason"] == report.dropped[0].reason
    assert ledger == dict(ReplayBuffer.open(tmp_path / "out.zarr").root.attrs["conversion"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda data: data[: len(data) // 2], "frame_0017.jpg: the JPEG is cut off after"),
        (lambda data: b"no image at all", "frame_0017.jpg: 15 bytes that do not decode"),
        (lambda data: b"", "frame_0017.jpg: 0 bytes that do not decode"),
    ],
    ids=["cut", "text", "empty"],
)
def test_an_undecodable_frame(tmp_path: Path, source: Path, content: Any, message: str) -> None:
    frame = source / "episode_0005" / "images" / "frame_0017.jpg"
    frame.write_bytes(content(frame.read_bytes()))
    with pytest.raises(TrajectoryError, match=message):
        run(source, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()
    report = run(source, tmp_path / "out.zarr", on_error="skip")
    assert [entry.name for entry in report.dropped] == ["episode_0005"]
    assert ReplayBuffer.open(tmp_path / "out.zarr").episode_ends.tolist() == [20, 27]


@pytest.mark.parametrize("step", [1, 30])
def test_frames_of_another_size(tmp_path: Path, source: Path, step: int) -> None:
    frame = source / "episode_0005" / "images" / f"frame_{step:04d}.jpg"
    cv2.imwrite(str(frame), np.zeros((48, 64, 3), dtype=np.uint8))
    with pytest.raises(TrajectoryError, match="64x36"):
        run(source, tmp_path / "out.zarr")


def test_a_dangerous_pickle_stops_the_run(tmp_path: Path, source: Path) -> None:
    (source / "episode_0003" / "data.pkl").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(UnsafePickleError, match=r"os\.system"):
        run(source, tmp_path / "out.zarr")
    assert len(run(source, tmp_path / "out.zarr", on_error="skip").kept) == 2


def test_all_bad(tmp_path: Path, source: Path) -> None:
    for folder in source.iterdir():
        (folder / "images" / "frame_0000.jpg").write_bytes(b"")
    with pytest.raises(ConversionError, match="no episode is left to convert: 3 were left out, the first: "):
        run(source, tmp_path / "out.zarr", on_error="skip")


def test_an_existing_output_is_refused_unless_told(tmp_path: Path, source: Path) -> None:
    run(source, tmp_path / "out.zarr", max_episodes=1)
    with pytest.raises(ConversionError, match="exists; choose another name, add to it with --append, or replace it"):
        run(source, tmp_path / "out.zarr")
    (source / "episode_0066" / "images" / "frame_0006.jpg").write_bytes(b"")
    with pytest.raises(TrajectoryError, match="frame_0006"):
        run(source, tmp_path / "out.zarr", overwrite=True)
    assert ReplayBuffer.open(tmp_path / "out.zarr").n_episodes == 1
    run(source, tmp_path / "out.zarr", overwrite=True, on_error="skip")
    assert ReplayBuffer.open(tmp_path / "out.zarr").n_episodes == 2
    assert not (tmp_path / "out.zarr.partial").exists()


def test_overwrite_replaces_datasets_only(tmp_path: Path, source: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("irreplaceable")
    with pytest.raises(ConversionError, match="is not a zarr dataset"):
        run(source, tmp_path / "thesis", overwrite=True)
    for output in (source, source / "out.zarr", tmp_path):
        with pytest.raises(ConversionError, match="contain one another"):
            run(source, output, overwrite=True)


def test_the_source_may_be_read_only(tmp_path: Path, source: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    for path in [source, *source.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        run(source, tmp_path / "out.zarr")
    finally:
        for path in [source, *source.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o200)
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before


def test_duplicate_numbers_and_differing_cameras(tmp_path: Path, source: Path) -> None:
    os.rename(source / "episode_0066", source / "episode_5")
    with pytest.raises(ConversionError, match="two episodes have the same number: episode_0005, episode_5"):
        run(source, tmp_path / "out.zarr")
    (source / "episode_5").rename(tmp_path / "aside_5")
    write_trajectory(source, 70, n_steps=3, size=SIZE, cameras=("front", "wrist"))
    with pytest.raises(ConversionError, match="has cameras front, wrist; episode_0003 has image"):
        run(source, tmp_path / "out.zarr")


def test_each_camera_becomes_an_array(tmp_path: Path) -> None:
    folder = write_trajectory(tmp_path / "in", n_steps=5, size=SIZE, cameras=("front", "wrist"))
    run(tmp_path / "in", tmp_path / "out.zarr")
    buffer = ReplayBuffer.open(tmp_path / "out.zarr")
    assert {"front", "wrist"} <= set(buffer.keys)
    frame = cv2.imread(str(folder / "images" / "wrist" / "frame_0004.jpg"))
    expected = cv2.resize(frame, (32, 18), interpolation=cv2.INTER_AREA)[..., ::-1]
    np.testing.assert_array_equal(buffer["wrist"][4], expected)


def test_a_camera_may_not_have_the_name_of_an_array(tmp_path: Path) -> None:
    write_trajectory(tmp_path / "in", n_steps=2, size=SIZE, cameras=("action",))
    with pytest.raises(ConversionError, match="camera 'action' has the name of another array"):
        run(tmp_path / "in", tmp_path / "out.zarr")


def test_quaternion_signs(tmp_path: Path) -> None:
    recorded = {}
    for number in range(3):
        arrays = recorded_arrays(8, seed=number)
        if number == 1:
            arrays["action"][:, 3:] *= -1
            arrays["robot_eef_pose"][4:, 3:] *= -1
        write_trajectory(tmp_path / "in", number, n_steps=8, size=SIZE, arrays=arrays)
        recorded[number] = arrays
    report = run(tmp_path / "in", tmp_path / "out.zarr")
    buffer = ReplayBuffer.open(tmp_path / "out.zarr")
    np.testing.assert_array_equal(buffer["action"][:8, :7], recorded[0]["action"])
    np.testing.assert_array_equal(buffer["action"][8:16, 3:7], -recorded[1]["action"][:, 3:])
    np.testing.assert_array_equal(buffer["robot_eef_pose"][12:16, 3:], -recorded[1]["robot_eef_pose"][4:, 3:])
    assert [dict(entry.flipped) for entry in report.kept] == [
        {"robot_eef_pose": 0, "action": 0},
        {"robot_eef_pose": 4, "action": 8},
        {"robot_eef_pose": 0, "action": 0},
    ]
    run(tmp_path / "in", tmp_path / "kept.zarr", quaternion_sign="keep")
    np.testing.assert_array_equal(ReplayBuffer.open(tmp_path / "kept.zarr")["action"][8:16, :7], recorded[1]["action"])


def test_gripper_command_rules(tmp_path: Path) -> None:
    arrays = recorded_arrays(12)
    write_trajectory(tmp_path / "in", n_steps=12, size=SIZE)
    report = run(tmp_path / "in", tmp_path / "measured.zarr", gripper_command="next-measured")
    commanded = ReplayBuffer.open(tmp_path / "measured.zarr")["action"][:, 7]
    np.testing.assert_array_equal(commanded, arrays["robot_gripper"][1:])
    assert report.kept[0].dropped_steps[0].why == "its gripper command would be beyond the end"
    run(tmp_path / "in", tmp_path / "lead.zarr", gripper_lead=3)
    commanded = ReplayBuffer.open(tmp_path / "lead.zarr")["action"][:, 7]
    np.testing.assert_array_equal(commanded, arrays["action_gripper"][3:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_error": "ignore"}, "on_error is 'ignore'; expected one of stop, skip"),
        ({"resolution": (0, 18)}, "expected a positive width and height"),
        ({"max_episodes": 0}, "max_episodes is 0"),
        ({"gripper_lead": -1}, "gripper_lead is -1"),
        ({"zarr_format": 4}, "zarr format 4 does not exist"),
        ({"shard": 8}, "they need zarr format 3"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        run(tmp_path / "in", tmp_path / "out.zarr", **settings)


def test_the_content_hash_does_not_depend_on_how_it_is_stored(tmp_path: Path, source: Path) -> None:
    hashes = {
        run(source, tmp_path / f"{i}.zarr", **settings).content_sha256
        for i, settings in enumerate(
            ({}, {"zarr_format": 3}, {"codec": image_codec("none")}, {"workers": 1}, {"zarr_format": 3, "shard": 16})
        )
    }
    assert len(hashes) == 1
    assert ReplayBuffer.open(tmp_path / "0.zarr").root.attrs["content_sha256"] in hashes
