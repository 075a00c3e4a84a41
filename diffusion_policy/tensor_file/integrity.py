"""Integrity of files: compares their bytes with a zip archive's CRC-32 or a recorded SHA-256.

After an incomplete copy or on a failing disk, sizes and names can be right while numbers are wrong. A zip archive
contains a CRC-32 of each record, which is compared whenever weights are read. safetensors has no checksum, so a SHA-256
recorded in another file of the folder is used. Bytes are read, not memory-mapped: a bad sector then raises an error
instead of ending the process, and checking takes no memory.
"""

from __future__ import annotations

import json
import logging
import os
import re
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from diffusion_policy.cpu import usable_cores
from diffusion_policy.storage import file_sha256
from diffusion_policy.tensor_file.opened import TensorFileError, sha256_of_shards

logger = logging.getLogger(__name__)

BLOCK = 2**18
SHARE = 8 * 2**20  # bytes per task of a thread
MAX_SIDECAR_BYTES = 64 * 2**20
# More threads than this would be limited by memory bandwidth.
MAX_THREADS = 4
NAMED = 3
REMEDY = "copy or download the file again, or take another checkpoint of the run"

_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_SUMS = ("SHA256SUMS", "SHA256SUMS.txt", "sha256sums.txt", "sha256sum.txt", "checksums.sha256")


@dataclass(frozen=True)
class Record:
    """One record of a zip archive: offset and size of its bytes, and its CRC-32 in the archive's directory."""

    name: str
    at: int
    size: int
    crc: int


class Records:
    """The records of an archive. Each is checked once, when its bytes are first read.

    Args:
        file: the archive; it is kept open, since another file may take its name in the meantime.
        where: its name, for messages.
        records: by name.
    """

    def __init__(self, file: BinaryIO, where: str, records: Mapping[str, Record]) -> None:
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self.where = where
        self.by_name = dict(records)
        self._pending = {name: record for name, record in records.items() if record.size}
        # PyTorch leaves the field 0 in every record when asked not to compute it (`set_crc32_options(False)`).
        self.has_checksums = not self._pending or any(record.crc for record in self._pending.values())

    def read(self, name: str, limit: int) -> bytes:
        """The first `limit` bytes of a record, after the record was checked.

        Raises:
            TensorFileError: it cannot be read, or is damaged.
        """
        record = self.by_name[name]
        self.check([name])
        try:
            return os.pread(self._descriptor, min(limit, record.size), record.at)
        except OSError as error:
            raise TensorFileError(_damage(self.where, [f"{name!r} cannot be read ({error.strerror})"], 1)) from error

    def check(self, names: Iterable[str] | None = None, holds: Callable[[str], str] | None = None) -> None:
        """Compare records with their CRC-32, except those that were compared before.

        Args:
            names: names of the records; None: all.
            holds: gives the content of a record, for the message.

        Raises:
            TensorFileError: records are damaged or cannot be read; the message names them.
        """
        chosen = [self._pending[name] for name in (list(self._pending) if names is None else names)
                  if name in self._pending]  # fmt: skip
        if not chosen:
            return
        if not self.has_checksums:
            if names is None:
                logger.warning(
                    "%s: written without checksums (torch.serialization.set_crc32_options), so it cannot be "
                    "known whether its bytes are still those that were written",
                    self.where,
                )
                self._pending.clear()
            return
        faults = [fault for fault in _in_threads(self._fault, chosen) if fault is not None]
        if faults:
            contents = {name: f" ({what})" if holds and (what := holds(name)) else "" for name, _ in faults}
            raise TensorFileError(
                _damage(self.where, [f"{name!r}{contents[name]} {fault}" for name, fault in faults], len(self.by_name))
            )
        for record in chosen:
            del self._pending[record.name]

    def describe(self) -> str:
        """Which checksums are recorded, and whether they were compared, as a sentence."""
        if not self.has_checksums:
            return f"written without checksums: it cannot be known whether its {len(self.by_name)} records are intact"
        if self._pending:
            return f"{len(self._pending)} of {len(self.by_name)} records were not compared with their CRC-32"
        return f"each of its {len(self.by_name)} records has the CRC-32 that was written"

    def _fault(self, record: Record) -> tuple[str, str] | None:
        """(name, fault) of a damaged record, or None."""
        crc, at, left = 0, record.at, record.size
        while left:
            try:
                block = os.pread(self._descriptor, min(BLOCK, left), at)
            except OSError as error:
                return record.name, f"cannot be read ({error.strerror})"
            if not block:
                return record.name, f"ends {left} bytes early"
            crc, at, left = zlib.crc32(block, crc), at + len(block), left - len(block)
        return None if crc == record.crc else (record.name, f"has the CRC-32 {crc:08x}, written was {record.crc:08x}")


def _in_threads(check: Callable[[Record], Any], records: Sequence[Record]) -> list[Any]:
    """The results of `check` for every record, computed by a few threads that each read adjacent records."""
    shares: list[list[Record]] = [[]]
    size = 0  # of the last share
    for record in sorted(records, key=lambda record: record.at):
        if size >= SHARE:
            shares.append([])
            size = 0
        shares[-1].append(record)
        size += record.size
    threads = min(usable_cores(), MAX_THREADS, len(shares))
    if threads < 2:
        return [check(record) for record in records]
    with ThreadPoolExecutor(threads, "crc32") as pool:
        return [checked for share in pool.map(lambda share: list(map(check, share)), shares) for checked in share]


