"""Every file of a dataset must be there: a missing chunk reads as zeros, and a truncated one may not read at all.

Whenever a dataset is opened, a listing and a few bytes of each file are checked: that each chunk has its
file, that raw chunks have their size, that Blosc chunks are as long as their header says, and that the index of a shard
has its CRC-32C and names all of its chunks. Faults that only decoding shows are found when chunks are decoded
(`verification` decodes all).
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from diffusion_policy.dataset.archive import Archive
from diffusion_policy.dataset.image_codecs import ImageChunkCodec
from diffusion_policy.dataset.limits import HEADER, unpacked_size
from diffusion_policy.paths import file_system

# Bytes of a Blosc header; at offset 12 is the length of the whole chunk (little-endian).
_BLOSC_HEADER, _BLOSC_LENGTH = 16, slice(12, 16)
_ABSENT = np.uint64(2**64 - 1)
# Codecs whose bytes begin with their unpacked size.
_SAYS_SIZE = ("blosc", "lz4", "zstd")
# Codecs whose bytes end with a marker; without it they are still read, and the rest is filled with gray.
_MARKED, _END_OF_IMAGE = ("imagecodecs_jpeg", "imagecodecs_jpeg2k"), b"\xff\xd9"
# A packed chunk may be somewhat larger than its pixels, never this many times.
_LARGEST = 4
_NOT_THERE = "does not exist"
# Most missing files of one array that are listed.
_MOST_ABSENT = 100_000


@dataclass(frozen=True)
class ChunkFault:
    """A missing or damaged file of an array.

    Attributes:
        key: of the array within its group, such as "image".
        file: name of the file within the dataset.
        what: what is wrong with it.
        rows: (first, exclusive end) of the array's rows that it holds.
        is_absent: whether the file does not exist at all.
    """

    key: str
    file: str
    what: str
    rows: tuple[int, int]
    is_absent: bool = False

    @property
    def array(self) -> str:
        """Path of the array within the dataset."""
        return self.file[: self.file.index(f"/{self.key}/") + len(self.key) + 1]


class Files(Protocol):
    """The files of a dataset, by name within it."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each file below a folder, by name relative to it."""

    are_at_hand: bool
    """Whether reading a few bytes of every file is cheap; if not, only those of shards are read."""

    def beginnings(self, names: Sequence[str], n: int) -> Iterable[bytes]:
        """The first n bytes of each."""

    def endings(self, names: Sequence[str], n: int) -> Iterable[bytes]:
        """The last n bytes of each."""


class LocalFiles:
    """The files of a local folder."""

    are_at_hand = True

    def __init__(self, root: Path) -> None:
        self.root = root

    def sizes(self, folder: str) -> dict[str, int]:
        """See `Files`; a broken link does not count as a file."""
        result: dict[str, int] = {}
        waiting = [(str(self.root / folder), "")]
        while waiting:
            path, prefix = waiting.pop()
            try:
                entries = os.scandir(path)
            except FileNotFoundError:
                continue
            with entries:
                for entry in entries:
                    if entry.is_dir():
                        waiting.append((entry.path, f"{prefix}{entry.name}/"))
                    elif entry.is_file():
                        result[prefix + entry.name] = entry.stat().st_size
        return result

    def beginnings(self, names: Sequence[str], n: int) -> Iterator[bytes]:
        """See `Files`."""
        return (self._read(name, lambda file: os.read(file, n)) for name in names)

    def endings(self, names: Sequence[str], n: int) -> Iterator[bytes]:
        """See `Files`."""
        return (self._read(name, lambda file: os.pread(file, n, max(os.fstat(file).st_size - n, 0))) for name in names)

    def _read(self, name: str, part: Any) -> bytes:
        file = os.open(f"{self.root}/{name}", os.O_RDONLY)
        try:
            content: bytes = part(file)
            return content
        finally:
            os.close(file)


