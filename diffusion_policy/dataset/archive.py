"""Datasets in a zip archive ("x.zarr.zip"), read in place: nothing is unpacked to disk.

Records are read by offset, so that threads and forked loader workers share one open file without sharing a position in
it, and each record that is read completely is compared with its CRC-32.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)

from diffusion_policy.dataset.errors import DatasetError

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype

_LOCAL_HEADER, _SIGNATURE, _ENCRYPTED = struct.Struct("<4s22xHH"), b"PK\3\4", 1
# Most bytes that a deflated byte unpacks to.
_MOST_DEFLATED, _LEAST = 1032, 64
_METADATA = (".zgroup", ".zattrs", ".zarray", ".zmetadata", "zarr.json")
# The attributes hold the ledger of the conversion: a kilobyte per episode.
_LARGEST_METADATA = 2**28
# A group has one of these, depending on its format.
ROOT_METADATA = (".zgroup", "zarr.json")


class Archive:
    """A zip archive of a dataset, open for reading.

    Attributes:
        path: of the archive.
        sizes: unpacked bytes of each record, by name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                records = [record for record in archive.infolist() if not record.is_dir()]
        except (zipfile.BadZipFile, struct.error, UnicodeDecodeError, NotImplementedError) as error:
            raise DatasetError(f"{path}: a damaged or truncated zip archive ({error}); copy it again") from error
        self._records = {record.filename: record for record in records}
        if len(self._records) < len(records):
            names = [record.filename for record in records]
            twice = next(name for name in names if names.count(name) > 1)
            raise DatasetError(f"{path}: its record {twice} occurs twice; pack it again")
        outside = [name for name in self._records if not _is_within(name)]
        if outside:
            raise DatasetError(f"{path}: its record {outside[0]!r} has a name that leads out of it; it is not read")
        self._check_sizes(path.stat().st_size)
        self.sizes = {name: record.file_size for name, record in self._records.items()}
        self._file = path.open("rb")

    def _check_sizes(self, n_bytes: int) -> None:
        """Refuse sizes in the directory that the archive cannot have, and metadata too long for any dataset."""
        for name, record in self._records.items():
            packed, unpacked = record.compress_size, record.file_size
            most = packed if record.compress_type == zipfile.ZIP_STORED else _MOST_DEFLATED * packed + _LEAST
            if record.header_offset + packed > n_bytes or unpacked > most:
                raise DatasetError(
                    f"{self.path}: a damaged or truncated zip archive (its record {name} claims {packed} bytes, "
                    f"unpacked {unpacked}); copy it again"
                )
            if name.rpartition("/")[2] in _METADATA and unpacked > _LARGEST_METADATA:
                raise DatasetError(f"{self.path}: its record {name} has {unpacked} bytes; no metadata is that long")

    def __reduce__(self) -> tuple[type[Archive], tuple[Path]]:
        return Archive, (self.path,)

    def root(self) -> str:
        """The folder in the archive that is the dataset, at any depth; "" for the archive's root.

        Raises:
            DatasetError: no zarr group, or several on one level.
        """
        groups = {name.rpartition("/")[0] for name in self.sizes if name.rpartition("/")[2] in ROOT_METADATA}
        roots = sorted(group for group in groups if not any(above in groups for above in _above(group)))
        if len(roots) != 1:
            what = f"{len(roots)} zarr groups ({', '.join(roots[:3])})" if roots else "no zarr group"
            raise DatasetError(f"{self.path}: the archive holds {what}; expected one dataset, data/ and meta/ in it")
        return roots[0]

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """A record, or part of it; only whole records are compared with their CRC-32.

        Raises:
            KeyError: no such record.
            DatasetError: it is damaged, encrypted, or packed with an unsupported method.
        """
        record = self._records[name]
        where = f"{self.path}: its record {name}"
        if record.flag_bits & _ENCRYPTED or record.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DatasetError(f"{where} is encrypted or packed by another method than deflate; pack it again")
        header = os.pread(self._file.fileno(), _LOCAL_HEADER.size, record.header_offset)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(_SIGNATURE):
            raise DatasetError(f"{where} is damaged (no header); copy the archive again")
        _, n_name, n_extra = _LOCAL_HEADER.unpack(header)
        at = record.header_offset + _LOCAL_HEADER.size + n_name + n_extra
        whole = start == 0 and (end is None or end >= record.file_size)
        if not whole and record.compress_type == zipfile.ZIP_STORED:
            stop = record.file_size if end is None else min(end, record.file_size)
            return os.pread(self._file.fileno(), max(stop - start, 0), at + start)
        content = self._unpacked(os.pread(self._file.fileno(), record.compress_size, at), record, where)
        return content if whole else content[start:end]

    def _unpacked(self, packed: bytes, record: zipfile.ZipInfo, where: str) -> bytes:
        content = packed
        if record.compress_type == zipfile.ZIP_DEFLATED:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, record.file_size + 1)
            except zlib.error as error:
                raise DatasetError(f"{where} does not unpack ({error}); copy the archive again") from error
        if len(content) != record.file_size or zlib.crc32(content) != record.CRC:
            raise DatasetError(f"{where} fails its CRC-32: it is damaged; copy the archive again")
        return content


class ArchiveStore(Store):
    """An archive's records as a read-only zarr store."""

    supports_writes = False
    supports_deletes = False
    supports_partial_writes = False
    supports_listing = True

    def __init__(self, archive: Archive) -> None:
        super().__init__(read_only=True)
        self.archive = archive

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArchiveStore) and other.archive.path == self.archive.path

    def __hash__(self) -> int:
        return hash(self.archive.path)

    def __str__(self) -> str:
        return str(self.archive.path)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The content of a record, or the requested part; None if it does not exist."""
        size = self.archive.sizes.get(key)
        if size is None:
            return None
        return prototype.buffer.from_bytes(self.archive.read(key, *_bounds(byte_range, size)))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Like `get`, for several records."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Whether there is such a record."""
        return key in self.archive.sizes

    async def list(self) -> AsyncIterator[str]:
        """All names."""
        for name in self.archive.sizes:
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Names with this prefix."""
        for name in self.archive.sizes:
            if name.startswith(prefix):
                yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names within a folder, one level."""
        begin = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        for child in {name[len(begin) :].split("/", 1)[0] for name in self.archive.sizes if name.startswith(begin)}:
            yield child

    async def set(self, key: str, value: Buffer) -> None:
        """Refused."""
        raise DatasetError(f"{self.archive.path}: an archive is only read; unpack it to change it")

    async def delete(self, key: str) -> None:
        """Refused."""
        raise DatasetError(f"{self.archive.path}: an archive is only read; unpack it to change it")

    async def set_partial_values(self, key_start_values: Iterable[Any]) -> None:
        """Refused."""
        raise DatasetError(f"{self.archive.path}: an archive is only read; unpack it to change it")


def _above(folder: str) -> list[str]:
    """The folders above a folder; the archive's root is ""."""
    parts = folder.split("/") if folder else []
    return ["/".join(parts[:n]) for n in range(len(parts))]


def _is_within(name: str) -> bool:
    return not name.startswith("/") and "\\" not in name and ":" not in name and ".." not in name.split("/")


def _bounds(byte_range: ByteRequest | None, size: int) -> tuple[int, int | None]:
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.start, byte_range.end
    if isinstance(byte_range, OffsetByteRequest):
        return byte_range.offset, None
    if isinstance(byte_range, SuffixByteRequest):
        return max(size - byte_range.suffix, 0), None
    return 0, None
