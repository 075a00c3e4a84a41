"""Faults of locations and files that the converter must survive or name, in an error or the ledger."""

import hashlib
import os
import subprocess
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import warm_process
from trajectory_factory import write_trajectory

from diffusion_policy.convert import ConversionError, ConversionReport, ConversionSettings, convert
from diffusion_policy.dataset.frame_files import FrameFiles
from diffusion_policy.dataset.image_codecs import image_codec
from diffusion_policy.dataset.replay_buffer import DatasetError, ReplayBuffer
from diffusion_policy.trajectory import TrajectoryError

SIZE = (64, 36)


def run(source: Path, output: Path, **settings: Any) -> ConversionReport:
    return convert(ConversionSettings(source, output, **{"resolution": (32, 18), "workers": 1, **settings}))


def recorded(folder: Path, *numbers: int) -> Path:
    for number in numbers or (0, 1):
        write_trajectory(folder, number, n_steps=6, size=SIZE)
    return folder


def content(folder: Path) -> dict[Path, tuple[int, str]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def test_the_source_is_only_read_whatever_happens(tmp_path: Path) -> None:
    source = recorded(tmp_path / "in", 0, 1, 2)
    (source / "episode_0001" / "images" / "frame_0003.jpg").write_bytes(b"cut")
    before = content(source)
    with pytest.raises(TrajectoryError, match="frame_0003"):
        run(source, tmp_path / "out.zarr")
    run(source, tmp_path / "out.zarr", on_error="skip")
    run(source, tmp_path / "out.zarr", on_error="skip", overwrite=True)
    assert content(source) == before


def test_a_target_that_is_not_a_folder(tmp_path: Path) -> None:
    source = recorded(tmp_path / "in")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConversionError, match=r"file/out.zarr cannot be made: Not a directory"):
        run(source, tmp_path / "file" / "out.zarr")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_target_without_permission(tmp_path: Path) -> None:
    source = recorded(tmp_path / "in")
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(ConversionError, match="cannot be made: Permission denied"):
        run(source, tmp_path / "locked" / "out.zarr")


REAL_FAULTS = """
import ctypes, os, runpy, subprocess, sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
users = f"0 {os.getuid()} 1", f"0 {os.getgid()} 1"
if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS | CLONE_NEWUSER):
    sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text(users[0])
Path("/proc/self/gid_map").write_text(users[1])


def mount(*words):
    subprocess.run(["mount", *words], check=True)


def convert(said, *options):
    printed = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(printed, 1), os.dup2(printed, 2)
    sys.argv = [sys.argv[0], "--input", "in", "--output", "disk/out.zarr", "--resolution", "160", "90"]
    sys.argv += ["--compressor", "none", "--workers", "1", *options]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        print("status", ended.code or 0, flush=True)


def written(frame):
    return os.stat(frame).st_mtime_ns


sys.argv = sys.argv[1:]
os.mkdir("disk")
mount("-t", "tmpfs", "-o", "size=900k", "none", "disk")
mount("--bind", "in", "in")
mount("-o", "remount,bind,ro", "in")
try:
    Path("in/episode_0000/new").touch()
    sys.exit("the recordings could be written")
except OSError:
    pass
convert("full.txt")
kept = sorted(path.parent.name for path in Path("disk").glob("out.zarr.partial/*/entry.json"))
Path("after.txt").write_text(" ".join([*os.listdir("disk"), *kept]))
mount("-o", "remount,size=20m", "disk")
first = written("disk/out.zarr.partial/episode_0000/frames.zarr/image/0.0.0.0")
convert("whole.txt", "--resume")
Path("before.txt").write_text(f"{first} {written('disk/out.zarr/data/image/0.0.0.0')}")
subprocess.run(["cp", "-r", "disk/out.zarr", "resumed.zarr"], check=True)
mount("-o", "remount,ro", "disk")
convert("readonly.txt", "--overwrite")
sys.exit(3)
"""


def test_a_disk_that_is_really_full_and_a_source_that_is_really_read_only(tmp_path: Path, repository: Path) -> None:
    """Mounts for this test: 900 kB for what needs 1.1 MB, then more; the recordings are read-only throughout."""
    recorded(tmp_path / "in", 0, 1, 2, 3)
    script = str(repository / "scripts" / "convert_cogact_to_zarr.py")
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system of their own (unshare -rm)")
    ended = warm_process.run(["-c", REAL_FAULTS, script], tmp_path)
    assert ended.returncode == 3, ended.stdout + ended.stderr
    texts = {name: (tmp_path / f"{name}.txt").read_text() for name in ("full", "after", "before", "readonly")}
    assert "No space left on device" in texts["full"]
    assert "continue with --resume" in texts["full"]
    assert "status 2" in texts["full"]
    # Two are processed at once, so the third may have been complete except for its entry.
    assert texts["after"].split()[:3] == ["out.zarr.partial", "episode_0000", "episode_0001"]
    assert "episode_0003" not in texts["after"]
    assert len(set(texts["before"].split())) == 1  # the finished episode was not written again
    assert "Read-only file system" in texts["readonly"]
    assert "status 2" in texts["readonly"]
    whole = run(tmp_path / "in", tmp_path / "whole.zarr", resolution=(160, 90), codec=image_codec("none"))
    resumed = ReplayBuffer.open(tmp_path / "resumed.zarr")
    assert resumed.root.attrs["content_sha256"] == whole.content_sha256
    np.testing.assert_array_equal(resumed["image"][:], ReplayBuffer.open(tmp_path / "whole.zarr")["image"][:])


