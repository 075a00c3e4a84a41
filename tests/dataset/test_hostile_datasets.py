"""Malicious zarr datasets, in a folder and in a zip: one sentence, no code run, no memory filled."""

import bz2
import gzip
import json
import lzma
import pickle
import resource
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
import zarr_factory
from dataset_factory import pack, write

from diffusion_policy.dataset.archive import Archive
from diffusion_policy.dataset.errors import DatasetError
from diffusion_policy.dataset.limits import unpacked_size
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.recording import open_recordings

Harm = Callable[[Path], None]
# Memory that refusing one may take, kilobytes.
MEMORY_KB = 300_000


def array(key: str = "robot0_eef_pos", **entries: Any) -> Harm:
    """Replaces entries of an array's metadata."""

    def harm(root: Path) -> None:
        file = root / "data" / key / ".zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))

    return harm


def chunk(content: bytes, key: str = "robot0_eef_pos", **entries: Any) -> Harm:
    """Replaces the first chunk, and its codec."""

    def harm(root: Path) -> None:
        (root / "data" / key / "0.0").write_bytes(content)
        array(key, **entries)(root)

    return harm


def frames_without_end(root: Path) -> None:
    """Only a camera, with an episode of this length."""
    for other in (root / "data").glob("robot0_*"):
        shutil.rmtree(other)
    shutil.rmtree(root / "meta" / "episode_ends")
    zarr.open_group(str(root / "meta"), mode="r+").create_array("episode_ends", data=np.asarray([10**13]))
    array("camera0_rgb", shape=[10**13, 20, 24, 3])(root)


