"""Reads from the Hugging Face Hub: ``hf://USER/REPO/FILE``, ``hf://datasets/USER/REPO/PATH``.

An address may name a branch, a tag or a commit (``hf://USER/REPO@main/FILE``). The revision is resolved once and read
at that commit, so it does not matter if a branch moves meanwhile, and every stored address includes the commit.
Datasets are read in place, through `paths`; weights are copied into the user's cache and compared with the size and,
for large files, the SHA-256 that the hub states. Nothing is ever written to a hub. What comes from it is as untrusted
as any other file.

The endpoint and the token come from the environment (HF_ENDPOINT, HF_TOKEN) or from ``hf auth login``.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from diffusion_policy.commands import install_extra
from diffusion_policy.errors import PathError
from diffusion_policy.storage import atomic_file, file_sha256, local_cache

logger = logging.getLogger(__name__)

SCHEME = "hf://"
EXPECTED = "hf://USER/REPO/FILE, hf://datasets/USER/REPO/PATH, or either with @REVISION after REPO"
LOGIN = "log in with `hf auth login` (formerly `huggingface-cli login`), or set HF_TOKEN"
BLOCK = 2**20
MAX_FILES = 1000
# Files that are copied from a folder of weights.
WEIGHTS = (".safetensors", ".json")

_ADDRESS = re.compile(r"hf:/+(.+)", re.DOTALL)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WRITES = ("put_file", "pipe_file", "cp_file", "rm", "_rm", "rm_file", "mkdir", "makedirs")
# Errors of the libraries below that are not an OSError, by module; looked up only where the module is loaded.
_ERRORS = (
    ("httpx2", ("HTTPError",)), ("httpx", ("HTTPError",)), ("requests", ("RequestException",)),
    ("huggingface_hub.errors", ("HFValidationError", "HfHubHTTPError")),
)  # fmt: skip


def is_hub(path: object) -> bool:
    """Whether a path or text is a hub address, even if `Path` has removed one of its slashes."""
    return _ADDRESS.fullmatch(str(path)) is not None


def pinned(address: object) -> str:
    """The same address at the commit that it currently names, ``hf://datasets/USER/REPO@COMMIT/PATH``.

    Raises:
        PathError: no such repository or revision, access refused, the hub cannot be reached, or huggingface_hub is
            not installed.
    """
    match = _ADDRESS.fullmatch(str(address))
    assert match is not None
    url = SCHEME + match[1].rstrip("/")
    with answering(url):
        resolved = _file_system().resolve_path(match[1].rstrip("/"))
        if not hasattr(resolved, "repo_id"):
            raise PathError(f"{url}: not a repository; expected {EXPECTED}")
        commit = _commit(resolved.repo_type, resolved.repo_id, resolved.revision)
    kind = "" if resolved.repo_type == "model" else f"{resolved.repo_type}s/"
    return f"{SCHEME}{kind}{resolved.repo_id}@{commit}" + (f"/{resolved.path_in_repo}" if resolved.path_in_repo else "")


def local_copy(path: str | Path) -> Path:
    """A local copy of a weights file, or of a folder's weights, at an address; any other path is returned unchanged.

    Copies are kept by commit and never change.

    Raises:
        PathError: it does not exist, cannot be reached, is larger than the disk, or differs from what the hub states.
        StorageError: the disk refuses.
    """
    if not is_hub(path):
        return Path(path)
    address = pinned(path)
    home = _home(address)
    if home.is_file():
        return home
    hub, inside = _file_system(), address.removeprefix(SCHEME)
    with answering(address):
        entry = hub.info(inside)
        is_folder = entry["type"] == "directory"
        files = list(hub.find(inside, detail=True).values()) if is_folder else [entry]
    wanted = [file for file in files if not is_folder or file["name"].endswith(WEIGHTS)]
    if not wanted or len(wanted) > MAX_FILES:
        raise PathError(f"{address}: {len(wanted)} weights files in it; name one of its files or another folder")
    _check_free_space(address, sum(int(file["size"]) for file in wanted), home)
    for file in wanted:
        _fetch(hub, file, _home(SCHEME + file["name"]))
    return home


def address_of(path: str | Path) -> str:
    """The address of a copy made by `local_copy`, or of an opened dataset; "" for any other path.

    It includes the commit that was read; for an address, pass what `pinned` returned.
    """
    if match := _ADDRESS.fullmatch(str(path)):
        return SCHEME + match[1]
    try:
        parts = Path(path).relative_to(_copies()).parts
    except ValueError:
        return ""
    kind, user, repo, commit, *inside = (*parts, "", "", "", "")[: max(4, len(parts))]
    return f"{SCHEME}{'' if kind == 'models' else f'{kind}/'}{'/'.join([user, f'{repo}@{commit}', *inside])}"


def address_entry(path: str | Path) -> dict[str, str]:
    """`address_of` as an entry of provenance, {"address": ...}; empty for anything not from a hub."""
    address = address_of(path)
    return {"address": address} if address else {}


@contextmanager
def answering(address: object) -> Iterator[None]:
    """Turns errors of the hub's libraries into one sentence about the address.

    Raises:
        PathError: there was such an error.
    """
    try:
        yield
    except ImportError as error:
        raise PathError(f"{address} needs a package ({error}): {install_extra('hub')}") from error
    except _answers() as error:
        raise PathError(f"{address}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What went wrong and what to do, from the hub's status code and the kind of error."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None and len(chain) < 8:
        chain.append(cause)
    kinds = {type(one).__name__ for one in chain}
    status = next((code for one in chain if (code := getattr(getattr(one, "response", None), "status_code", 0))), 0)
    if "GatedRepoError" in kinds or status == 403:
        return f"the hub refuses access (403): accept the repository's terms on its page and {LOGIN}"
    if "RevisionNotFoundError" in kinds:
        return "the repository has no such revision; name a branch, a tag or a commit after @"
    if status == 401:
        return f"the hub refuses access (401): there is no such repository, or it is private; {LOGIN}"
    if "RepositoryNotFoundError" in kinds:
        return f"there is no such repository, or it is private; check the name, or {LOGIN}"
    if isinstance(error, FileNotFoundError):
        return "there is no such file in the repository"
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return f"not an address of a repository ({_first_line(error)}); expected {EXPECTED}"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    what = f"{type(error).__name__}: {_first_line(error)}"
    return f"the hub at {endpoint} cannot be reached, or broke the connection ({what}); try again"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]


def _answers() -> tuple[type[Exception], ...]:
    return (OSError, ValueError, *library_errors())


def library_errors() -> tuple[type[Exception], ...]:
    """Errors of the libraries used to read a hub, as far as they are loaded."""
    loaded = [(sys.modules[module], names) for module, names in _ERRORS if module in sys.modules]
    return tuple(getattr(module, name) for module, names in loaded for name in names if hasattr(module, name))


def _file_system() -> Any:
    """The hub's file system, read-only."""
    import fsspec

    kind = _read_only()
    for library in ("httpx", "httpx2"):
        logging.getLogger(library).setLevel(logging.WARNING)  # they log a line for each request
    fsspec.register_implementation("hf", kind, clobber=True)  # used by zarr and UPath to open addresses
    return kind()


