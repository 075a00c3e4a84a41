"""Locations of files: paths on this machine, and URLs of object stores ("s3://bucket/recordings", "hf://USER/REPO").

A `pathlib.Path` is used as it is. A URL becomes a `upath.UPath`, which has the same interface and is based on fsspec;
credentials and endpoint of the store come from the environment, as for every other fsspec program. Object stores have
no folders, no rename and no locks, so writing there works differently (`convert.publication`).
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from diffusion_policy.commands import install_extra
from diffusion_policy.errors import PathError
from diffusion_policy.hub import answering, is_hub, library_errors, local_copy, pinned
from diffusion_policy.moved import former_names

# "s3://bucket/key"; a Path turns it into "s3:/bucket/key".
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
# Errors of the libraries below fsspec that are not an OSError, by module; looked up only where the module is loaded.
_STORE_ERRORS = (
    ("botocore.exceptions", ("BotoCoreError", "ClientError")),
    ("aiohttp", ("ClientError",)),
)
_REASONS = ((PermissionError, "access is refused"), (FileNotFoundError, "it does not exist"))


def as_path(path: Any) -> Path:
    """Returns a path on this machine, or in the object store that a URL names, without earlier cached listings.

    Args:
        path: a Path, a UPath or text.

    Raises:
        PathError: the kind of URL is unknown, or the package that it needs is not installed.
    """
    if not isinstance(path, str | Path):
        return cast(Path, path)  # a UPath
    match = _URL.fullmatch(str(path))
    if match is None:
        return Path(path)
    kind, rest = match.group(1).lower(), match.group(2)
    if kind == "file":
        return Path("/" + rest)
    url = f"{kind}://{rest}"
    extra = "cloud"
    if kind == "hf":
        url, extra = pinned(url), "hub"
        if url.endswith(".zip"):
            return local_copy(url)  # archives are read in place from a disk only
    try:
        from upath import UPath

        remote = UPath(url)
        remote.fs.invalidate_cache()
    except ImportError as error:
        raise PathError(f"{url} needs a package ({error}): {install_extra(extra)}") from error
    except ValueError as error:
        raise PathError(f"{url}: fsspec knows no URLs that start with {kind}:// ({error})") from error
    return cast(Path, remote)


def is_remote(path: Path) -> bool:
    """Whether a path is in an object store."""
    return not isinstance(path, Path)


def file_system(path: Path) -> tuple[Any, str]:
    """Returns the fsspec file system of a remote path, and the path within it."""
    remote = cast(Any, path)
    return remote.fs, str(remote.path)


@contextmanager
def reaching(path: Path | str) -> Iterator[None]:
    """Turns errors of an object store into one sentence; errors of local files are not changed.

    Raises:
        PathError: the store cannot be reached, refuses access, or lacks the bucket.
    """
    if isinstance(path, Path) or (isinstance(path, str) and _URL.fullmatch(path) is None):
        yield
        return
    if is_hub(path):
        with answering(path):
            yield
        return
    try:
        yield
    except _store_errors() as error:
        cause = next((f"{reason}: {error}" for kind, reason in _REASONS if isinstance(error, kind)), str(error))
        raise PathError(
            f"{path} cannot be reached ({cause}); check the address, the bucket and the credentials in the "
            "environment (for s3: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE)"
        ) from error


def _store_errors() -> tuple[type[Exception], ...]:
    loaded = [(sys.modules[module], names) for module, names in _STORE_ERRORS if module in sys.modules]
    return (OSError, *(getattr(module, name) for module, names in loaded for name in names), *library_errors())


def read_bytes(file: Path) -> bytes:
    """Reads a whole file.

    Raises:
        OSError: the file does not exist or (on this machine) cannot be read.
        PathError: the object store cannot be reached.
    """
    if not is_remote(file):
        return file.read_bytes()
    store, path = file_system(file)
    try:
        return cast(bytes, store.cat_file(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file)) from error
    except _store_errors():
        with reaching(file):
            raise


def read_together(files: Sequence[Path]) -> Iterator[bytes]:
    """Reads files in order: one by one on this machine, all at once from an object store.

    Raises:
        As `read_bytes`.
    """
    distinct = list(dict.fromkeys(files))
    if not distinct or not is_remote(distinct[0]):
        return (read_bytes(file) for file in files)
    store, _ = file_system(distinct[0])
    paths = {file: file_system(file)[1] for file in distinct}
    try:
        contents = store.cat(list(paths.values()))
    except FileNotFoundError:
        return (read_bytes(file) for file in files)  # its error names the missing file
    except _store_errors():
        with reaching(distinct[0]):
            raise
    return (contents[paths[file]] for file in files)


__getattr__ = former_names(__name__, {"place": "as_path", "PlaceError": "PathError"})
