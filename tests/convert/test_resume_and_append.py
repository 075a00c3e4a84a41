"""Killed, resumed, appended to: nothing is lost or done twice, and nothing appears before it is complete."""

import errno
import fcntl
import json
import multiprocessing
import os
import random
import shlex
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from dataset_factory import pack
from removal import killed_amid_removal
from trajectory_factory import write_trajectory

from diffusion_policy.convert import ConversionError, ConversionReport, ConversionSettings, convert
from diffusion_policy.convert.frames import Block
from diffusion_policy.convert.staging import finished_episodes
from diffusion_policy.dataset.image_codecs import image_codec
from diffusion_policy.dataset.replay_buffer import DatasetError, ReplayBuffer

SIZE = (64, 36)
LENGTHS = (20, 33, 7, 40)
SHARDS = {"zarr_format": 3, "shard": 16}


class FailingExecutor(ThreadPoolExecutor):
    """Runs this many blocks, then fails like a full disk; counts what it was given."""

    def __init__(self, after: int = 10**9, error: OSError | None = None) -> None:
        super().__init__(1)
        self.left = after
        self.error = error or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.blocks: list[Block] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.blocks += [argument for argument in args if isinstance(argument, Block)]
        if self.left <= 0:
            future: Future[Any] = Future()
            future.set_exception(self.error)
            return future
        self.left -= 1
        return super().submit(fn, *args, **kwargs)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number, n_steps in enumerate(LENGTHS):
        write_trajectory(tmp_path / "in", number, n_steps=n_steps, size=SIZE)
    return tmp_path / "in"


def settings(source: Path, output: Path, **options: Any) -> ConversionSettings:
    return ConversionSettings(source, output, **{"resolution": (32, 18), "workers": 1, **options})


def run(source: Path, output: Path, **options: Any) -> ConversionReport:
    return convert(settings(source, output, **options))


def content(path: Path) -> dict[str, np.ndarray]:
    buffer = ReplayBuffer.open(path)
    return {"ends": buffer.episode_ends, **{key: np.asarray(buffer[key][:]) for key in buffer.keys}}


def assert_same(a: Path, b: Path) -> None:
    first, second = content(a), content(b)
    assert first.keys() == second.keys()
    for key, values in first.items():
        np.testing.assert_array_equal(values, second[key], err_msg=key)


def test_a_full_disk_loses_no_finished_episode(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out.zarr"
    with pytest.raises(ConversionError, match=r"No space left on device; finished episodes are kept .* --resume"):
        convert(settings(source, output), executor=FailingExecutor(after=4))
    assert not output.exists()
    executor = FailingExecutor()
    report = convert(settings(source, output, resume=True), executor=executor)
    redone = {block.array.parent.parent.name for block in executor.blocks}
    assert "episode_0000" not in redone
    assert redone
    run(source, tmp_path / "whole.zarr")
    assert_same(output, tmp_path / "whole.zarr")
    assert report.n_steps == sum(LENGTHS)
    assert not output.with_name("out.zarr.partial").exists()


def test_a_failing_disk_is_named(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ConversionError, match=r"weird \(/dev/sdz\); finished episodes are kept"):
        convert(
            settings(source, tmp_path / "out.zarr"),
            executor=FailingExecutor(0, OSError(errno.EIO, "weird", "/dev/sdz")),
        )


def test_an_episode_that_changed_is_done_again(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ConversionError):
        convert(settings(source, tmp_path / "out.zarr"), executor=FailingExecutor(after=5))
    frame = source / "episode_0000" / "images" / "frame_0003.jpg"
    cv2.imwrite(str(frame), np.full((36, 64, 3), 200, dtype=np.uint8))
    run(source, tmp_path / "out.zarr", resume=True)
    run(source, tmp_path / "whole.zarr")
    assert_same(tmp_path / "out.zarr", tmp_path / "whole.zarr")


def test_work_begun_with_other_settings_is_not_mixed_in(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ConversionError):
        convert(settings(source, tmp_path / "out.zarr"), executor=FailingExecutor(after=4))
    with pytest.raises(ConversionError, match=r"started with other settings \(resolution\)"):
        run(source, tmp_path / "out.zarr", resume=True, resolution=(16, 9))
    run(source, tmp_path / "out.zarr", resolution=(16, 9))
    assert ReplayBuffer.open(tmp_path / "out.zarr")["image"].shape[1:3] == (9, 16)


def test_resuming_what_is_finished_changes_nothing(tmp_path: Path, source: Path) -> None:
    first = run(source, tmp_path / "out.zarr")
    before = (tmp_path / "out.zarr").stat().st_mtime_ns
    assert run(source, tmp_path / "out.zarr", resume=True) == first
    assert (tmp_path / "out.zarr").stat().st_mtime_ns == before
    with pytest.raises(ConversionError, match="exists"):
        run(source, tmp_path / "out.zarr", resume=True, resolution=(16, 9))


def test_two_conversions_do_not_share_an_output(tmp_path: Path, source: Path) -> None:
    partial = tmp_path / "out.zarr.partial"
    partial.mkdir()
    with (partial / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConversionError, match="another conversion is writing there"):
            run(source, tmp_path / "out.zarr")


def test_a_dataset_set_aside_is_given_back(tmp_path: Path, source: Path) -> None:
    """Killed between the two renames of an overwrite."""
    output = tmp_path / "out.zarr"
    run(source, output, max_episodes=1)
    output.with_name("out.zarr.partial").mkdir()
    output.rename(tmp_path / "out.zarr.partial" / "replaced")
    with pytest.raises(ConversionError, match="exists"):
        run(source, output)
    assert ReplayBuffer.open(output).n_episodes == 1


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="2"),
        pytest.param({"zarr_format": 3}, id="3", marks=pytest.mark.exhaustive),
        pytest.param(SHARDS, id="shards"),
    ],
)
def test_appending_equals_converting_at_once(tmp_path: Path, source: Path, options: dict[str, Any]) -> None:
    output = tmp_path / "out.zarr"
    run(source, output, max_episodes=2, **options)
    report = run(source, output, append=True, **options)
    whole = run(source, tmp_path / "whole.zarr", **options)
    assert_same(output, tmp_path / "whole.zarr")
    assert report.content_sha256 == whole.content_sha256
    assert report.n_steps == sum(LENGTHS)
    again = run(source, output, append=True, **options)
    assert again.content_sha256 == whole.content_sha256


