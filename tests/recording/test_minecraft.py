"""Recordings of Minecraft through the converter: frames as VPT sees them, complete actions, and no silent losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.convert.settings import ConversionError
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.minecraft.actions import VPT_ACTION
from diffusion_policy.minecraft.contractor import read_lines
from diffusion_policy.minecraft.recorder import record_grove
from diffusion_policy.recording import open_recordings
from diffusion_policy.recording.errors import RecordingError
from diffusion_policy.recording.mapping import MappingError
from diffusion_policy.recording.minecraft import game_frame


@pytest.fixture(scope="module")
def grove(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes of two tasks."""
    folder = tmp_path_factory.mktemp("grove")
    [*record_grove(folder, 2, seed=1, task="stone", variation=1.0), *record_grove(folder, 1, seed=8, task="wool")]
    return folder


def _settings(source: Path, output: Path, **changes: Any) -> ConversionSettings:
    return ConversionSettings(source, output, **{"resolution": (128, 128), "workers": 1, **changes})


def _played(file: Path) -> Any:
    with file.open() as lines:
        return read_lines(lines, file.name)


def _decoded(file: Path) -> list[np.ndarray]:
    with av.open(str(file)) as container:
        return [game_frame(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def _rows(dataset: ReplayBuffer, episode: int, key: str) -> np.ndarray:
    start, end = [0, *dataset.episode_ends][episode : episode + 2]
    return np.asarray(dataset[key][start:end])


def test_frames_and_actions_are_those_of_the_recording(grove: Path, tmp_path: Path):
    report = convert(_settings(grove, tmp_path / "a.zarr"))
    dataset = ReplayBuffer.open(tmp_path / "a.zarr")
    order = open_recordings(grove).find()
    assert [entry.name for entry in report.episodes] == [path.name for path in order]
    for episode, path in enumerate(order):
        stem = next(file for file in grove.glob("*.jsonl") if path.name.startswith(file.stem))
        played = _played(stem)
        np.testing.assert_array_equal(_rows(dataset, episode, "action"), played.action)
        frames = _rows(dataset, episode, "pov")
        assert frames.shape[1:] == (128, 128, 3)
        np.testing.assert_array_equal(frames, _decoded(stem.with_suffix(".mp4")))
        np.testing.assert_allclose(np.diff(_rows(dataset, episode, "timestamp")), 0.05)
    assert any("ticks have no action: kept" in note for entry in report.episodes for note in entry.notes)


def test_ticks_without_action_are_left_out_with_their_frames_where_asked_for(grove: Path, tmp_path: Path):
    convert(_settings(grove, tmp_path / "a.zarr", null_actions="drop"))
    dataset = ReplayBuffer.open(tmp_path / "a.zarr")
    dropped = 0
    for episode, path in enumerate(open_recordings(grove).find()):
        stem = next(file for file in grove.glob("*.jsonl") if path.name.startswith(file.stem))
        played = _played(stem)
        dropped += int(played.null.sum())
        np.testing.assert_array_equal(_rows(dataset, episode, "action"), played.action[~played.null])
        frames = np.stack(_decoded(stem.with_suffix(".mp4")))
        np.testing.assert_array_equal(_rows(dataset, episode, "pov"), frames[~played.null])
    assert dropped > 3


def test_a_folder_of_frames_is_a_recording_too(grove: Path, tmp_path: Path):
    stem = next(grove.glob("wool*.jsonl"))
    folder = tmp_path / "frames_only"
    (folder / stem.stem / "frames").mkdir(parents=True)
    (folder / stem.name).write_text(stem.read_text())
    with av.open(str(stem.with_suffix(".mp4"))) as container:
        for number, frame in enumerate(container.decode(video=0)):
            cv2.imwrite(
                str(folder / stem.stem / "frames" / f"{number:05d}.png"),
                cv2.cvtColor(frame.to_ndarray(format="rgb24"), cv2.COLOR_RGB2BGR),
            )
    convert(_settings(folder, tmp_path / "a.zarr"))
    dataset = ReplayBuffer.open(tmp_path / "a.zarr")
    np.testing.assert_array_equal(np.asarray(dataset["pov"]), _decoded(stem.with_suffix(".mp4")))


def test_lines_without_a_frame_and_frames_without_a_line_are_reported(grove: Path, tmp_path: Path):
    stem = next(grove.glob("wool*.jsonl"))
    lines = stem.read_text().splitlines()
    for name, kept in (("more_lines_1", [*lines, *lines[-2:]]), ("fewer_lines_2", lines[:-3])):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.jsonl").write_text("\n".join(kept))
        (tmp_path / "in" / f"{name}.mp4").write_bytes(stem.with_suffix(".mp4").read_bytes())
    (tmp_path / "in" / "lonely.mp4").write_bytes(stem.with_suffix(".mp4").read_bytes())
    report = convert(_settings(tmp_path / "in", tmp_path / "a.zarr"))
    more, fewer = report.episodes
    assert (more.steps, more.n_kept) == (len(lines) + 2, len(lines))
    assert fewer.n_kept == len(lines) - 3
    assert "3 frames after the last line are not used" in fewer.notes
    assert report.account["left_out"] == {"lonely.mp4": "has no .jsonl next to it"}


def test_the_cursor_is_drawn_where_a_window_is_open():
    frame = np.zeros((360, 640, 3), np.uint8)
    shown = game_frame(frame, (640.0, 360.0))
    rows, columns = np.nonzero(shown.max(axis=2) > 60)
    assert not game_frame(frame).any()
    assert 63 <= columns.min() <= columns.max() <= 68  # at the middle of the screen, of 640 pixels 10 wide
    assert 63 <= rows.min() <= rows.max() <= 70


def test_another_size_is_refused_with_the_flag(grove: Path, tmp_path: Path):
    with pytest.raises(ConversionError, match="add --resolution 128 128"):
        convert(_settings(grove, tmp_path / "a.zarr", resolution=(320, 180)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", [{"gripper_scale": "percent"}, {"timestamps": "milliseconds"}, {"mapping": "umi"}])
def test_settings_of_robots_are_refused(grove: Path, setting: dict[str, str]):
    with pytest.raises(MappingError, match="omit --"):
        open_recordings(grove, **setting)


@pytest.mark.parametrize("settings", [{}, {"mapping": "umi_zarr"}, {"null_actions": "drop"}], ids=str)
def test_a_missing_input_is_named(tmp_path: Path, settings: dict[str, Any]):
    with pytest.raises(RecordingError, match=r"absent\.zarr\.zip: does not exist"):
        open_recordings(tmp_path / "absent.zarr.zip", **settings)


def test_null_actions_are_a_setting_of_minecraft_alone(tmp_path: Path):
    with pytest.raises(RecordingError, match="--null-actions is for recordings of Minecraft"):
        open_recordings(tmp_path, null_actions="drop")


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda stem: stem.with_suffix(".mp4").write_bytes(b"\0" * 500), "cannot be decoded"),
        (lambda stem: stem.with_suffix(".jsonl").write_text("{}\n"), "mouse is None"),
        (lambda stem: stem.with_suffix(".jsonl").write_text(""), "is empty"),
        (lambda stem: stem.with_suffix(".jsonl").write_text("[" * 5000), "is not JSON"),
        (lambda stem: _cut(stem.with_suffix(".mp4")), "cannot be decoded"),
    ],
)
def test_damaged_files_are_refused_by_name_and_nothing_is_written(grove: Path, tmp_path: Path, harm: Any, found: str):
    stem = next(grove.glob("wool*.jsonl")).with_suffix("")
    for suffix in (".mp4", ".jsonl"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"a_1{suffix}").write_bytes(stem.with_suffix(suffix).read_bytes())
    harm(tmp_path / "in" / "a_1")
    with pytest.raises(RecordingError, match=found) as error:
        convert(_settings(tmp_path / "in", tmp_path / "a.zarr"))
    assert "a_1" in str(error.value)
    assert not (tmp_path / "a.zarr").exists()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_names_that_end_in_the_same_time_are_distinguished(grove: Path, tmp_path: Path):
    stem = next(grove.glob("wool*.jsonl")).with_suffix("")
    for name in ("cheeky-20220421-092639", "player-20220422-092639"):
        for suffix in (".mp4", ".jsonl"):
            (tmp_path / f"{name}{suffix}").write_bytes(stem.with_suffix(suffix).read_bytes())
    names = [path.name for path in open_recordings(tmp_path).find()]
    assert names == ["cheeky-20220421-092639_0000", "player-20220422-092639_0001"]
    assert open_recordings(tmp_path).open(tmp_path / names[0]).action.shape[1] == len(VPT_ACTION)
    assert json.dumps(open_recordings(tmp_path).account)
