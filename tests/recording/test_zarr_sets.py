"""Foreign zarr sets become what training reads: UMI's, the public PushT set, this robot's older recordings."""

import pickle
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import tiny_run
import yaml
import zarr_factory
from dataset_factory import pack
from lerobot_factory import decode
from scipy.spatial.transform import Rotation
from trajectory_factory import write_trajectory
from zarr_factory import HZ, LENGTHS, paths, quaternions

from diffusion_policy.convert import ConversionReport, ConversionSettings, convert
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.diagnose.inspection import inspect_conversion
from diffusion_policy.recording import open_recordings
from diffusion_policy.recording.errors import RecordingError
from diffusion_policy.recording.mapping import MappingError, read_mapping, ready_mappings

SIZE = (24, 20)
ENDS = np.cumsum(LENGTHS)
# Last rows of episodes, which have no command if the command is the next measurement.
LAST = ENDS - 1


def run(source: Path, output: Path, mapping: str | Path, **options: Any) -> ConversionReport:
    chosen = {"resolution": SIZE, "workers": 1, **options}
    return convert(ConversionSettings(source, output, mapping=str(mapping), **chosen))


def numbers(path: Path) -> dict[str, np.ndarray]:
    buffer = ReplayBuffer.open(path)
    return {key: buffer.read(key) for key in buffer.keys if key not in buffer.cameras}


def frames_of(source: Path, mapping: str) -> np.ndarray:
    """(N, H, W, 3) frames of the only camera, as received by the converter."""
    found = open_recordings(source, mapping=mapping)
    episodes = [found.open(path) for path in found.find()]
    pieces = (piece for one in episodes for piece in one.frames(range(one.n_steps), "image", 4))
    return np.stack([picture.content for piece in pieces for picture in piece.pictures()])


@pytest.fixture(scope="session")
def umi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zarr_factory.write_umi(tmp_path_factory.mktemp("umi") / "cup.zarr.zip")