class RemoteFiles:
    """The files of an object store: one listing, and ranges of many objects at once."""

    are_at_hand = False

    def __init__(self, root: Path) -> None:
        self._store, self._root = file_system(root)

    def sizes(self, folder: str) -> dict[str, int]:
        """See `Files`."""
        path = f"{self._root}/{folder}"
        details = self._store.find(path, detail=True)
        return {name.removeprefix(f"{path}/"): int(entry["size"]) for name, entry in details.items()}

    def beginnings(self, names: Sequence[str], n: int) -> Iterable[bytes]:
        """See `Files`."""
        paths = [f"{self._root}/{name}" for name in names]
        result: list[bytes] = self._store.cat_ranges(paths, [0] * len(paths), [n] * len(paths))
        return result

    def endings(self, names: Sequence[str], n: int) -> Iterable[bytes]:
        """See `Files`."""
        paths = [f"{self._root}/{name}" for name in names]
        result: list[bytes] = self._store.cat_ranges(paths, [-n] * len(paths), [None] * len(paths))
        return result


class ArchiveFiles:
    """The files of a zip archive, whose records have their own checksums."""

    are_at_hand = False

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def sizes(self, folder: str) -> dict[str, int]:
        """See `Files`."""
        begin = f"{folder}/"
        return {name[len(begin) :]: n for name, n in self._archive.sizes.items() if name.startswith(begin)}

    def beginnings(self, names: Sequence[str], n: int) -> Iterator[bytes]:
        """See `Files`."""
        return (self._archive.read(name, 0, n) for name in names)

    def endings(self, names: Sequence[str], n: int) -> Iterator[bytes]:
        """See `Files`."""
        return (self._archive.read(name, max(self._archive.sizes[name] - n, 0)) for name in names)


def chunk_faults(array: zarr.Array[Any], files: Files) -> list[ChunkFault]:
    """Faults of an array's files, as far as a listing and a few bytes of each show them."""
    per_file = array.shards or array.chunks
    grid = [math.ceil(n / size) for n, size in zip(array.shape, per_file, strict=True)]
    sizes, folder = files.sizes(array.path), array.path
    faults: list[ChunkFault] = []
    n_files = math.prod(grid)
    if n_files > len(sizes) + _MOST_ABSENT:  # listing them all would take forever
        first = (tuple(map(int, np.unravel_index(i, grid))) for i in range(len(sizes) + 1))
        absent = next(at for at in first if array.metadata.encode_chunk_key(at) not in sizes)
        others = f"{_NOT_THERE}, nor are {n_files - len(sizes) - 1} or more others of its {n_files}"
        return [_fault(array, per_file, array.metadata.encode_chunk_key(absent), absent, others)]
    there: list[tuple[str, tuple[int, ...]]] = []
    exact, most = _expected_size(array, per_file)
    for at in itertools.product(*map(range, grid)):
        name = array.metadata.encode_chunk_key(at)
        size = sizes.get(name)
        what = _of_size(size, exact, most)
        if what is None:
            there.append((name, at))
        else:
            faults.append(_fault(array, per_file, name, at, what))
    names = [f"{folder}/{name}" for name, _ in there]
    for (name, at), what in zip(there, _looked_inside(array, files, names, sizes, there), strict=True):
        if what is not None:
            faults.append(_fault(array, per_file, name, at, what))
    return faults


def _fault(array: zarr.Array[Any], per_file: tuple[int, ...], name: str, at: tuple[int, ...], what: str) -> ChunkFault:
    first = at[0] * per_file[0] if at else 0
    end = min(first + per_file[0], array.shape[0]) if at else 0
    return ChunkFault(array.basename, f"{array.path}/{name}", what, (first, end), what == _NOT_THERE)


def _expected_size(array: zarr.Array[Any], per_file: tuple[int, ...]) -> tuple[int | None, int]:
    """Bytes of a file of raw numbers (None if they are packed), and the most bytes that any file may have."""
    raw = math.prod(per_file) * array.dtype.itemsize
    is_raw = not array.compressors and not array.filters and array.shards is None
    is_raw = is_raw and (array.metadata.zarr_format == 2 or isinstance(array.serializer, BytesCodec))
    return (raw if is_raw else None), _LARGEST * raw + 2**16 + 64 * math.prod(per_file[:1])


def _of_size(size: int | None, exact: int | None, most: int) -> str | None:
    if size is None:
        return _NOT_THERE
    if size == 0:
        return "is empty"
    if exact is not None and size != exact:
        return f"has {size} bytes instead of {exact}"
    return f"has {size} bytes, more than its numbers can take" if size > most else None


