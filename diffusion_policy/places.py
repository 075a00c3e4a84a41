"""Where files lie: folders of this machine, and URLs of object stores ("s3://bucket/recordings").

A `pathlib.Path` stays what it is. A URL becomes a `upath.UPath`, which is used in the same way and leaves the work to
fsspec; how to reach the store (credentials, endpoint) is in the environment, as for every other fsspec program. Object
stores have no folders, no rename and no locks: whoever writes there needs another plan (`convert.publication`).
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
from diffusion_policy.errors import WorkspaceError

# "s3://bucket/key"; a Path has made "s3:/bucket/key" of it.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
# Errors of the libraries below fsspec that are no OSError, by module; known only where the module is loaded.
_STORE_ERRORS = (
    ("botocore.exceptions", ("BotoCoreError", "ClientError")),
    ("aiohttp", ("ClientError",)),
)
_REASONS = ((PermissionError, "access is refused"), (FileNotFoundError, "it is not there"))


class PlaceError(WorkspaceError):
    """A place that cannot be reached, or not in this environment."""


def place(path: Any) -> Path:
    """A path of this machine, or of the object store that a URL names; what was listed of it earlier is forgotten.

    Args:
        path: a Path or text; what is a place already stays it.

    Raises:
        PlaceError: no such kind of URL, or the package that it needs is not installed.
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
    try:
        from upath import UPath

        found = UPath(url)
        found.fs.invalidate_cache()
    except ImportError as error:
        raise PlaceError(f"{url} needs a package ({error}): {install_extra('cloud')}") from error
    except ValueError as error:
        raise PlaceError(f"{url}: {kind}:// is no kind of URL that fsspec knows ({error})") from error
    return cast(Path, found)


def is_remote(path: Path) -> bool:
    """Whether it lies in an object store."""
    return not isinstance(path, Path)


def file_system(path: Path) -> tuple[Any, str]:
    """The fsspec file system of a remote place, and the path within it."""
    remote = cast(Any, path)
    return remote.fs, str(remote.path)


@contextmanager
def reaching(path: Path | str) -> Iterator[None]:
    """Turns the errors of an object store into one sentence; those of this machine's files are left alone.

    Raises:
        PlaceError: the store cannot be reached, refuses, or lacks the bucket.
    """
    if isinstance(path, Path) or (isinstance(path, str) and _URL.fullmatch(path) is None):
        yield
        return
    try:
        yield
    except _store_errors() as error:
        said = next((f"{reason}: {error}" for kind, reason in _REASONS if isinstance(error, kind)), str(error))
        raise PlaceError(
            f"{path} cannot be reached ({said}); look at the address, the bucket and the credentials in the "
            "environment (for s3: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE)"
        ) from error


def _store_errors() -> tuple[type[Exception], ...]:
    loaded = [(sys.modules[module], names) for module, names in _STORE_ERRORS if module in sys.modules]
    return (OSError, *(getattr(module, name) for module, names in loaded for name in names))


def read_bytes(file: Path) -> bytes:
    """A whole file.

    Raises:
        OSError: it is not there, or (on this machine) cannot be read.
        PlaceError: its store cannot be reached.
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
    """The contents of files in order: one by one from this machine, from an object store all at once.

    Raises:
        As `read_bytes`.
    """
    distinct = list(dict.fromkeys(files))
    if not distinct or not is_remote(distinct[0]):
        return (read_bytes(file) for file in files)
    store, _ = file_system(distinct[0])
    paths = {file: file_system(file)[1] for file in distinct}
    try:
        found = store.cat(list(paths.values()))
    except FileNotFoundError:
        return (read_bytes(file) for file in files)  # which says which one
    except _store_errors():
        with reaching(distinct[0]):
            raise
    return (found[paths[file]] for file in files)


def local_cache() -> Path:
    """Where this user's programs keep what can be made again (XDG): unfinished uploads, copies of remote images."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "diffusion_policy"