@pytest.fixture(scope="session")
def pusht(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zarr_factory.write_pusht(tmp_path_factory.mktemp("pusht") / "pusht.zarr")


@pytest.fixture(scope="session")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("av", reason="PyAV is not installed (extra: lerobot)")
    return zarr_factory.write_collected(tmp_path_factory.mktemp("collected") / "set")


def test_umi_sets_become_poses_and_the_next_measurement_is_the_command(umi: Path, tmp_path: Path) -> None:
    report = run(umi, tmp_path / "out.zarr", "umi_zarr")
    found = numbers(tmp_path / "out.zarr")
    position, turn, width = paths()
    pose = np.concatenate([position.astype(np.float32), quaternions(turn.astype(np.float32))], axis=1)
    gripper = width.astype(np.float32) / 0.08
    now = np.setdiff1d(np.arange(ENDS[-1]), LAST)
    np.testing.assert_allclose(same_sign(found["robot_eef_pose"], pose[now]), pose[now], atol=1e-6)
    np.testing.assert_allclose(found["robot_gripper_state"], gripper[now], atol=1e-6)
    commands = np.concatenate([pose, gripper], axis=1)[now + 1]
    np.testing.assert_allclose(same_sign(found["action"], commands), commands, atol=1e-6)
    buffer = ReplayBuffer.open(tmp_path / "out.zarr")
    np.testing.assert_array_equal(buffer.episode_ends, np.cumsum(np.array(LENGTHS) - 1))
    frames = zarr_factory.pictures(ENDS[-1])[now]
    decoded = [imagecodecs.jpegxl_decode(imagecodecs.jpegxl_encode(frame, level=99)) for frame in frames]
    np.testing.assert_array_equal(buffer["image"][:], np.stack(decoded))
    np.testing.assert_allclose(found["timestamp"][:3], np.arange(3) / 59.94)
    assert set(report.account["left_out"]) == {"robot0_demo_start_pose", "robot0_demo_end_pose"}
    totals = report.totals()
    assert (totals["steps_recorded"], totals["steps_kept"]) == (sum(LENGTHS), sum(LENGTHS) - len(LENGTHS))
    assert [[(run.start, run.end) for run in entry.dropped_steps] for entry in report.kept] == [
        [(n - 1, n)] for n in LENGTHS
    ]
    assert (totals["frames_recorded"], totals["frames_kept"]) == (sum(LENGTHS), sum(LENGTHS) - len(LENGTHS))
    assert all("no command" in entry.notes[0] for entry in report.kept)


def same_sign(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Flips each quaternion to the wanted one's hemisphere."""
    sign = np.sign((found[:, 3:7] * wanted[:, 3:7]).sum(axis=1, keepdims=True))
    return np.concatenate([found[:, :3], sign * found[:, 3:7], found[:, 7:]], axis=1)


def test_the_public_pusht_set_keeps_its_numbers(pusht: Path, tmp_path: Path) -> None:
    run(pusht, tmp_path / "out.zarr", "pusht_zarr", resolution=(12, 10))
    arrays, found = zarr_factory.pusht_arrays(), numbers(tmp_path / "out.zarr")
    np.testing.assert_array_equal(found["action"], arrays["action"])
    np.testing.assert_array_equal(found["robot_state"], arrays["state"])
    buffer = ReplayBuffer.open(tmp_path / "out.zarr")
    assert buffer.names("action") == ("target_x", "target_y")
    assert buffer.semantics is not None
    assert buffer.semantics["units"] == ["px", "px"]
    small = [cv2.resize(frame, (12, 10), interpolation=cv2.INTER_AREA) for frame in arrays["img"].astype(np.uint8)]
    np.testing.assert_array_equal(buffer["image"][:], np.stack(small))
    assert inspect_conversion(tmp_path / "out.zarr").exit_status == 0, "numbers with names of their own are no fault"


COLORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uint8": lambda frames: frames,
    "0..255": lambda frames: frames.astype(np.float32),
    "0..1": lambda frames: frames.astype(np.float32) / 255,
    "0..1, float64": lambda frames: frames / 255,
    "channels first": lambda frames: np.moveaxis(frames, -1, 1),
    "0..1, channels first": lambda frames: np.moveaxis(frames, -1, 1).astype(np.float32) / 255,
}


@pytest.mark.parametrize("form", COLORS)
def test_colors_of_every_form_are_the_same_frames(form: str, tmp_path: Path) -> None:
    arrays = zarr_factory.pusht_arrays()
    arrays["img"] = COLORS[form](zarr_factory.pictures(ENDS[-1]))
    found = frames_of(zarr_factory.write(tmp_path / "in.zarr", arrays), "pusht_zarr")
    np.testing.assert_array_equal(found, zarr_factory.pictures(ENDS[-1]))


BAD_COLORS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "-1..1": (lambda frames: frames.astype(np.float32) / 127.5 - 1, "from -1 to .* expected colors in 0..255 or 0..1"),
    "16 bits": (lambda frames: frames.astype(np.uint16), "dtype uint16; expected uint8"),
    "NaN": (lambda frames: np.where(frames == 5, np.nan, frames).astype(np.float32), "numbers from nan to nan"),
    "beyond, later": (
        lambda frames: np.concatenate([frames[:1] / 255, frames[1:].astype(float)]).astype(np.float32),
        "expected 0 to 1, as in the first frames",
    ),
    "one channel": (lambda frames: frames[..., :1], "no color camera"),
    "no frames": (lambda frames: frames[:, 0, 0], "no color camera"),
}


@pytest.mark.parametrize("form", BAD_COLORS)
def test_other_numbers_are_not_colors(form: str, tmp_path: Path) -> None:
    change, message = BAD_COLORS[form]
    arrays = zarr_factory.pusht_arrays((7,))
    arrays["img"] = change(zarr_factory.pictures(7))
    source = zarr_factory.write(tmp_path / "in.zarr", arrays, (7,))
    with pytest.raises(RecordingError, match=message):
        frames_of(source, "pusht_zarr")