@cache
def _read_only() -> Any:
    """The class of the hub's file system, which raises on any attempt to write."""
    from huggingface_hub import HfFileSystem

    def opened(self: Any, path: str, mode: str = "rb", *arguments: Any, **options: Any) -> Any:
        if mode != "rb":
            _refuse(path)
        return HfFileSystem._open(self, path, mode, *arguments, **options)

    def refused(self: Any, path: Any, *arguments: Any, **options: Any) -> None:
        _refuse(path)

    return type("ReadOnlyHub", (HfFileSystem,), {"_open": opened, **dict.fromkeys(_WRITES, refused)})


def _refuse(path: Any) -> None:
    raise PathError(
        f"{SCHEME}{path}: a hub is only read, nothing is uploaded; write into a folder, and upload it yourself into a "
        "private repository: hf upload USER/REPO FOLDER"
    )


@cache
def _commit(repo_type: str, repo_id: str, revision: str) -> str:
    """The commit that a revision names, resolved once."""
    if _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    commit = HfApi().repo_info(repo_id, repo_type=repo_type, revision=revision).sha
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise PathError(f"{SCHEME}{repo_id}: the hub names no commit for {revision!r}, but {commit!r}")
    logger.info("%s%s: %s is read at commit %s", SCHEME, repo_id, revision, commit)
    return commit


def _fetch(hub: Any, file: dict[str, Any], path: Path) -> None:
    """Copy one file and compare it with what the hub states."""
    if path.is_file():
        return
    address, size = SCHEME + file["name"], int(file["size"])
    with atomic_file(path, shared=True) as temporary:
        with answering(address), hub.open(file["name"], "rb", block_size=0) as remote, temporary.open("wb") as local:
            left = size
            while left >= 0 and (block := remote.read(BLOCK)):
                left -= len(block)
                local.write(block)
        if left:
            difference = f"{size - left} of {size} bytes arrived" if left > 0 else f"more than its {size} bytes arrived"
            raise PathError(f"{address}: {difference}; the connection was lost, or the hub is wrong: try again")
        lfs = file.get("lfs")
        expected = (lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)) if lfs else None
        if expected and file_sha256(temporary) != expected:
            raise PathError(f"{address}: its SHA-256 differs from {expected}, which the hub states: try again")


def _check_free_space(address: str, size: int, home: Path) -> None:
    folder = next(folder for folder in home.parents if folder.exists())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise PathError(f"{address}: it has {size / 1e9:,.1f} GB, and {folder} has {free / 1e9:,.1f} GB free")


def _home(address: str) -> Path:
    """The folder for the copy of an address with a commit."""
    parts = PurePosixPath(address.removeprefix(SCHEME)).parts
    kind, rest = (parts[0], parts[1:]) if parts[0] in ("datasets", "spaces") else ("models", parts)
    user, (repo, _, commit), inside = rest[0], rest[1].partition("@"), rest[2:]
    if any(part in ("..", ".") or "\\" in part or "\0" in part for part in (user, repo, *inside)) or not commit:
        raise PathError(f"{address}: its name leads out of its repository; it was refused")
    return _copies().joinpath(kind, user, repo, commit, *inside)


def _copies() -> Path:
    return local_cache() / "hub"