class Touch:
    """A program in a pickle."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (CANARY,)


CANARY = Path("/tmp/canary-of-hostile-datasets")
N = 2**23
BOMB = bytes(N)
HARM: dict[str, tuple[Harm, str]] = {
    "rows without end": (array(shape=[10**13, 3]), "bytes of numbers"),
    "frames without end": (frames_without_end, "does not exist, nor are .* others of its 2500000000000"),
    "rows beyond any number": (array(shape=[10**30, 3], chunks=[10**29, 3]), "metadata is damaged|at most"),
    "columns without end": (array(shape=[21, 10**12], chunks=[4, 10**12]), "at most 2147483648 are unpacked"),
    "a chunk of terabytes": (array(shape=[10**12, 3], chunks=[10**12, 3]), "at most 2147483648 are unpacked"),
    "numbers of terabytes": (array(shape=[10**12, 3], chunks=[10**8, 3]), "bytes of numbers|does not exist"),
    "no rows in a chunk": (array(chunks=[0, 3]), "metadata is damaged|has chunks of 0"),
    "less than no rows": (array(shape=[-21, 3]), "metadata is damaged"),
    "many axes": (array(shape=[1] * 60, chunks=[1] * 60), "metadata is damaged|has chunks of"),
    "a program as codec": (
        chunk(pickle.dumps(Touch()), compressor={"id": "pickle", "protocol": 4}),
        "metadata is damaged|is packed with 'pickle'",
    ),
    "a program as filter": (
        chunk(pickle.dumps(Touch()), compressor=None, filters=[{"id": "pickle", "protocol": 4}]),
        "metadata is damaged|is packed with 'pickle'",
    ),
    "objects": (
        chunk(pickle.dumps(Touch()), dtype="|O", compressor=None, fill_value=None,
              filters=[{"id": "pickle", "protocol": 4}]), "metadata is damaged|not numbers|is packed with",
    ),
    "an unknown codec": (array(compressor={"id": "no such"}), "metadata is damaged"),
    "deep metadata": (
        lambda root: (root / "data" / "robot0_eef_pos" / ".zarray").write_text("[" * 10**5 + "]" * 10**5),
        "metadata is damaged",
    ),
    "a bomb of blosc": (chunk(numcodecs.Blosc().encode(BOMB)), f"claims to unpack to {N} bytes instead of 48"),
    "a bomb of lz4": (
        chunk(numcodecs.LZ4().encode(BOMB), compressor={"id": "lz4", "acceleration": 1}), f"unpack to {N} bytes"
    ),
    "a bomb of zstd": (
        chunk(numcodecs.Zstd().encode(BOMB), compressor={"id": "zstd", "level": 1}), f"unpack to {N} bytes"
    ),
    "episodes without end": (
        lambda root: array("../meta/episode_ends", shape=[10**13])(root), "not there, nor|at most|bytes of numbers"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def umi_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zarr_factory.write(tmp_path_factory.mktemp("set") / "umi.zarr", zarr_factory.umi_arrays())


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("name", HARM)
def test_harm_is_refused_in_one_sentence(umi_folder: Path, tmp_path: Path, name: str, packed: bool) -> None:
    harm, message = HARM[name]
    root = copied(umi_folder, tmp_path / "set.zarr")
    harm(root)
    source = pack(root, tmp_path / "set.zarr.zip") if packed else root
    CANARY.unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DatasetError, match=message) as caught:
        ReplayBuffer.open(source)
    with pytest.raises(WorkspaceError):
        open_recordings(source, mapping="umi_zarr")
    assert "\n" not in str(caught.value)
    assert not CANARY.exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_KB


STREAMS = {
    "zlib": (zlib.compress, {"id": "zlib", "level": 1}),
    "gzip": (gzip.compress, {"id": "gzip", "level": 1}),
    "bz2": (bz2.compress, {"id": "bz2", "level": 1}),
    "lzma": (lzma.compress, {"id": "lzma", "format": 1, "check": -1, "preset": None, "filters": None}),
}


@pytest.mark.parametrize("codec", STREAMS)
def test_streams_unpack_to_no_more_than_any_chunk_has(
    umi_folder: Path, tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_policy.dataset.bounded_codecs.LARGEST_CHUNK", 2**16)
    compress, configuration = STREAMS[codec]
    content = np.zeros((4, 3), dtype=np.float32).tobytes()
    root = copied(umi_folder, tmp_path / "set.zarr")
    file = root / "data" / "robot0_eef_pos" / "0.0"
    for number in range(6):
        file.with_name(f"{number}.0").write_bytes(compress(content))
    array(compressor=configuration)(root)
    assert not ReplayBuffer.open(root).read("robot0_eef_pos").any()
    file.write_bytes(compress(bytes(2**20)))
    with pytest.raises(DatasetError, match=r"robot0_eef_pos/0\.0 does not unpack|more than its numbers can take"):
        ReplayBuffer.open(root).read("robot0_eef_pos")


def format_3(root: Path, codec: Any, **options: Any) -> Path:
    """An episode of six steps in format 3, packed with this codec."""
    group = zarr.open_group(str(root), mode="w", zarr_format=3)
    pose = np.ones((6, 4), dtype=np.float32)
    group.create_group("data").create_array("action", data=pose, chunks=(2, 4), compressors=codec, **options)
    group.create_group("meta").create_array("episode_ends", data=np.array([6]), chunks=(1,))
    return root


@pytest.mark.parametrize("options", [{}, {"shards": (6, 4)}], ids=["chunks", "shards"])
def test_so_do_those_of_format_3(tmp_path: Path, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root = format_3(tmp_path / "set.zarr", zarr.codecs.GzipCodec(), **options)
    assert ReplayBuffer.open(root).read("action").all()
    monkeypatch.setattr("diffusion_policy.dataset.bounded_codecs.LARGEST_CHUNK", 31)
    with pytest.raises(DatasetError, match=r"data/action.* more than 31 bytes"):
        ReplayBuffer.open(root).read("action")


@pytest.mark.parametrize("codec", [zarr.codecs.ZstdCodec(), zarr.codecs.BloscCodec(cname="lz4")], ids=["zstd", "blosc"])
def test_a_bomb_in_format_3_is_recognized_by_its_header(tmp_path: Path, codec: Any) -> None:
    root = format_3(tmp_path / "set.zarr", codec)
    ReplayBuffer.open(root)
    packer = numcodecs.Zstd(1) if isinstance(codec, zarr.codecs.ZstdCodec) else numcodecs.Blosc()
    (root / "data" / "action" / "c" / "0" / "0").write_bytes(packer.encode(BOMB))
    with pytest.raises(DatasetError, match=f"claims to unpack to {N} bytes instead of 32"):
        ReplayBuffer.open(root)


@pytest.mark.parametrize("n", [1, 200, 255, 256, 300, 65_791, 65_792, 70_000, 2**24])
@pytest.mark.parametrize("codec", [numcodecs.Blosc(), numcodecs.LZ4(), numcodecs.Zstd(1)], ids=lambda one: one.codec_id)
def test_the_first_bytes_say_what_a_chunk_unpacks_to(codec: Any, n: int) -> None:
    packed = bytes(codec.encode(np.arange(n, dtype=np.uint8)))
    assert unpacked_size(codec.codec_id, packed[:18]) in (n, None)
    assert unpacked_size(codec.codec_id, packed[:18]) == n or codec.codec_id == "zstd"


# ---- the archive ----


def directory(record: str, **fields: int) -> Harm:
    """Changes numbers in a record's entry in the archive's central directory."""
    at = {"flags": (8, "<H"), "packed": (20, "<I"), "unpacked": (24, "<I"), "offset": (42, "<I")}

    def harm(archive: Path) -> None:
        content = bytearray(archive.read_bytes())
        entry = content.rindex(b"PK\1\2", 0, content.rindex(record.encode()))
        for field, value in fields.items():
            struct.pack_into(at[field][1], content, entry + at[field][0], value)
        archive.write_bytes(bytes(content))

    return harm


def again(name: str, content: bytes = b"{}", method: int = zipfile.ZIP_STORED) -> Harm:
    """Adds one more record."""

    def harm(archive: Path) -> None:
        with zipfile.ZipFile(archive, "a", method) as packed:
            packed.writestr(name, content)

    return harm


def large_attributes(archive: Path) -> None:
    archive.unlink()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(".zgroup", '{"zarr_format": 2}')
        with packed.open(".zattrs", "w") as file:
            for _ in range(40):
                file.write(BOMB)


CHUNK = "data/action/0.0"
ARCHIVES: dict[str, tuple[Harm, str]] = {
    "a path out of it": (again("../../outside"), "has a name that leads out of it"),
    "an absolute path": (again("/outside"), "has a name that leads out of it"),
    "a path of Windows": (again("C:\\outside"), "has a name that leads out of it"),
    "encrypted": (directory(CHUNK, flags=1), "is encrypted"),
    "more than is there": (directory(CHUNK, packed=2**31, unpacked=2**31), "claims 2147483648 bytes"),
    "beyond its end": (directory(CHUNK, offset=2**31 - 10), "a damaged or truncated zip archive"),
    "stored, yet larger": (directory(CHUNK, unpacked=2**31), "unpacked 2147483648"),
    "metadata without end": (large_attributes, "no metadata is that long"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_archive_is_refused(tmp_path: Path, name: str) -> None:
    archive = pack(write(tmp_path / "in" / "set.zarr", "format 2"), tmp_path / "set.zarr.zip")
    harm, message = ARCHIVES[name]
    harm(archive)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DatasetError, match=message):
        ReplayBuffer.open(archive).read("action")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_KB
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "set.zarr.zip"]


def test_a_whole_archive_is_not_damaged(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        archive = pack(write(tmp_path / str(method) / "set.zarr", "format 2"), tmp_path / "set.zarr.zip", method)
        assert Archive(archive).root() == ""
        assert ReplayBuffer.open(archive).n_episodes == 2
