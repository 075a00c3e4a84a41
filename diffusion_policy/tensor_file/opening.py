"""Which format a file is in, by its first bytes rather than by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from diffusion_policy.safe_pickle import load
from diffusion_policy.tensor_file.inert import CONTENT_GLOBALS, GYM3_GLOBALS, to_plain
from diffusion_policy.tensor_file.integrity import RecordedHashes
from diffusion_policy.tensor_file.opened import Integrity, TensorFile, TensorFileError, TensorInfo, describe, walk
from diffusion_policy.tensor_file.safetensors_file import open_safetensors, open_sharded
from diffusion_policy.tensor_file.torch_zip import MAX_PICKLE_BYTES, read_torch_zip

_ZIP_START = b"PK\x03\x04"
_PICKLE_START = b"\x80"
_LEGACY_TORCH = 0x1950A86A20F9469CFC6C  # the first pickle of a file from torch.save before PyTorch 1.6


def open_tensor_file(path: str | Path) -> TensorFile:
    """Open a file of named tensors; a folder or an index stands for its shards.

    Only headers are read: a file of several gigabytes opens in about a second.

    Raises:
        TensorFileError: absent, of no known format, damaged, or absurd.
        UnsafePickleError: its pickle names something that is not on the allow-list.
    """
    path = Path(path)
    if path.is_dir() or (path.suffix == ".json" and path.is_file()):
        return open_sharded(path)
    if not path.is_file():
        raise TensorFileError(f"{path}: there is no such file.")
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(_ZIP_START):
        return _open_archive(path)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return open_safetensors(path)
    if start.startswith(_PICKLE_START):
        return _open_pickle(path)
    raise TensorFileError(
        f"{path.name}: it is none of the formats that are read: a PyTorch zip archive, safetensors, or a pickle of "
        f"settings (it begins with {start[:4]!r})."
    )


def _open_archive(path: Path) -> TensorFile:
    archive = read_torch_zip(path, check=False)
    loaded = dict(walk(archive.content, path.name))

    def load(name: str) -> torch.Tensor:
        archive.check((loaded[name],))
        return loaded[name]

    return _described(path, "torch", archive.content, loaded, archive.identities, load, archive)


def _open_pickle(path: Path) -> TensorFile:
    with path.open("rb") as file:
        content = load(file, allowed={**CONTENT_GLOBALS, **GYM3_GLOBALS}, where=path.name, max_bytes=MAX_PICKLE_BYTES)
    if content == _LEGACY_TORCH:
        raise TensorFileError(
            f"{path.name}: it is in PyTorch's format from before 1.6; open it with the code that wrote it and save it "
            "again with torch.save."
        )
    plain = to_plain(content, path.name)
    loaded = dict(walk(plain, path.name))
    hashes = RecordedHashes(path, (path,))
    hashes.check()
    return _described(path, "pickle", plain, loaded, {}, loaded.__getitem__, hashes)


def _described(
    path: Path,
    kind: str,
    content: Any,
    loaded: Mapping[str, torch.Tensor],
    identities: Mapping[int, str],
    load: Callable[[str], torch.Tensor],
    integrity: Integrity,
) -> TensorFile:
    tensors = {
        name: describe(name, tensor, identities.get(id(tensor), f"array of {name}")) for name, tensor in loaded.items()
    }
    return TensorFile(path, kind, (path,), _with_leaves(content, tensors, ""), tensors, load, integrity)


def _with_leaves(value: Any, tensors: dict[str, TensorInfo], path: str) -> Any:
    """The same tree with a `TensorInfo` in the place of each tensor."""
    if isinstance(value, torch.Tensor):
        return tensors[path]
    prefix = f"{path}." if path else ""
    if isinstance(value, dict):
        return {key: _with_leaves(child, tensors, f"{prefix}{key}") for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_leaves(child, tensors, f"{prefix}{index}") for index, child in enumerate(value))
    return value
