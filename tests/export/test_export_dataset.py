"""Datasets and runs are exported as LeRobot sets and come back equal; a third-party checker accepts them."""

import json
import os
import runpy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot_factory import LeRobotSet, poses
from serve_factory import FakeEngine, ServerThread, observation_message, settings
from trajectory_factory import write_trajectory

from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.dataset.episode_metadata import EpisodeMetadata, episode_metadata
from diffusion_policy.dataset.errors import DatasetError
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.export.episodes import DatasetEpisodes
from diffusion_policy.export.errors import ExportError
from diffusion_policy.export.lerobot import export_lerobot
from diffusion_policy.export.statistics import PixelCounts, number_statistics
from diffusion_policy.export.zarr_zip import export_zarr_zip

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (extra: lerobot)")
SIZE = (64, 48)
MOTORS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]


def dataset(source: Path, output: Path, **options: Any) -> ReplayBuffer:
    convert(ConversionSettings(source, output, **{"resolution": SIZE, "workers": 1, **options}))
    return ReplayBuffer.open(output)


def cogact(folder: Path) -> ReplayBuffer:
    for episode, length in enumerate((12, 1, 8)):
        write_trajectory(folder / "in", episode, length, SIZE)
    return dataset(folder / "in", folder / "cogact.zarr")


def flagged(folder: Path) -> ReplayBuffer:
    driven = np.isin(np.arange(26), [13, 14, 15])
    extra = {"intervention": ("bool", [1], driven), "next.success": ("bool", [1], np.arange(26) == 25)}
    cameras = {"observation.images.front": SIZE, "observation.picture.wrist": SIZE}
    written = LeRobotSet(lengths=(12, 14), extra=extra, cameras=cameras).write(folder / "in")
    return dataset(written, folder / "flagged.zarr")


def joints(folder: Path) -> ReplayBuffer:
    values = np.concatenate([np.linspace(-90, 90, 12)[:, None].repeat(5, axis=1), 100 * poses(12)[:, 7:]], axis=1)
    state = values.astype(np.float32)
    recorded = LeRobotSet(lengths=(12,), state=state, action=state, names=[f"{motor}.pos" for motor in MOTORS])
    return dataset(
        recorded.write(folder / "in"), folder / "joints.zarr", mapping="joints_gripper_percent", resolution=(63, 49)
    )


def two_arms(folder: Path) -> ReplayBuffer:
    both = np.concatenate([poses(12), poses(12, seed=3)], axis=1)
    names = [f"{arm}.{name}" for arm in ("left", "right") for name in LeRobotSet().names or ()]
    written = LeRobotSet(lengths=(12,), state=both, action=both, names=names).write(folder / "in")
    return dataset(written, folder / "arms.zarr")


@pytest.mark.parametrize("made", [cogact, flagged, joints, two_arms], ids=lambda made: made.__name__)
def test_what_goes_out_comes_back_equal(tmp_path: Path, made: Callable[[Path], ReplayBuffer]) -> None:
    before = made(tmp_path)
    report = export_lerobot(DatasetEpisodes(Path(before.where)), tmp_path / "out", task="sort the parts")
    size = before[before.cameras[0]].shape[2:0:-1]
    after = dataset(tmp_path / "out", tmp_path / "again.zarr", quaternion_sign="keep", resolution=size)
    assert after.keys == before.keys
    np.testing.assert_array_equal(after.episode_ends, before.episode_ends)
    assert (after.label or {})["units"] == (before.label or {})["units"]
    for key in set(before.keys) - set(before.cameras) - {"timestamp"}:
        assert after.names(key) == before.names(key)
        np.testing.assert_array_equal(after.read(key), before.read(key), err_msg=key)
    for camera in before.cameras:
        error = np.abs(after[camera][:].astype(int) - before[camera][:].astype(int)).mean()
        assert error < 4, "the codec's loss"
        assert 25 < report.psnr_db[camera] < 99
    metadata = [[one.metadata for one in DatasetEpisodes(Path(buffer.where))] for buffer in (before, after)]
    assert [one.success for one in metadata[1]] == [one.success for one in metadata[0]]
    assert [one.interventions for one in metadata[1]] == [one.interventions for one in metadata[0]]
    assert all(one.tasks in (("sort the parts",), ("task 0",)) for one in metadata[1])


def test_tables_are_as_lerobot_reads_them(tmp_path: Path) -> None:
    flagged(tmp_path)
    export_lerobot(DatasetEpisodes(tmp_path / "flagged.zarr"), tmp_path / "out", robot="arm")
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 10, "arm")
    table = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    stored = {name for name, feature in info["features"].items() if feature["dtype"] != "video"}
    assert set(table.column_names) == stored, "columns and features agree one to one"
    assert table.column("index").to_pylist() == list(range(26))
    np.testing.assert_array_equal(
        table.column("timestamp").to_numpy(), (np.r_[0:12, 0:14] / 10).astype(np.float32), "never the recorded clock"
    )
    episodes = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["videos/observation.images.front/from_timestamp"] for row in episodes] == [0, 1.2]
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in episodes] == [(0, 12), (12, 26)]
    assert b'"index_columns": ["task"]' in pq.read_schema(tmp_path / "out/meta/tasks.parquet").metadata[b"pandas"]
    statistics = json.loads((tmp_path / "out/meta/stats.json").read_text())
    action = np.asarray(table.column("action").to_pylist())
    np.testing.assert_allclose(statistics["action"]["q10"], np.quantile(action, 0.1, axis=0))
    np.testing.assert_allclose(statistics["action"]["std"], action.std(axis=0))
    assert np.shape(statistics["observation.images.front"]["mean"]) == (3, 1, 1)
    assert set(statistics) == set(info["features"])