def _damage(where: str, faults: Sequence[str], total: int) -> str:
    named = "; ".join(faults[:NAMED]) + (f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else "")
    return (
        f"{where}: it is damaged: {len(faults)} of its {total} records {'is' if len(faults) == 1 else 'are'} not what "
        f"was written: {named}. Incomplete copies and bad disks cause this; {REMEDY}."
    )


# ---- files without their own checksums ----


@dataclass(frozen=True)
class Recorded:
    """A SHA-256 that was recorded for a file, and the file that records it."""

    sha256: str
    by: Path


class RecordedHashes:
    """The recorded SHA-256 of files without checksums in their format, compared once.

    Args:
        path: the path that was opened: a file, or the index or the folder of shards.
        files: the files themselves.
    """

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
        self.files = tuple(files)
        self._compared: set[Path] = set()

    @cached_property
    def _recorded(self) -> dict[Path, Recorded]:
        """The recorded hashes by file; `path` itself is the key of the common hash of all shards."""
        hashes = {path: recorded_sha256(path) for path in dict.fromkeys((*self.files, self.path))}
        return {path: recorded for path, recorded in hashes.items() if recorded is not None}

    def check_file(self, file: Path) -> None:
        """Compare the file of a tensor; all files where only their common hash is recorded.

        Raises:
            TensorFileError: its hash differs from the recorded one.
        """
        self._check((file,) if file in self._recorded else (self.path,))

    def check(self) -> None:
        """Compare every file that has a recorded hash.

        Raises:
            TensorFileError: a hash differs from the recorded one.
        """
        self._check(self._recorded)

    def describe(self) -> str:
        """Which checksums are recorded, and whether they were compared, as a sentence."""
        if not self._recorded:
            return "no checksum: neither the format nor a file next to it records one"
        by = ", ".join(dict.fromkeys(recorded.by.name for recorded in self._recorded.values()))
        if self._recorded.keys() <= self._compared:
            return f"has the SHA-256 recorded by {by}"
        return f"SHA-256 recorded by {by}; compared when its tensors are read"

    def _check(self, paths: Iterable[Path]) -> None:
        for path in paths:
            recorded = self._recorded.get(path)
            if recorded is None or path in self._compared:
                continue
            files = (path,) if path in self.files else self.files
            digest = sha256_of_shards({file: file_sha256(file) for file in files})
            if digest != recorded.sha256:
                raise TensorFileError(
                    f"{path}: it is not what {recorded.by} recorded: its SHA-256 is {digest}, recorded was "
                    f"{recorded.sha256}. It is damaged or was replaced; copy or download it again, or remove "
                    f"{recorded.by.name} if it was replaced on purpose."
                )
            self._compared.add(path)


def recorded_sha256(path: Path) -> Recorded | None:
    """The SHA-256 that another file of the folder records for a file, or None.

    The sources are ledgers of adaptations with this source, `NAME.sha256`, a list such as `SHA256SUMS`, the metadata of
    a download by huggingface_hub, and the name of its cached blob.
    """
    for find in (_of_ledgers, _of_sums, _of_download, _of_blob):
        result = find(path)
        if result is not None:
            return result
    return None


def _of_ledgers(path: Path) -> Recorded | None:
    """The hash of the source in the newest ledger that names this file."""
    ledgers = sorted(path.absolute().parent.glob("*.ledger.json"), key=lambda ledger: ledger.stat().st_mtime)
    for ledger in reversed(ledgers):
        try:
            source = json.loads(_text(ledger)).get("source")
        except (ValueError, AttributeError, RecursionError):
            continue
        if isinstance(source, dict) and source.get("name") == path.name:
            digest = _DIGEST.fullmatch(str(source.get("sha256")))
            if digest:
                return Recorded(digest[0].lower(), ledger)
    return None


def _of_sums(path: Path) -> Recorded | None:
    """The hash in `NAME.sha256` or in a list with lines `digest  name`, as written by sha256sum."""
    own = path.with_name(f"{path.name}.sha256")
    for file in (own, *(path.with_name(name) for name in _SUMS)):
        for line in _text(file).splitlines():
            digest, _, name = line.strip().partition(" ")
            named = name.strip().removeprefix("*").removeprefix("./")
            if _DIGEST.fullmatch(digest) and (named == path.name or (file == own and not named)):
                return Recorded(digest.lower(), file)
    return None


def _of_download(path: Path) -> Recorded | None:
    """The hash that `huggingface-cli download --local-dir` records: the second line of the metadata of large files."""
    full = path.absolute()
    for folder in list(full.parents)[:3]:
        relative = full.relative_to(folder)
        note = folder / ".cache" / "huggingface" / "download" / relative.with_name(f"{relative.name}.metadata")
        lines = _text(note).splitlines()
        if len(lines) > 1 and _DIGEST.fullmatch(lines[1].strip()):
            return Recorded(lines[1].strip().lower(), note)
    return None


def _of_blob(path: Path) -> Recorded | None:
    """The hash in the cache of huggingface_hub, where files are links to blobs named by their SHA-256."""
    blob = path.resolve()
    return Recorded(blob.name, blob) if blob.parent.name == "blobs" and _DIGEST.fullmatch(blob.name) else None


def _text(path: Path) -> str:
    """The content of a small text file; empty if it does not exist."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_SIDECAR_BYTES:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
