"""How a small file comes to be: written beside its name, then renamed; whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion_policy.errors import WorkspaceError


class StorageError(WorkspaceError, OSError):
    """A file cannot be written or read; says which and why."""


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write to, which takes its place when the block ends; nothing else is left behind.

    Its folder is made. The name ends as `path` does, for writers that go by that.

    Raises:
        StorageError: the disk refuses.
    """
    path = Path(path)
    beside = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from error


def write_text(path: str | Path, text: str) -> None:
    """Replace a file as a whole, making its folder; an interrupted write leaves nothing behind.

    Raises:
        StorageError: the disk refuses.
    """
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


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


def write_json(path: str | Path, content: Any) -> None:
    """Write plain finite JSON, indented, as `write_text` does."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