def _looked_inside(
    array: zarr.Array[Any],
    files: Files,
    names: Sequence[str],
    sizes: dict[str, int],
    there: Sequence[tuple[str, tuple[int, ...]]],
) -> Iterator[str | None]:
    """For each file that exists, the fault that its first or last bytes show."""
    if array.shards is not None:
        yield from _shards(array, files, names, sizes, there)
        return
    codec = _codec_name(array)
    if codec in _SAYS_SIZE and (files.are_at_hand or isinstance(files, ArchiveFiles)):
        raw = None if array.filters else math.prod(array.chunks) * array.dtype.itemsize
        for (name, _), header in zip(there, files.beginnings(names, HEADER), strict=True):
            yield _of_header(codec, header, sizes[name], raw)
    elif codec in _MARKED and files.are_at_hand:
        for ending in files.endings(names, len(_END_OF_IMAGE)):
            yield None if ending == _END_OF_IMAGE else "is truncated"
    else:
        yield from itertools.repeat(None, len(names))


def _of_header(codec: str, header: bytes, size: int, raw: int | None) -> str | None:
    """The fault that a chunk's first bytes show: in its length, or its unpacked size."""
    length = int.from_bytes(header[_BLOSC_LENGTH], "little")
    if codec == "blosc" and (len(header) < _BLOSC_HEADER or length != size):
        return f"has {size} bytes, its header says {length}"
    unpacked = unpacked_size(codec, header)
    if raw is not None and unpacked is not None and unpacked != raw:
        return f"claims to unpack to {unpacked} bytes instead of {raw}"
    return None


def _codec_name(array: zarr.Array[Any]) -> str:
    """The codec that packs each chunk, by its numcodecs name; empty if there is none, or several."""
    if len(array.compressors) == 1:
        codec = array.compressors[0]
        if isinstance(codec, ZstdCodec):
            return "zstd"
        return "blosc" if isinstance(codec, numcodecs.Blosc | BloscCodec) else str(getattr(codec, "codec_id", ""))
    serializer = array.serializer if array.metadata.zarr_format == 3 else None
    is_image = isinstance(serializer, ImageChunkCodec) and not array.compressors
    return str(serializer.configuration["id"]) if is_image else ""  # type: ignore[union-attr]


def _shards(
    array: zarr.Array[Any],
    files: Files,
    names: Sequence[str],
    sizes: dict[str, int],
    there: Sequence[tuple[str, tuple[int, ...]]],
) -> Iterator[str | None]:
    """The fault that each shard's index (offset and length of each chunk, then their CRC-32C) shows."""
    codec, shards = array.metadata.codecs[0], array.shards or ()  # type: ignore[union-attr]
    if not isinstance(codec, ShardingCodec) or [type(one) for one in codec.index_codecs] != [BytesCodec, Crc32cCodec]:
        yield from itertools.repeat(None, len(names))
        return
    inner = [n // size for n, size in zip(shards, array.chunks, strict=True)]
    n_bytes = 16 * math.prod(inner) + 4
    is_last = str(codec.index_location.value) == "end"
    indexes = files.endings(names, n_bytes) if is_last else files.beginnings(names, n_bytes)
    for (name, at), index in zip(there, indexes, strict=True):
        if len(index) < n_bytes:
            yield f"has {len(index)} bytes, fewer than its index"
            continue
        if google_crc32c.value(index[:-4]) != int.from_bytes(index[-4:], "little"):
            yield "is truncated, or its index is damaged: it fails its CRC-32C"
            continue
        entries = np.frombuffer(index[:-4], dtype="<u8").reshape(*inner, 2)
        needed = tuple(
            slice(0, math.ceil((length - number * n) / size))
            for length, number, n, size in zip(array.shape, at, shards, array.chunks, strict=True)
        )
        absent = (entries[needed] == _ABSENT).all(axis=-1)
        rows = sizes[name] - n_bytes * is_last
        beyond = ~absent & ((entries[needed] > rows).any(axis=-1) | (entries[needed].sum(axis=-1) > rows))
        if absent.any():
            yield f"lacks {int(absent.sum())} of its {absent.size} chunks"
        else:
            yield f"is truncated: {int(beyond.sum())} of its chunks are beyond its end" if beyond.any() else None
