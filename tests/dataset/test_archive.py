"""Datasets in a zip archive, as is usual for published ones: read in place, never unpacked, refused by record."""

import multiprocessing
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_factory import SHAPE_META, pack, rows, write

from diffusion_policy.dataset.archive import Archive, ArchiveStore
from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.dataset.errors import DatasetError
from diffusion_policy.dataset.frame_files import FrameFiles
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.diagnose.inspection import inspect_dataset

FORMS = ("format 2", "format 3", "shards", "jpeg", "of another writer")


def training(path: Path, **options: str) -> CogActImageDataset:
    return CogActImageDataset(SHAPE_META, str(path), 4, 1, 3, 2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("top", ["", "replay.zarr"])
def test_an_archive_reads_as_its_folder(tmp_path: Path, form: str, method: int, top: str) -> None:
    folder = write(tmp_path / "set.zarr", form)
    archive = pack(folder, tmp_path / "set.zarr.zip", method, top)
    here, there = ReplayBuffer.open(folder), ReplayBuffer.open(archive)
    assert there.keys == here.keys
    assert there.semantics == here.semantics
    for key in here.keys:
        np.testing.assert_array_equal(there.read(key), here.read(key))
    np.testing.assert_array_equal(FrameFiles(there["wrist"]).read(3, 9), FrameFiles(here["wrist"]).read(3, 9))
    torch.testing.assert_close(training(archive).get_batch([0, 9]), training(folder).get_batch([0, 9]), rtol=0, atol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.zarr", "set.zarr.zip"], "nothing is unpacked"


def test_the_checks_read_an_archive(tmp_path: Path) -> None:
    folder = write(tmp_path / "set.zarr", "format 2")
    archive = pack(folder, tmp_path / "set.zarr.zip")
    found = [[(f.code, f.severity) for f in inspect_dataset(path).findings] for path in (folder, archive)]
    assert found[0] == found[1]


@pytest.mark.parametrize("cache", ["memory", "mmap"])
def test_an_archive_is_cached_anew_when_it_changes(tmp_path: Path, cache: str) -> None:
    archive = pack(write(tmp_path / "a.zarr", "of another writer"), tmp_path / "set.zarr.zip")
    first = training(archive, cache=cache).get_batch([4])["obs"]["image"]
    torch.testing.assert_close(training(archive, cache=cache).get_batch([4])["obs"]["image"], first, rtol=0, atol=0)
    other = write(tmp_path / "b.zarr", "of another writer")
    frames = ReplayBuffer.open(other, mode="r+")["image"]
    frames[:] = 255 - rows()["image"]
    pack(other, archive)
    assert not torch.equal(training(archive, cache=cache).get_batch([4])["obs"]["image"], first)


def _read_many(buffer: ReplayBuffer, seed: int) -> None:
    files, expected = FrameFiles(buffer["image"]), rows()["image"]
    for row in np.random.default_rng(seed).integers(0, 20, 200):
        np.testing.assert_array_equal(files.read(row, row + 1)[0], expected[row])


def test_forked_workers_do_not_disturb_one_another(tmp_path: Path) -> None:
    """They share the open file but must not share a position in it."""
    buffer = ReplayBuffer.open(pack(write(tmp_path / "set.zarr", "format 2"), tmp_path / "set.zarr.zip"))
    workers = [multiprocessing.get_context("fork").Process(target=_read_many, args=(buffer, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]


def test_an_archive_travels_to_spawned_workers(tmp_path: Path) -> None:
    store = ArchiveStore(Archive(pack(write(tmp_path / "set.zarr", "format 2"), tmp_path / "set.zarr.zip")))
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert copy.archive.read(".zgroup") == store.archive.read(".zgroup")


@pytest.mark.parametrize(
    "name", ["data/action/0.0", "data/robot_eef_pose/0.0", "meta/episode_ends/0", "data/action/.zarray"]
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_record_is_refused_by_name(tmp_path: Path, name: str, method: int) -> None:
    archive = pack(write(tmp_path / "set.zarr", "format 2"), tmp_path / "set.zarr.zip", method)
    flip(archive, name)
    with pytest.raises(DatasetError, match=f"its record {name} (fails its CRC-32|does not unpack)"):
        training(archive)


def flip(archive: Path, name: str) -> None:
    """Changes a byte in the middle of a record's content."""
    with zipfile.ZipFile(archive) as packed:
        record = packed.getinfo(name)
    content = bytearray(archive.read_bytes())
    n_name, n_extra = struct.unpack("<HH", content[record.header_offset + 26 : record.header_offset + 30])
    content[record.header_offset + 30 + n_name + n_extra + record.compress_size // 2] ^= 0x55
    archive.write_bytes(bytes(content))


@pytest.mark.parametrize("form", ["format 2", "jpeg"])
def test_a_damaged_frame_is_refused_when_it_is_read_and_found_by_the_checks(tmp_path: Path, form: str) -> None:
    archive = pack(write(tmp_path / "set.zarr", form), tmp_path / "set.zarr.zip")
    flip(archive, "data/image/7.0.0.0")
    with pytest.raises(DatasetError, match=r"its record data/image/7\.0\.0\.0 fails its CRC-32"):
        training(archive).get_batch(range(12))
    inspection = inspect_dataset(archive)
    assert inspection.exit_status == 1
    assert any("7.0.0.0 fails its CRC-32" in finding.evidence for finding in inspection.findings)


def without(archive: Path, name: str) -> Path:
    kept = archive.with_name("kept.zarr.zip")
    with zipfile.ZipFile(archive) as packed, zipfile.ZipFile(kept, "w") as repacked:
        for record in packed.infolist():
            if record.filename != name:
                repacked.writestr(record.filename, packed.read(record))
    return kept


@pytest.mark.parametrize("name", ["data/wrist/7.0.0.0", "data/action/0.0", "meta/episode_ends/0"])
def test_a_lost_record_is_refused_by_name(tmp_path: Path, name: str) -> None:
    archive = pack(write(tmp_path / "set.zarr", "format 2"), tmp_path / "set.zarr.zip")
    with pytest.raises(DatasetError, match=f"kept.zarr.zip/{name} .*does not exist") as caught:
        training(without(archive, name))
    assert "write the zeros" not in str(caught.value)


def twice(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as packed, pytest.warns(UserWarning, match="Duplicate name"):
        packed.writestr("data/action/0.0", b"x")


def no_dataset(archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("readme.txt", b"x")


def two_datasets(archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as packed:
        for top in ("a.zarr", "b.zarr"):
            packed.writestr(f"{top}/.zgroup", b'{"zarr_format": 2}')


def another_method(archive: Path) -> None:
    pack(archive.with_name("set.zarr"), archive, zipfile.ZIP_BZIP2)


def bomb(archive: Path) -> None:
    """A record of 8 GB packed into kilobytes, where 13 kB are expected; its header states its size."""
    kept = without(archive, "data/image/7.0.0.0")
    kept.replace(archive)
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("data/image/7.0.0.0", bytes(2**26))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda archive: archive.write_bytes(archive.read_bytes()[:-300]), "a damaged or truncated zip archive"),
    "empty": (lambda archive: archive.write_bytes(b""), "a damaged or truncated zip archive"),
    "text": (
        lambda archive: archive.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "a damaged or truncated zip",
    ),
    "a record twice": (twice, "its record data/action/0.0 occurs twice"),
    "no dataset": (no_dataset, "holds no zarr group; expected one dataset"),
    "two datasets": (two_datasets, r"holds 2 zarr groups \(a.zarr, b.zarr\)"),
    "another method": (another_method, "packed by another method than deflate"),
    "a bomb": (bomb, "7.0.0.0 has 67108864 bytes, more than its numbers can take"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_an_archive_of_a_dataset(tmp_path: Path, name: str) -> None:
    archive = pack(write(tmp_path / "set.zarr", "format 2"), tmp_path / "set.zarr.zip")
    change, message = REFUSED[name]
    change(archive)
    with pytest.raises(DatasetError, match=message):
        training(archive)


@pytest.mark.parametrize(
    "name", ["../outside", "/tmp/outside", "data/../../outside", "C:\\outside", "data\\..\\outside"]
)
def test_names_that_lead_out_of_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    archive = pack(write(tmp_path / "in" / "set.zarr", "format 2"), tmp_path / "in" / "set.zarr.zip")
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr(name, b"x")
    with pytest.raises(DatasetError, match="has a name that leads out of it"):
        training(archive)
    assert not list(tmp_path.glob("outside*"))


def test_an_archive_is_only_read(tmp_path: Path) -> None:
    archive = pack(write(tmp_path / "set.zarr", "format 2"), tmp_path / "set.zarr.zip")
    with pytest.raises(DatasetError, match="an archive is only read"):
        ReplayBuffer.open(archive, mode="r+")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DatasetError, match="a file, but not a zip archive"):
        ReplayBuffer.open(tmp_path / "notes.txt")