def test_recordings_are_known_by_content_not_by_name(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out.zarr"
    run(source, output)
    write_trajectory(tmp_path / "tuesday", 0, n_steps=5, size=SIZE, seed=77)
    report = run(tmp_path / "tuesday", output, append=True)
    assert report.n_steps == sum(LENGTHS) + 5
    assert [(entry.source, entry.name) for entry in report.kept][-1] == ("tuesday", "episode_0000")
    (tmp_path / "moved").mkdir()
    (source / "episode_0003").rename(tmp_path / "moved" / "episode_0500")
    write_trajectory(tmp_path / "moved", 501, n_steps=6, size=SIZE)
    report = run(tmp_path / "moved", output, append=True)
    assert report.n_steps == sum(LENGTHS) + 5 + 6
    assert report.dropped[-1].reason == "already in the dataset"


def test_lossy_frames_are_not_packed_twice(tmp_path: Path, source: Path) -> None:
    options = {"codec": image_codec("jpeg", 60), "zarr_format": 3, "shard": 16}
    run(source, tmp_path / "out.zarr", max_episodes=1, **options)
    before = content(tmp_path / "out.zarr")["image"]
    run(source, tmp_path / "out.zarr", append=True, **options)
    np.testing.assert_array_equal(content(tmp_path / "out.zarr")["image"][:20], before)


def test_appending_refuses_what_does_not_match(tmp_path: Path, source: Path) -> None:
    with pytest.raises(DatasetError, match="no zarr dataset there"):
        run(source, tmp_path / "nowhere.zarr", append=True)
    run(source, tmp_path / "out.zarr", max_episodes=1)
    with pytest.raises(ConversionError, match=r"made with other settings: .'resolution': "):
        run(source, tmp_path / "out.zarr", append=True, resolution=(16, 9))
    with pytest.raises(ConversionError, match="choose one of them"):
        run(source, tmp_path / "out.zarr", append=True, overwrite=True)
    ReplayBuffer.open(tmp_path / "out.zarr", mode="r+").root.attrs.clear()
    with pytest.raises(ConversionError, match="has no record of its conversion"):
        run(source, tmp_path / "out.zarr", append=True)


def test_work_with_other_settings_is_not_continued(tmp_path: Path, source: Path) -> None:
    settings = ConversionSettings(source, tmp_path / "out.zarr", resolution=(32, 18), workers=1)
    assert finished_episodes(settings) is None
    with pytest.raises(ConversionError):
        convert(settings, executor=FailingExecutor(after=2))
    assert finished_episodes(settings) == 1
    assert finished_episodes(replace(settings, resolution=(16, 9))) is None


def test_killed_while_unfinished_work_is_discarded(tmp_path: Path, source: Path) -> None:
    """Half of an episode is left with its entry that marks it finished; it must not be resumed from."""
    output = tmp_path / "out.zarr"
    with pytest.raises(ConversionError, match="No space left"):
        convert(settings(source, output), executor=FailingExecutor(after=4))
    with killed_amid_removal():
        run(source, output)
    assert list((tmp_path / "out.zarr.partial").glob("episode_*/entry.json"))
    run(source, output, resume=True)
    run(source, tmp_path / "whole.zarr")
    assert_same(output, tmp_path / "whole.zarr")
    assert not (tmp_path / "out.zarr.partial").exists()


def test_killed_while_finished_work_is_removed(tmp_path: Path, source: Path) -> None:
    """The dataset is in place; leftover work is neither needed nor used for another one."""
    output = tmp_path / "out.zarr"
    with killed_amid_removal():
        run(source, output)
    os.rename(output, tmp_path / "kept.zarr")
    run(source, output, resume=True)
    assert_same(output, tmp_path / "kept.zarr")


def go_on_slowly(source: Path, output: Path) -> None:
    goals = settings(source, output, workers=1, resume=True)
    convert(goals, on_progress=lambda done, total: time.sleep(0.02))


def test_a_kill_at_any_moment_loses_nothing(tmp_path: Path, source: Path) -> None:
    """SIGKILL at twenty random moments; each run resumes what the previous one left."""
    output = tmp_path / "out.zarr"
    moments, frames = random.Random(7), dict[str, int]()
    for _ in range(20):
        process = multiprocessing.get_context("fork").Process(target=go_on_slowly, args=(source, output))
        process.start()
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.join()
        if output.exists():
            assert ReplayBuffer.open(output).n_steps == sum(LENGTHS)
        if not (tmp_path / "out.zarr.partial" / "settings.json").is_file():
            continue
        for entry in (tmp_path / "out.zarr.partial").glob("episode_*/entry.json"):
            inode = (entry.parent / "frames.zarr" / "image" / "0.0.0.0").stat().st_ino
            assert frames.setdefault(entry.parent.name, inode) == inode, "a finished episode was written again"
    assert frames
    report = run(source, output, resume=True)
    run(source, tmp_path / "whole.zarr")
    assert_same(output, tmp_path / "whole.zarr")
    for first, name in zip((0, *np.cumsum(LENGTHS)), sorted(frames), strict=False):
        assert (output / "data" / "image" / f"{first}.0.0.0").stat().st_ino == frames[name]
    assert json.loads((tmp_path / "out.zarr.conversion.json").read_text())["content_sha256"] == report.content_sha256


# ---- zip archives, which are only read ----


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize(
    ("options", "top", "name"),
    [
        pytest.param({}, "", "it's a set.zarr.zip", id="2"),
        pytest.param({}, "inside.zarr", "set.archive", id="2, with a folder", marks=pytest.mark.exhaustive),
        pytest.param(SHARDS, "", "set.archive", id="shards", marks=pytest.mark.exhaustive),
        pytest.param(SHARDS, "inside.zarr", "it's a set.zarr.zip", id="shards, with a folder"),
    ],
)
def test_appending_to_an_archive_is_refused_and_the_way_out_runs(
    tmp_path: Path, source: Path, options: dict[str, Any], top: str, name: str
) -> None:
    run(source, tmp_path / "whole.zarr", **options)
    run(source, tmp_path / "made.zarr", max_episodes=2, **options)
    (tmp_path / "home").mkdir()
    archive = pack(tmp_path / "made.zarr", tmp_path / "home" / name, top=top)
    if not top:
        archive.with_suffix("").mkdir()  # a folder of the same name, which must not be unpacked into
    before = state_of(tmp_path)
    with pytest.raises(ConversionError, match="a zip archive is read in place, never written") as caught:
        run(source, archive, append=True, **options)
    assert state_of(tmp_path) == before
    unpacking, rest = str(caught.value).split("Unpack it: ")[1].split("; then run this command with --output ")
    subprocess.run(["bash", "-c", unpacking], check=True)
    assert not any(archive.with_suffix("").iterdir() if not top else ())
    folder = Path(shlex.split(rest.split(", and pack")[0])[0])
    run(source, folder, append=True, **options)
    assert_same(folder, tmp_path / "whole.zarr")


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}], ids=["new", "overwrite", "resume"])
@pytest.mark.parametrize("there", [True, False], ids=["there", "not there"])
def test_no_conversion_writes_an_archive(tmp_path: Path, source: Path, flags: dict[str, bool], there: bool) -> None:
    archive = tmp_path / "set.zarr.zip"
    if there:
        run(source, tmp_path / "made.zarr", max_episodes=1)
        pack(tmp_path / "made.zarr", archive)
    before = state_of(tmp_path)
    with pytest.raises(ConversionError, match=rf"never written; name a folder, such as {tmp_path}/set\.zarr,"):
        run(source, archive, **flags)
    assert state_of(tmp_path) == before
