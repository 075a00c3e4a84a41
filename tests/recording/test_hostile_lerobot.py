"""LeRobot datasets that are truncated, damaged or malicious: one error that names file and column, and no crash."""

import json
import resource
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from lerobot_factory import LeRobotSet, decode, encode, poses

from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.recording.lerobot import tables

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: lerobot)")
import pyarrow.parquet as pq  # noqa: E402

Harm = Callable[[Path], None]
# Memory that refusing one may take, bytes and kilobytes.
DISK, MEMORY_KB = 1 << 20, 400_000
# Limits of the reader, reduced so that the files that break them are small.
MOST_ROWS, MOST_TEXT, MOST_PICTURES = 100_000, 1 << 20, 4 << 20


def info(**entries: Any) -> Harm:
    """Replaces entries of meta/info.json."""

    def harm(root: Path) -> None:
        file = root / "meta" / "info.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))

    return harm


def feature(name: str, **entries: Any) -> Harm:
    """Replaces entries of a feature."""

    def harm(root: Path) -> None:
        file = root / "meta" / "info.json"
        found = json.loads(file.read_text())
        found["features"].setdefault(name, {}).update(entries)
        file.write_text(json.dumps(found))

    return harm


def content(pattern: str, change: Callable[[bytes], bytes]) -> Harm:
    """Changes the bytes of the first file of a name."""

    def harm(root: Path) -> None:
        file = next(root.rglob(pattern))
        file.write_bytes(change(file.read_bytes()))

    return harm


def removed(pattern: str) -> Harm:
    """Removes the first file of a name."""
    return lambda root: next(root.rglob(pattern)).unlink()


def column(name: str, change: Callable[[Any], Any], table: str = "data/chunk-000/file-000.parquet") -> Harm:
    """Replaces a column of a table; None removes it."""

    def harm(root: Path) -> None:
        file = root / table
        found = pq.read_table(file)
        changed = change(found.column(name).to_pylist())
        found = found.drop_columns([name])
        pq.write_table(found if changed is None else found.append_column(name, changed), file, compression="zstd")

    return harm


EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def bomb(root: Path) -> None:
    """A table of a few kB that claims more rows than are read."""
    part = pa.table({name: pa.array(np.zeros(MOST_ROWS + 1, np.int64)) for name in ("episode_index", "frame_index")})
    pq.write_table(part, root / "data/chunk-000/file-000.parquet", compression="zstd")