def test_pixel_statistics_are_those_of_the_pixels() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
    found = PixelCounts.sum([PixelCounts.of(frame) for frame in frames]).statistics()
    flat = number_statistics(frames.reshape(-1, 3) / 255)
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(np.ravel(found[name]), flat[name])
    np.testing.assert_allclose(np.ravel(found["q50"]), flat["q50"], atol=1 / 255)
    assert found["count"] == [5]


def test_a_run_goes_out_with_what_a_person_drove(tmp_path: Path) -> None:
    with ServerThread(FakeEngine(), settings(tmp_path / "runs")) as server, server.client() as client:
        for step in range(6):
            client.ask({**observation_message(step), "intervention": step in (2, 3)})
    (run,) = (tmp_path / "runs").glob("run_*")
    export = runpy.run_path("scripts/export_dataset.py")["main"]
    assert export([str(run), "--lerobot", str(tmp_path / "out"), "--task", "lift", "--fps", "10"]) == 0
    rows = pq.read_table(tmp_path / "out/data/chunk-000/file-000.parquet")
    assert rows.column("intervention").to_pylist() == [False, False, True, True, False, False]
    assert export([str(run), "--lerobot", str(tmp_path / "out"), "--task", "lift"]) == 2
    again = dataset(tmp_path / "out", tmp_path / "again.zarr")
    assert episode_metadata(again) == (EpisodeMetadata(("lift",), interventions=((2, 4),)),), "and comes back"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: {}, "episode 0 has no task, which LeRobot requires"),
        (lambda folder: (folder / "out").mkdir() or {"task": "x"}, "out exists; it is not replaced"),
    ],
    ids=["no task", "exists"],
)
def test_what_cannot_go_out_leaves_nothing(tmp_path: Path, change: Callable[[Path], dict[str, Any]], says: str) -> None:
    cogact(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    options = change(tmp_path)
    with pytest.raises(ExportError, match=says):
        export_lerobot(DatasetEpisodes(tmp_path / "cogact.zarr"), tmp_path / "out", **options)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "out") == before


def test_an_archive_is_read_in_place(tmp_path: Path) -> None:
    before = cogact(tmp_path)
    packed = export_zarr_zip(tmp_path / "cogact.zarr", tmp_path / "out.zarr.zip")
    after = ReplayBuffer.open(packed)
    for key in before.keys:
        np.testing.assert_array_equal(after[key][:], before[key][:])
    with pytest.raises(ExportError, match="exists"):
        export_zarr_zip(tmp_path / "cogact.zarr", packed)
    next((tmp_path / "cogact.zarr" / "data" / "action").glob("0*")).unlink()
    with pytest.raises(DatasetError):
        export_zarr_zip(tmp_path / "cogact.zarr", tmp_path / "again.zarr.zip")
    assert not (tmp_path / "again.zarr.zip").exists()


@pytest.mark.parametrize("made", [flagged, joints, two_arms], ids=lambda made: made.__name__)
def test_another_checker_accepts_it(tmp_path: Path, made: Callable[[Path], ReplayBuffer]) -> None:
    doctor = shutil.which("lerobot-doctor")
    if doctor is None:
        pytest.skip("lerobot-doctor is not on the path (pip install lerobot-doctor, in an environment of its own)")
    before = made(tmp_path)
    export_lerobot(DatasetEpisodes(Path(before.where)), tmp_path / "out", task="sort the parts")
    printed = subprocess.run(
        [doctor, "check", str(tmp_path / "out")], capture_output=True, text=True, check=False
    ).stdout
    assert "Summary:" in printed
    assert "FAIL" not in printed, printed
    for check in ("Metadata & Format Compliance", "Temporal Consistency", "Video Integrity", "Feature Consistency"):
        assert f"[PASS] {check}" in printed


# What LeRobot itself returns for each step, as an archive of arrays.
READ_BY_LEROBOT = """
import sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
dataset = LeRobotDataset("local/set", root=sys.argv[1])
steps = [dataset[i] for i in range(len(dataset))]
np.savez(sys.argv[2], **{key: np.stack([np.asarray(step[key]) for step in steps]) for key in steps[0]})
"""


def test_lerobot_itself_reads_the_same(tmp_path: Path) -> None:
    python = os.environ.get("LEROBOT_PYTHON")
    if not python:
        pytest.skip("LEROBOT_PYTHON names no interpreter (one with lerobot 0.4 or newer, of another environment)")
    before = flagged(tmp_path)
    export_lerobot(DatasetEpisodes(Path(before.where)), tmp_path / "out", task="sort the parts")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    words = [python, "-c", READ_BY_LEROBOT, str(tmp_path / "out"), str(tmp_path / "read.npz")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    read = np.load(tmp_path / "read.npz")
    np.testing.assert_array_equal(read["action"], before.read("action"))
    assert np.flatnonzero(read["intervention"]).tolist() == [13, 14, 15]
    assert np.flatnonzero(read["next.success"]).tolist() == [25]
    assert read["episode_index"].tolist() == [0] * 12 + [1] * 14
    np.testing.assert_array_equal(read["timestamp"], (np.r_[0:12, 0:14] / 10).astype(np.float32))
    for camera in before.cameras:
        shown = np.moveaxis(read[f"observation.images.{camera}"], 1, -1) * 255
        assert np.abs(shown - before[camera][:]).mean() < 4, "the codec's loss"
