"""Recordings and datasets in an object store: a local S3 server, loopback only."""

import fcntl
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import warm_process
import zarr
from object_store import environment, s3_server
from removal import killed_amid_removal
from trajectory_factory import write_trajectory

from diffusion_policy.convert import ConversionError, ConversionReport, ConversionSettings, convert, publication
from diffusion_policy.convert.frames import Block, write_block
from diffusion_policy.dataset.image_codecs import image_codec
from diffusion_policy.dataset.replay_buffer import DatasetError, ReplayBuffer
from diffusion_policy.paths import PathError, as_path, file_system, read_bytes
from diffusion_policy.recording.cogact import PictureFiles
from diffusion_policy.trajectory import TrajectoryError, open_trajectory

SIZE = (64, 36)
LENGTHS = (5, 6, 3)
FORMATS: dict[str, dict[str, Any]] = {
    "2": {},
    "3": {"zarr_format": 3},
    "shards": {"zarr_format": 3, "shard": 8, "codec": image_codec("jpeg", 60)},
}


def formats(*chosen: str) -> list[Any]:
    """These cases, and the others marked exhaustive."""
    marks = {name: [pytest.mark.exhaustive] * (name not in chosen) for name in FORMATS}
    return [pytest.param(options, id=name, marks=marks[name]) for name, options in FORMATS.items()]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as bucket:
        yield bucket