def texts(root: Path) -> None:
    """A table of tasks whose rows all refer to one long text."""
    many = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), pa.array(["a" * (MOST_TEXT // 4)]))
    pq.write_table(pa.table({"task_index": list(range(400)), "task": many}), root / "meta" / "tasks.parquet")


def huge_picture(root: Path) -> None:
    """A PNG in a row that claims 100,000 x 100,000 pixels."""
    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    data = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    change = column("picture", lambda rows: pa.array([{"bytes": data, "path": ""}] * len(rows)))
    change(root)


def endless_pictures(rows: list[Any]) -> Any:
    """Pictures of zeros, a few bytes in the file, that every row refers to."""
    zeros = pa.DictionaryArray.from_arrays(pa.array([0] * len(rows), pa.int32()), pa.array([bytes(2 * MOST_PICTURES)]))
    return pa.StructArray.from_arrays([zeros, pa.array([""] * len(rows))], names=["bytes", "path"])


def endless_numbers(rows: list[Any]) -> Any:
    """A row of millions of zeros."""
    ends = [0, 8_000_000, *range(8_000_008, 8_000_000 + 8 * len(rows), 8)]
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(np.zeros(ends[-1], np.float32)))


def playlist(root: Path) -> None:
    """In place of a video, a list of files for FFmpeg to read."""
    next(root.rglob("*.mp4")).write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")


def smaller_halfway(root: Path) -> None:
    """A video whose frames become smaller."""
    file = next(root.rglob("*.mp4"))
    frames = decode(file)
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in frames[:6]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def damaged_inside(data: bytes) -> bytes:
    """Zeros among the compressed frames."""
    at = data.index(b"mdat") + len(data) // 3
    return data[:at] + bytes(1200) + data[at + 1200 :]


def lists(rows: list[Any]) -> Any:
    return pa.array([row[:5] for row in rows], pa.list_(pa.float32()))


HARMS: list[tuple[str, Harm, str]] = [
    ("no object", content("info.json", lambda data: b"[1]"), r"info.json: holds a list; expected an object"),
    ("no JSON", content("info.json", lambda data: data[:-40]), r"info.json: not JSON"),
    ("deep JSON", content("info.json", lambda data: b"[" * 200_000), r"info.json: not JSON"),
    ("another version", info(codebase_version="v9.9"), r"info.json: codebase_version is 'v9.9'"),
    ("no rate", info(fps=0), r"info.json: fps is 0"),
    ("rate as text", info(fps="10"), r"info.json: fps is '10'"),
    ("absurd episodes", info(total_episodes=10**30), r"info.json: total_episodes is 10+; expected a whole number"),
    (
        "more frames than there are",
        info(total_frames=10**8),
        r"info.json: total_frames is 100000000, but the tables .* 15",
    ),
    (
        "leaves the folder",
        info(data_path="../../{chunk_index}/{file_index}.parquet"),
        r"data_path .* leaves the dataset",
    ),
    (
        "absolute path",
        info(video_path="/etc/{video_key}{chunk_index}{file_index}"),
        r"video_path .* leaves the dataset",
    ),
    ("attribute in a template", info(data_path="{chunk_index.__class__}"), r"data_path .* its field .* is unknown"),
    ("endless padding", info(data_path="{chunk_index:0999999999d}"), r"data_path .* its field 'chunk_index'"),
    ("camera that leaves", feature("../../evil", dtype="video", shape=[4, 4, 3]), r"a feature is called '../../evil'"),
    ("absurd width", feature("action", shape=[10**12]), r"feature 'action' has 1000000000000 numbers per step"),
    ("negative shape", feature("action", shape=[-8]), r"feature 'action' has shape \[-8\]"),
    ("no dtype", feature("action", dtype=7), r"feature 'action' has no dtype"),
    (
        "no parquet",
        content("file-000.parquet", lambda data: b"PAR1" + bytes(200)),
        r"file-000.parquet: cannot be read as",
    ),
    (
        "cut parquet",
        content("data/**/*.parquet", lambda data: data[: len(data) // 2]),
        r"file-000.parquet: cannot be read",
    ),
    ("damaged parquet", content("data/**/*.parquet", lambda d: d[:60] + bytes(400) + d[460:]), r"file-000.parquet: "),
    ("rows without end", bomb, r"file-000.parquet: claims 100001 rows; at most"),
    ("texts without end", texts, r"tasks.parquet: unpacks to more than \d+ bytes of text"),
    ("no rows", removed("data/**/*.parquet"), r"file-000.parquet: cannot be read .No such file"),
    ("no column", column("action", lambda rows: None), r"file-000.parquet: has no column 'action'"),
    ("texts in a column", column("action", lambda rows: pa.array(["a"] * len(rows))), r"column 'action' is string"),
    ("short rows", column("action", lists), r"column 'action' (says|has rows of other lengths)"),
    (
        "empty rows",
        column("action", lambda r: pa.array([None, *r[1:]], pa.list_(pa.float32(), 8))),
        r"'action' is empty",
    ),
    (
        "NaN",
        column("action", lambda r: pa.array([[np.nan] * 8, *r[1:]], pa.list_(pa.float32(), 8))),
        r"action holds NaN",
    ),
    ("rows in another order", column("frame_index", lambda r: pa.array(r[::-1])), r"column 'frame_index' of episode 0"),
    (
        "rows of nobody",
        column("episode_index", lambda r: pa.array([7] * len(r))),
        r"'episode_index' has 0 rows of episode 0",
    ),
    ("unknown task", column("task_index", lambda r: pa.array([4] * len(r))), r"column 'task_index' is 4 in episode 0"),
    ("absurd length", column("length", lambda r: pa.array([10**15] * len(r)), EPISODES), r"length is 1000000000000000"),
    ("swapped episodes", column("episode_index", lambda r: pa.array(r[::-1]), EPISODES), r"row 0 is episode_index 1"),
    (
        "a file of another folder",
        column("data/chunk_index", lambda r: pa.array([-1] * len(r)), EPISODES),
        r"data/chunk_index is -1",
    ),
    (
        "beyond the video",
        column("videos/observation.images.front/from_timestamp", lambda r: pa.array([500.0] * len(r)), EPISODES),
        r"file-000.mp4: no frame",
    ),
    ("no video", removed("*.mp4"), r"file-000.mp4: cannot be"),
    ("cut video", content("*.mp4", lambda data: data[: len(data) // 2]), r"file-000.mp4: cannot be decoded"),
    ("a playlist", playlist, r"file-000.mp4: cannot be decoded"),
    ("empty video", content("*.mp4", lambda data: b""), r"file-000.mp4: cannot be decoded"),
    ("short video", smaller_halfway, r"file-000.mp4: no frame at 0\.[5-9].* the time of step \d"),
    ("pictures without end", column("picture", endless_pictures), r"'picture' unpacks from \d+ to \d+ bytes"),
    (
        "numbers without end",
        column("action", endless_numbers),
        r"column 'action' claims 8000112 numbers in 15 rows of 8",
    ),
    ("a picture too large", huge_picture, r"pixels; at most"),
    (
        "no picture",
        column("picture", lambda r: pa.array([{"bytes": None, "path": "x"}] * len(r))),
        r"no picture in row 0",
    ),
    (
        "damaged picture",
        column("picture", lambda r: pa.array([{**r[0], "bytes": r[0]["bytes"][:99]}] * len(r))),
        r"PNG",
    ),
]


@pytest.mark.parametrize(("harm", "says"), [case[1:] for case in HARMS], ids=[case[0] for case in HARMS])
def test_what_is_damaged_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Harm, says: str
) -> None:
    monkeypatch.setattr(tables, "_MOST_ROWS", MOST_ROWS)
    monkeypatch.setattr(tables, "_MOST_TEXT", MOST_TEXT)
    monkeypatch.setattr(tables, "_MOST_PICTURES", MOST_PICTURES)
    cameras = {"observation.images.front": (64, 48), "picture": (40, 30)}
    source = LeRobotSet(cameras=cameras).write(tmp_path / "set")
    harm(source)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WorkspaceError, match=says) as refused:
        convert(ConversionSettings(source, tmp_path / "out.zarr", resolution=(32, 24), workers=1))
    assert str(refused.value).count("\n") == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_KB
    assert not (tmp_path / "out.zarr").exists()
    written = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file() and source not in file.parents)
    assert written < DISK


def test_a_bad_episode_is_left_out_and_the_others_converted(tmp_path: Path) -> None:
    source = LeRobotSet(lengths=(6, 9, 5), version="v2.1").write(tmp_path / "set")
    video = source / "videos/chunk-000/observation.images.front/episode_000001.mp4"
    video.write_bytes(video.read_bytes()[:300])
    report = convert(ConversionSettings(source, tmp_path / "o.zarr", resolution=(32, 24), workers=1, on_error="skip"))
    assert [entry.name for entry in report.dropped] == ["episode_000001"]
    assert "episode_000001.mp4: cannot be decoded" in str(report.dropped[0].reason)
    assert report.n_steps == 11


def test_a_video_of_another_size_halfway_is_refused(tmp_path: Path) -> None:
    source = LeRobotSet(lengths=(6, 9), version="v2.1").write(tmp_path / "set")
    video = source / "videos/chunk-000/observation.images.front/episode_000001.mp4"
    encode(video, [frame[:40] for frame in decode(video)], 10, 12)
    with pytest.raises(WorkspaceError, match=r"frames of camera 'image' differ in .*64x40.*64x48"):
        convert(ConversionSettings(source, tmp_path / "out.zarr", resolution=(32, 24), workers=1))


@pytest.mark.parametrize("text", ["a: [", "- 1", "action: 3", "action: {position: {feature: action, columns: [0, 1]}}",
                                  "action: {joints: {feature: nowhere, unit: rad}}", "actions: {}",
                                  "action: {rotation: {feature: action, as: euler}}",
                                  "action: {gripper: {feature: action, columns: [7], scale: wide}}",
                                  "action: {joints: {feature: action, columns: [99], unit: rad}}",
                                  "action: &a [*a]"])  # fmt: skip
def test_a_mapping_that_does_not_fit_is_refused(tmp_path: Path, text: str) -> None:
    source = LeRobotSet(state=poses(15), action=poses(15)).write(tmp_path / "set")
    (tmp_path / "mapping.yaml").write_text(text)
    with pytest.raises(WorkspaceError, match=r"mapping\.yaml|info\.json"):
        convert(
            ConversionSettings(source, tmp_path / "out.zarr", resolution=(32, 24), mapping=f"{tmp_path}/mapping.yaml")
        )