@pytest.mark.parametrize("frames_a_step", [1, 3])
def test_older_recordings_become_quaternion_and_gripper(collected: Path, tmp_path: Path, frames_a_step: int) -> None:
    """The robot's collector writes one frame per step, whatever the video's rate; others write at the camera's rate."""
    source = collected
    if frames_a_step > 1:
        source = zarr_factory.write_collected(tmp_path / "in", fps=HZ * frames_a_step, frames_a_step=frames_a_step)
    report = run(source, tmp_path / "out.zarr", "rotation_vector_width", resolution=(64, 48))
    found = numbers(tmp_path / "out.zarr")
    position, turn, width = paths()
    wanted = np.concatenate([position, quaternions(turn), (width - 0.03) / 0.05], axis=1)
    np.testing.assert_allclose(same_sign(found["robot_eef_pose"], wanted), wanted[:, :7], atol=1e-6)
    np.testing.assert_allclose(found["robot_gripper_state"], wanted[:, 7:], atol=1e-6)
    np.testing.assert_allclose(same_sign(found["action"][:-1], wanted[1:]), wanted[1:], atol=1e-6)
    videos = [decode(source / "videos" / str(episode) / "0.mp4") for episode in range(len(LENGTHS))]
    shown = [frame for video in videos for frame in video[::frames_a_step]]
    np.testing.assert_array_equal(ReplayBuffer.open(tmp_path / "out.zarr")["image"][:], np.stack(shown))
    assert ("nearest in time" in str([entry.notes for entry in report.kept])) == (frames_a_step > 1)


def test_a_video_with_fewer_frames_than_steps_is_refused(collected: Path, tmp_path: Path) -> None:
    """There is no way to tell which step shows which frame."""
    source = zarr_factory.write_collected(tmp_path / "in")
    short = zarr_factory.write_collected(tmp_path / "short", tuple(n - 2 for n in LENGTHS))
    (short / "videos" / "1" / "0.mp4").replace(source / "videos" / "1" / "0.mp4")
    with pytest.raises(RecordingError, match=r"videos/1/0.mp4: no frame at .* the time of step"):
        run(source, tmp_path / "out.zarr", "rotation_vector_width")
    report = run(source, tmp_path / "out.zarr", "rotation_vector_width", on_error="skip")
    assert [entry.name for entry in report.dropped] == ["episode_000001"]


# ---- the mapping that is missing ----

ANSWERS = {"unit": "m", "as": "rotation_vector", "scale": "meters:0.03:0.08", "hz": 10}


def answered(content: Any, key: str = "") -> Any:
    """The printed mapping with an answer for each question."""
    if isinstance(content, dict):
        return {name: answered(value, name) for name, value in content.items()}
    return ANSWERS[key] if content == "?" else content


