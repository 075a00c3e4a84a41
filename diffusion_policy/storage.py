"""Atomic writes: a file is written under a temporary name, flushed, then renamed; and hashes of files.

All other modules write through these functions, so that unfinished files can be recognized by their names:
``.part.NAME``, or ``.PID.part.NAME`` where several processes may write ``NAME`` at a time.

    atomic_file, write_text, write_bytes, write_json   a file, replacing the old one
    write_new                                         a file under the first free name; nothing is replaced
    atomic_folder                                      a folder of files
    link                                              a second name for an existing file
    rename                                            another name for an existing file or folder
    file_sha256, sha256                               hashes to be stored
    content_key                                       a faster hash, for caches within one process
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.moved import former_names

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_KEY_BYTES = 16


class StorageError(WorkspaceError, OSError):
    """A file cannot be written or read.

    Attributes:
        refused: the file or folder that cannot be written; None for one that cannot be read.
    """

    refused: Path | None = None


def unfinished(path: str | Path, *, shared: bool = False) -> Path:
    """The temporary name of an unfinished file: in the folder of `path`, with the suffix of `path`.

    Args:
        path: of the finished file or folder.
        shared: whether several processes may be writing it: each then has its own name. With a single name, the file
            of a killed process is overwritten by the next one.
    """
    path = Path(path)
    return path.with_name(f".{os.getpid()}.part.{path.name}" if shared else f".part.{path.name}")


@contextmanager
def atomic_file(path: str | Path, *, shared: bool = True, flushed: bool = True) -> Iterator[Path]:
    """A temporary name to write to, renamed to `path` when the block ends; nothing else is left behind.

    Its folder is created. The content is flushed to disk before it replaces the old file.

    Args:
        path: of the file.
        shared: as for `unfinished`; False for large files with one writer, so that killed processes leave one file at
            most.
        flushed: False for the many small files of a log: they survive a killed process, but maybe not a power failure.

    Raises:
        StorageError: the disk refuses.
    """
    path = Path(path)
    temporary = unfinished(path, shared=shared)
    with _refused(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if flushed:
                _flush(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if flushed:
            _flush_folder(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Replace a file atomically, creating its folder; an interrupted write leaves nothing behind.

    Raises:
        StorageError: the disk refuses.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: ReadableBuffer, *, flushed: bool = True) -> None:
    """As `write_text`, for bytes; `flushed` as for `atomic_file`."""
    with atomic_file(path, flushed=flushed) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | Path, content: Any, *, flushed: bool = True) -> None:
    """Write plain finite JSON, indented, as `write_text` does; `flushed` as for `atomic_file`."""
    write_bytes(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode("utf-8"), flushed=flushed)


def write_new(paths: Iterable[Path], text: str) -> Path:
    """Write a file under the first free name of several in one folder, and return it; nothing is ever replaced.

    A link fails where a rename would replace, so two processes never get one name.

    Raises:
        StorageError: the disk refuses, or no name is free.
    """
    candidates = iter(paths)
    path = next(candidates)
    temporary = unfinished(path, shared=True)
    with _refused(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _refused(path):
            temporary.write_text(text, encoding="utf-8")
            _flush(temporary)
        while True:
            try:
                with _refused(path):
                    os.link(temporary, path)
                    _flush_folder(path.parent)
                    return path
            except StorageError as error:
                following = next(candidates, None)
                if following is None or not isinstance(error.__cause__, FileExistsError):
                    raise
                path = following
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, *, within: str | Path | None = None) -> Iterator[Path]:
    """An empty folder to fill, which is renamed to `path` when the block ends, and removed if it raises.

    `path` must not exist, or be an empty folder. Leftovers of a killed process are removed first. If the
    block removes the temporary folder itself, no folder is created.

    Args:
        path: of the finished folder; the folders above it are created.
        within: folder for the temporary folder, by default that of `path`; for readers that would take any
            folder next to `path` for one of theirs. It must be on the same disk.

    Raises:
        StorageError: the folder cannot be written. Errors of the block are not changed.
    """
    path = Path(path)
    temporary = unfinished(path if within is None else Path(within) / path.name)
    shutil.rmtree(temporary, ignore_errors=True)
    with _refused(path):
        temporary.mkdir(parents=True)
    try:
        yield temporary
        if temporary.exists():
            with _refused(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def link(path: str | Path, other: str | Path) -> None:
    """Give a file a second name, replacing an existing one; a copy where the file system has no hard links.

    Raises:
        StorageError: the disk refuses.
    """
    other = Path(other)
    temporary = unfinished(other, shared=True)
    with _refused(other):
        other.parent.mkdir(parents=True, exist_ok=True)
        try:
            try:
                os.link(path, temporary)
            except OSError:  # another disk, or one without links
                shutil.copyfile(path, temporary)
                _flush(temporary)
            os.replace(temporary, other)
        finally:
            temporary.unlink(missing_ok=True)  # of two names of one file, a rename leaves both


def rename(path: str | Path, other: str | Path) -> None:
    """Rename a finished file or folder on the same disk, replacing a file or an empty folder.

    Raises:
        StorageError: the disk refuses.
    """
    with _refused(Path(other)):
        os.replace(path, other)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error


def sha256(*parts: ReadableBuffer) -> bytes:
    """(32,) SHA-256 of bytes, one part after another; `.hex()` writes it as `file_sha256` does."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def content_key(content: ReadableBuffer, kind: bytes = b"") -> bytes:
    """(16,) key that identifies bytes in memory: BLAKE2b (RFC 7693) of 128 bits.

    Args:
        content: the bytes.
        kind: what they are, such as the shape of an array: bytes of different kinds have different keys.
    """
    return hashlib.blake2b(content, digest_size=_KEY_BYTES, key=kind).digest()


def local_cache() -> Path:
    """The user's cache folder (XDG), for unfinished uploads and copies of remote files."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "diffusion_policy"


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turns the operating system's error into one sentence about `path`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        refusal = StorageError(f"{path}: cannot be written ({error.strerror or error})")
        refusal.refused = path
        raise refusal from error


def _flush(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Wait until a rename is on the disk, by flushing its folder."""
    with contextlib.suppress(OSError):  # some network file systems cannot do this; the file is renamed all the same
        _flush(folder)


__getattr__ = former_names(__name__, {"whole_file": "atomic_file", "whole_folder": "atomic_folder"})