@pytest.fixture
def home(server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A part of the bucket for one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"s3://{server}/{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number, n_steps in enumerate(LENGTHS):
        write_trajectory(tmp_path / "in", number, n_steps=n_steps, size=SIZE)
    return tmp_path / "in"


def run(source: Path | str, output: Path | str, **settings: Any) -> ConversionReport:
    options = {"resolution": (32, 18), "workers": 2, **settings}
    return convert(ConversionSettings(source, output, **options))  # type: ignore[arg-type]


def objects(url: str) -> dict[str, str]:
    """Returns the objects below a URL with their MD5, which S3 gives without sending the content."""
    store, path = file_system(as_path(url))
    found = store.find(path, detail=True)
    return {name.removeprefix(path): info["ETag"].strip('"') for name, info in found.items()}


def files(folder: Path) -> dict[str, str]:
    found = [file for file in folder.rglob("*") if file.is_file()]
    return {f"/{file.relative_to(folder)}": hashlib.md5(file.read_bytes()).hexdigest() for file in found}


def assert_same(url: str, folder: Path) -> None:
    """Every array is the same, byte for byte; attributes of the root may record a different history."""
    stored, expected = (
        {k: md5 for k, md5 in found.items() if k.count("/") > 1} for found in (objects(url), files(folder))
    )
    assert stored == expected
    assert ReplayBuffer.open(url).episode_ends.tolist() == ReplayBuffer.open(folder).episode_ends.tolist()


def upload(folder: Path, url: str) -> str:
    store, path = file_system(as_path(url))
    store.put(str(folder), path, recursive=True)
    return url


@pytest.mark.parametrize("options", formats("2"))
def test_from_a_store_to_a_store(home: str, source: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    url = upload(source, f"{home}/in")
    report = run(url, f"{home}/out.zarr", **options)
    local = run(source, tmp_path / "out.zarr", **options)
    assert report.content_sha256 == local.content_sha256
    assert objects(f"{home}/out.zarr") == files(tmp_path / "out.zarr")
    assert not as_path(f"{home}/out.zarr.partial").exists()
    ledger = (tmp_path / "out.zarr.conversion.json").read_bytes()
    assert read_bytes(as_path(f"{home}/out.zarr.conversion.json")) == ledger
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_zarr_opens_it_without_this_package(home: str, source: Path) -> None:
    run(source, f"{home}/out.zarr")
    root = zarr.open_group(f"{home}/out.zarr", mode="r")
    assert root["meta/episode_ends"][:].tolist() == np.cumsum(LENGTHS).tolist()
    assert root["data/image"][10].any()
    assert root.attrs["conversion"]["totals"]["steps_kept"] == sum(LENGTHS)


@pytest.mark.parametrize("options", formats("shards"))
def test_appending_sends_what_is_new(
    home: str, source: Path, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, f"{home}/out.zarr", max_episodes=2, **options)
    sent: list[str] = []
    send = publication._send
    monkeypatch.setattr(publication, "_send", lambda s, names, p: (sent.extend(names), send(s, names, p)))
    report = run(source, f"{home}/out.zarr", append=True, **options)
    whole = run(source, tmp_path / "whole.zarr", **options)
    assert report.content_sha256 == whole.content_sha256
    assert_same(f"{home}/out.zarr", tmp_path / "whole.zarr")
    frames = [name for name in sent if name.startswith("data/image")]
    assert len(frames) == (1 if "shard" in options else LENGTHS[2])
    assert run(source, f"{home}/out.zarr", append=True, **options).content_sha256 == whole.content_sha256


def test_an_existing_dataset_is_refused_or_replaced_whole(home: str, source: Path, tmp_path: Path) -> None:
    output = f"{home}/out.zarr"
    run(source, output)
    with pytest.raises(ConversionError, match=r"out.zarr exists; choose another name, add to it with --append"):
        run(source, output)
    with pytest.raises(ConversionError, match="is not a zarr dataset; it is not replaced"):
        run(source, upload(tmp_path / "in" / "episode_0002", f"{home}/thesis"), overwrite=True)
    assert as_path(f"{home}/thesis/data.pkl").is_file()
    run(source, output, overwrite=True, max_episodes=1, zarr_format=3)
    run(source, tmp_path / "one.zarr", max_episodes=1, zarr_format=3)
    assert_same(output, tmp_path / "one.zarr")
    assert not any(name.endswith(".zarray") for name in objects(output))
    assert run(source, output, resume=True, max_episodes=1, zarr_format=3).n_steps == LENGTHS[0]


PROGRAM = """
import sys, threading
from object_store import patient
from diffusion_policy.convert import ConversionSettings, convert, publication

patient()
publication._SENT_TOGETHER = 4
frames, stage, at = int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
seen = []

def report(done, total):
    seen.append("sending" if total > frames else "decoding")
    if seen.count(stage) == at:
        print("held while", stage, flush=True)
        threading.Event().wait()

convert(ConversionSettings(sys.argv[1], sys.argv[2], (32, 18), workers=1, resume=True), on_progress=report)
"""
MOMENTS = [("decoding", 1), ("any", 0), ("decoding", 2), ("sending", 1), ("any", 0), ("sending", 2)]


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_nothing(home: str, source: Path, tmp_path: Path) -> None:
    """During decoding and sending: what is there is complete or refused, and what was sent is not lost."""
    url, output = upload(source, f"{home}/in"), f"{home}/out.zarr"
    moments, refused, held = random.Random(3), 0, []
    found = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    for stage, at in MOMENTS:
        words = [warm_process.python(), "-c", PROGRAM, url, output, str(sum(LENGTHS)), stage, str(at)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=found)
        assert process.stdout is not None
        if at:
            held.append(process.stdout.readline())  # empty if it ended before that
        else:
            time.sleep(moments.uniform(0, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.read()  # to the end of the process that has it
        process.stdout.close()
        if as_path(f"{output}/.zgroup").is_file():
            assert ReplayBuffer.open(output).n_steps == sum(LENGTHS)
        elif as_path(f"{output}.partial").is_file():
            refused += 1
            with pytest.raises(
                DatasetError, match=r"a conversion to it is unfinished; run its command again with --resume"
            ):
                ReplayBuffer.open(output)
    assert refused
    assert "held while sending\n" in held
    report = run(url, output, resume=True)
    whole = run(source, tmp_path / "whole.zarr")
    assert report.content_sha256 == whole.content_sha256
    assert_same(output, tmp_path / "whole.zarr")
    assert not as_path(f"{output}.partial").exists()


@pytest.mark.parametrize(
    ("append", "moment"),
    [
        pytest.param(False, "_send", id="new while it is sent"),
        pytest.param(True, "_withdraw", id="appended before its metadata are sent"),
        pytest.param(False, "_withdraw", id="new before it is sent", marks=pytest.mark.exhaustive),
        pytest.param(True, "_send", id="appended while it is sent", marks=pytest.mark.exhaustive),
    ],
)
def test_an_interrupted_publication_is_finished(
    home: str, source: Path, tmp_path: Path, append: bool, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = f"{home}/out.zarr"
    if append:
        run(source, output, max_episodes=1)

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(publication, moment, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(source, output, append=append)
    if append:
        assert ReplayBuffer.open(output).n_steps == LENGTHS[0]
    decoded: list[Any] = []
    monkeypatch.setattr("diffusion_policy.convert.run.write_block", decoded.append)
    report = run(source, output, append=append, resume=not append)
    assert not decoded
    assert report.n_steps == sum(LENGTHS)
    monkeypatch.undo()
    run(source, tmp_path / "whole.zarr")
    assert_same(output, tmp_path / "whole.zarr")


def test_killed_while_what_was_sent_is_removed(home: str, source: Path, tmp_path: Path) -> None:
    """The local copy is half removed and must not be sent over the complete one."""
    output = f"{home}/out.zarr"
    with killed_amid_removal():
        run(source, output)
    assert run(source, output, resume=True).n_steps == sum(LENGTHS)
    run(source, tmp_path / "whole.zarr")
    assert_same(output, tmp_path / "whole.zarr")


def test_interrupted_on_another_machine(
    home: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its scratch folder, what was sent is no dataset, cannot be extended, and a new conversion replaces it."""
    output = f"{home}/out.zarr"

    def interrupt(settings: ConversionSettings, *arguments: Any) -> None:
        store, path = file_system(settings.output)
        store.pipe_file(f"{path}/data/image/999.0.0.0", b"of another dataset")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(publication, "_send", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(source, output)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    with pytest.raises(ConversionError, match="was interrupted on another machine"):
        run(source, output, append=True)
    assert run(source, output).n_steps == sum(LENGTHS)
    assert "/data/image/999.0.0.0" not in objects(output)


def test_two_conversions_here_do_not_share_a_url(home: str, source: Path) -> None:
    settings = ConversionSettings(source, f"{home}/out.zarr")  # type: ignore[arg-type]
    settings.partial.mkdir(parents=True)
    with (settings.partial / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConversionError, match="another conversion is writing there"):
            run(source, f"{home}/out.zarr")


def test_a_missing_bucket(home: str, source: Path) -> None:
    with pytest.raises(TrajectoryError, match="s3://nobodys/in is not a directory"):
        run("s3://nobodys/in", f"{home}/out.zarr")
    decoded: list[int] = []
    settings = ConversionSettings(source, "s3://nobodys/out.zarr", (32, 18))  # type: ignore[arg-type]
    with pytest.raises(ConversionError, match=r"s3://nobodys/out.zarr cannot be reached .*bucket does not exist"):
        convert(settings, on_progress=lambda done, total: decoded.append(done))
    assert not decoded
    with pytest.raises(DatasetError, match="no zarr dataset there"):
        ReplayBuffer.open("s3://nobodys/out.zarr")


def test_nobody_at_the_address(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed (extra 'cloud')")
    for name, value in environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    for attempt in (
        lambda: run("s3://robot/in", "out.zarr"),
        lambda: run(source, "s3://robot/out.zarr"),
        lambda: ReplayBuffer.open("s3://robot/out.zarr"),
        lambda: read_bytes(as_path("s3://robot/in/episode_0000/data.pkl")),
    ):
        with pytest.raises(PathError, match=r"s3://robot/.* cannot be reached .*AWS_ENDPOINT_URL"):
            attempt()
    s3fs.S3FileSystem.clear_instance_cache()


def test_wrong_credentials(home: str, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the server requires credentials, and none match."""
    requests = pytest.importorskip("requests", reason="requests comes with moto")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed (extra 'cloud')")

    url = upload(source, f"{home}/in")
    run(source, f"{home}/out.zarr")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    requests.post(f"{endpoint}/moto-api/reset-auth", data="0", timeout=10)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        for attempt in (
            lambda: run(url, f"{home}/other.zarr"),
            lambda: run(source, f"{home}/other.zarr"),
            lambda: ReplayBuffer.open(f"{home}/out.zarr"),
        ):
            with pytest.raises((PathError, ConversionError), match=r"cannot be reached .access is refused"):
                attempt()
    finally:
        requests.post(f"{endpoint}/moto-api/reset-auth", data="inf", timeout=10)
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("expires_at", ["/frame_", pytest.param("/data.pkl", marks=pytest.mark.exhaustive)])
def test_a_failing_store_is_not_a_bad_episode(
    home: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expires_at: str
) -> None:
    """`--on-error skip` leaves out what is damaged, not what is temporarily unreachable."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed (extra 'cloud')")

    url = upload(source, f"{home}/in")
    (file,) = (name for name in objects(url) if name.endswith("episode_0001/images/frame_0003.jpg"))
    with monkeypatch.context() as patched:
        fetch = s3fs.S3FileSystem._cat_file

        async def expired(self: Any, path: str, *arguments: Any, **options: Any) -> Any:
            if expires_at in path:
                raise PermissionError("the token has expired")
            return await fetch(self, path, *arguments, **options)

        patched.setattr(s3fs.S3FileSystem, "_cat_file", expired)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises((ConversionError, PathError), match=r"the token has expired"):
            run(url, tmp_path / "out.zarr", on_error="skip")
    s3fs.S3FileSystem.clear_instance_cache()
    assert not (tmp_path / "out.zarr").exists()
    store, path = file_system(as_path(url))
    store.pipe_file(path + file, b"damaged")
    report = run(url, tmp_path / "out.zarr", on_error="skip", resume=True)
    assert [(entry.name, "frame_0003.jpg" in str(entry.reason)) for entry in report.dropped] == [("episode_0001", True)]


def test_a_frame_that_vanishes_is_named(home: str, source: Path) -> None:
    url = upload(source, f"{home}/in")
    trajectory = open_trajectory(f"{url}/episode_0000")
    gone = trajectory.frame_path(4)
    gone.unlink()
    shown = tuple(trajectory.frame_path(step) for step in range(5))
    with pytest.raises(TrajectoryError, match=r"frame_0004.jpg: cannot be read .No such file"):
        write_block(Block(PictureFiles(shown), source / "nothing", 0, 32, 18, "exact", lossless=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://robot/in", "s3://robot/in"),
        (Path("s3://robot/in"), "s3://robot/in"),
        ("file:///data/in", "/data/in"),
        ("data/in", "data/in"),
        ("C:/data", "C:/data"),
    ],
)
def test_what_a_place_is(server: str, text: Any, expected: str) -> None:
    assert str(as_path(text)) == expected
    assert as_path(as_path(text)) == as_path(text)


def test_other_kinds_of_urls(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("upath", reason="universal-pathlib is not installed (extra 'cloud')")
    with pytest.raises(PathError, match=r"fsspec knows no URLs that start with ftq://"):
        as_path("ftq://robot/in")
    report = run(source, "memory://robot/out.zarr", scratch=tmp_path / "scratch")
    assert report.n_steps == sum(LENGTHS)
    assert as_path("memory://robot/out.zarr/.zgroup").is_file()
    assert not as_path("memory://robot/out.zarr.partial").exists()


def test_the_package_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(PathError, match=r"s3://robot/in needs a package .*python -m pip install 's3fs"):
        as_path("s3://robot/in")


def test_scratch_is_for_urls(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"scratch .* is only for outputs that are URLs"):
        run(source, tmp_path / "out.zarr", scratch=tmp_path)