@pytest.mark.parametrize("name", ["umi", "pusht", "collected"])
def test_without_a_mapping_the_one_to_fill_in_is_printed(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(name)
    with pytest.raises(MappingError, match="nothing defines its arrays") as caught:
        convert(ConversionSettings(source, tmp_path / "out.zarr"))
    message, _, printed = str(caught.value).partition("\n\n")
    fitting = {"umi": "umi_zarr", "pusht": "pusht_zarr", "collected": "rotation_vector_width"}[name]
    assert f"({fitting} reads columns that are here)" in message
    with pytest.raises(MappingError, match=r"is '\?'"):
        run(source, tmp_path / "out.zarr", as_file(tmp_path, yaml.safe_load(printed)))
    report = run(source, tmp_path / "out.zarr", as_file(tmp_path, answered(yaml.safe_load(printed))))
    assert len(report.kept) == len(LENGTHS)


def as_file(folder: Path, content: Any) -> Path:
    file = folder / "mapping.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_what_training_reads_as_it_is_is_not_converted(tmp_path: Path) -> None:
    dataset = tiny_run.write_dataset(tmp_path / "set.zarr", (5,))
    with pytest.raises(RecordingError, match="already in the layout that training reads"):
        convert(ConversionSettings(dataset, tmp_path / "out.zarr"))


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "no such array": (
        {"action": {"other": {"feature": "actions"}}},
        "no feature 'actions'; there are action, keypoint",
    ),
    "no such column": ({"action": {"other": {"feature": "action", "columns": [2]}}}, "action has no column 2"),
    "a picture": ({"action": {"other": {"feature": "img"}}}, "no feature 'img'"),
    "no such camera": ({"cameras": {"image": "image"}}, "camera 'image' is not a color camera; there are img"),
    "lead": ({"lead": -1}, "lead is -1; expected steps, 0 to 100"),
    "rate": ({"hz": 0}, "hz is 0; expected steps per second"),
    "longer than an episode": ({"lead": 7}, "7 steps; with commands 7 steps ahead, at least 8"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_mapping_that_does_not_fit_is_refused(pusht: Path, tmp_path: Path, case: str) -> None:
    entries, message = UNFIT[case]
    content = {**yaml.safe_load(yaml.safe_dump(dict(read_mapping("pusht_zarr").content))), **entries}
    with pytest.raises((MappingError, RecordingError), match=message):
        run(pusht, tmp_path / "out.zarr", as_file(tmp_path, content))
    assert not (tmp_path / "out.zarr").exists()


def test_a_set_without_times_asks_for_its_rate(pusht: Path, tmp_path: Path) -> None:
    content = {key: value for key, value in read_mapping("pusht_zarr").content.items() if key != "hz"}
    mapping = as_file(tmp_path, content)
    with pytest.raises(RecordingError, match=r"no time stamps .* --timestamps rate:10, or hz: 10 in the mapping"):
        run(pusht, tmp_path / "out.zarr", mapping)
    run(pusht, tmp_path / "out.zarr", mapping, timestamps="rate:20")
    np.testing.assert_allclose(numbers(tmp_path / "out.zarr")["timestamp"][:3], [0, 0.05, 0.1])


def test_every_ready_mapping_reads() -> None:
    assert {"umi_zarr", "pusht_zarr", "rotation_vector_width", "euler_zyx_width"} <= set(ready_mappings())
    for name in ready_mappings():
        assert read_mapping(name).action


# ---- stages that know no format ----


def test_what_is_appended_is_what_is_converted_at_once(umi: Path, tmp_path: Path) -> None:
    whole = run(umi, tmp_path / "whole.zarr", "umi_zarr")
    run(umi, tmp_path / "out.zarr", "umi_zarr", max_episodes=2)
    again = run(umi, tmp_path / "out.zarr", "umi_zarr", append=True)
    assert again.content_sha256 == whole.content_sha256
    assert run(umi, tmp_path / "out.zarr", "umi_zarr", resume=True).content_sha256 == whole.content_sha256


@pytest.mark.parametrize("top", ["", "pusht_cchi_v7_replay.zarr", "pusht/pusht_cchi_v7_replay.zarr"])
def test_a_zip_reads_as_its_folder(pusht: Path, tmp_path: Path, top: str) -> None:
    """The public archive holds its zarr two folders deep."""
    archive = pack(pusht, tmp_path / "pusht.zip", top=top)
    packed, folder = (run(one, tmp_path / f"{one.suffix}.zarr", "pusht_zarr") for one in (archive, pusht))
    assert packed.content_sha256 == folder.content_sha256
    assert sorted(path.name for path in tmp_path.glob("pusht*")) == ["pusht.zip"], "nothing is unpacked"


@pytest.fixture(scope="module")
def main(repository: Path) -> Callable[[list[str]], int]:
    found: Callable[[list[str]], int] = runpy.run_path(str(repository / "scripts" / "convert_dataset.py"))["main"]
    return found


def test_a_dry_run_says_what_would_be_and_writes_nothing(
    main: Callable[[list[str]], int], umi: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--input", str(umi), "--output", str(tmp_path / "out.zarr"), "--mapping", "umi_zarr", "--resolution"]
    assert main([*words, "12", "10", "--dry-run"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "3 of 3 episodes" in output
    assert "data/action: x, y, z, qx, qy, qz, qw, gripper" in output
    assert "data/image: 12x10, from 24x20" in output
    assert "not carried over: robot0_demo_end_pose" in output
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "12", "10"]) == 0
    assert ReplayBuffer.open(tmp_path / "out.zarr").n_episodes == len(LENGTHS)


def test_the_script_refuses_with_the_mapping(
    main: Callable[[list[str]], int], umi: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--input", str(umi), "--output", str(tmp_path / "out.zarr")]) == 2
    assert "rotation: {feature: robot0_eef_rot_axis_angle" in capsys.readouterr().err


# ---- older folders of this robot ----


def older(arrays: dict[str, Any], form: str) -> dict[str, Any]:
    """The arrays of a recording as the older collector had them."""
    names = {"robot_eef_pose": "robot_gripper", "action": "action_gripper"}
    poses = {}
    for key, gripper in names.items():
        rows, width = arrays.pop(key), np.where(arrays.pop(gripper) > 0, 0.08, 0.03)
        turn = Rotation.from_quat(rows[:, 3:])
        rotation = turn.as_rotvec() if form == "rotvec" else turn.as_euler("ZYX")
        poses[key] = (np.concatenate([rows[:, :3], rotation], axis=1), width)
    if form == "rotvec":
        return {**arrays, **{key: np.concatenate([pose, width[:, None]], 1) for key, (pose, width) in poses.items()}}
    (obs, obs_width), (action, action_width) = poses.values()
    return {
        **arrays, "robot_obs_pose": obs, "robot_obs_gripper": obs_width, "robot_action_pose": action,
        "robot_action_gripper": action_width, "episode_id": 3, "joycon_pose": np.zeros((len(obs), 6)),
    }  # fmt: skip


def write_older(folder: Path, number: int, form: str) -> None:
    episode = write_trajectory(folder, number, n_steps=8, size=(64, 36))
    file = episode / "data.pkl"
    file.write_bytes(pickle.dumps(older(pickle.loads(file.read_bytes()), form)))


@pytest.mark.parametrize(("form", "mapping"), [("rotvec", "rotation_vector_width"), ("euler", "euler_zyx_width")])
def test_older_folders_convert_to_what_newer_ones_do(tmp_path: Path, form: str, mapping: str) -> None:
    for number in range(2):
        write_trajectory(tmp_path / "new", number, n_steps=8, size=(64, 36))
        write_older(tmp_path / "old", number, form)
    convert(ConversionSettings(tmp_path / "new", tmp_path / "new.zarr", resolution=SIZE, workers=1))
    report = run(tmp_path / "old", tmp_path / "old.zarr", mapping)
    new, old = numbers(tmp_path / "new.zarr"), numbers(tmp_path / "old.zarr")
    assert new.keys() == old.keys()
    for key in new:
        found = same_sign(old[key], new[key]) if key in ("action", "robot_eef_pose") else old[key]
        np.testing.assert_allclose(found, new[key], atol=2e-6, err_msg=key)
    frames = [ReplayBuffer.open(tmp_path / f"{name}.zarr")["image"][:] for name in ("new", "old")]
    np.testing.assert_array_equal(*frames)
    assert ("joycon_pose" in report.account["left_out"]) == (form == "euler")


def test_an_older_folder_with_another_mapping_is_named(tmp_path: Path) -> None:
    write_older(tmp_path / "old", 0, "euler")
    with pytest.raises(MappingError, match="there is no feature 'robot_eef_pose'; there are robot_obs_pose"):
        run(tmp_path / "old", tmp_path / "out.zarr", "rotation_vector_width")