def test_a_target_that_refuses_files(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="cannot be made"):
        run(recorded(tmp_path / "in"), Path("/proc/out.zarr"))


def test_unicode_and_blanks_in_paths(tmp_path: Path) -> None:
    names = ("r\N{LATIN SMALL LETTER U WITH DIAERESIS}stung \N{CJK UNIFIED IDEOGRAPH-6570}", "out \N{ROBOT FACE}.zarr")
    report = run(recorded(tmp_path / names[0], 3), tmp_path / names[1])
    assert report.n_steps == 6
    assert ReplayBuffer.open(tmp_path / names[1])["image"].shape == (6, 18, 32, 3)
    assert run(tmp_path / names[0], tmp_path / names[1], resume=True).content_sha256 == report.content_sha256


def test_a_folder_that_is_a_link(tmp_path: Path) -> None:
    recorded(tmp_path / "elsewhere", 4)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "episode_0004").symlink_to(tmp_path / "elsewhere" / "episode_0004")
    assert run(tmp_path / "in", tmp_path / "out.zarr").n_steps == 6
    assert (tmp_path / "elsewhere" / "episode_0004" / "data.pkl").is_file()


def test_a_frame_that_is_a_folder_or_leads_nowhere(tmp_path: Path) -> None:
    source = recorded(tmp_path / "in")
    images = source / "episode_0000" / "images"
    (images / "frame_0002.jpg").unlink()
    (images / "frame_0002.jpg").mkdir()
    with pytest.raises(TrajectoryError, match="step 2 shows frame 2"):
        run(source, tmp_path / "out.zarr")
    (images / "frame_0002.jpg").rmdir()
    (images / "frame_0002.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(TrajectoryError, match=r"frame_0002\.jpg: is a link to .*nowhere\.jpg, which cannot be reached"):
        run(source, tmp_path / "out.zarr")


@pytest.mark.parametrize("damage", ["header", "tables", "markers"])
def test_a_jpeg_damaged_inside(tmp_path: Path, damage: str) -> None:
    source = recorded(tmp_path / "in")
    frame = source / "episode_0000" / "images" / "frame_0001.jpg"
    data = bytearray(frame.read_bytes())
    if damage == "header":
        data[:2] = b"\0\0"
    if damage == "tables":
        data[20:400] = bytes(380)
    if damage == "markers":
        data = bytearray(bytes(data).replace(b"\xff\xc0", b"\xff\xfe"))
    frame.write_bytes(bytes(data))
    with pytest.raises(TrajectoryError, match=r"frame_0001\.jpg"):
        run(source, tmp_path / "out.zarr")
    report = run(source, tmp_path / "out.zarr", on_error="skip")
    assert [entry.name for entry in report.dropped] == ["episode_0000"]


class BrokenExecutor(Executor):
    """Workers that are gone."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(OSError(104, "Connection reset by peer"))
        return future


def test_workers_that_are_gone(tmp_path: Path) -> None:
    source = recorded(tmp_path / "in")
    with pytest.raises(ConversionError, match=r"Connection reset by peer.*continue with --resume"):
        convert(ConversionSettings(source, tmp_path / "out.zarr", (32, 18)), executor=BrokenExecutor())
    assert run(source, tmp_path / "out.zarr", resume=True).n_steps == 12


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("codec", ["blosc", "jpeg"])
def test_a_damaged_frame_of_a_dataset_is_named(tmp_path: Path, zarr_format: int, codec: str) -> None:
    run(recorded(tmp_path / "in", 0), tmp_path / "out.zarr", zarr_format=zarr_format, codec=image_codec(codec))
    name = "4.0.0.0" if zarr_format == 2 else "c/4/0/0/0"
    (tmp_path / "out.zarr" / "data" / "image" / name).write_bytes(b"nothing that any codec knows")
    if codec == "blosc":  # whose header gives its length: refused when it is opened
        with pytest.raises(DatasetError, match=rf"data/image/{name} has 28 bytes, its header says \d+"):
            ReplayBuffer.open(tmp_path / "out.zarr")
    frames = FrameFiles(ReplayBuffer.open(tmp_path / "out.zarr", check_files=False)["image"])
    assert frames.read(0, 4).any()
    with pytest.raises(DatasetError, match=r"data/image: row 4 does not unpack .* the dataset is damaged"):
        frames.read(4, 5)
    with pytest.raises(DatasetError, match="one of the rows 2 to 5 does not unpack"):
        frames.read(2, 6)
