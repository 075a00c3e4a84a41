"""Opens a file of named tensors of any supported format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffusion_policy.hub import local_copy
from diffusion_policy.safe_pickle import load
from diffusion_policy.tensor_file.inert import CONTENT_GLOBALS, GYM3_GLOBALS, to_plain
from diffusion_policy.tensor_file.integrity import RecordedHashes
from diffusion_policy.tensor_file.kinds import kind_of, of_weights_only
from diffusion_policy.tensor_file.opened import Integrity, TensorFile, TensorFileError, TensorInfo, describe, walk
from diffusion_policy.tensor_file.safetensors_file import open_safetensors, open_sharded
from diffusion_policy.tensor_file.torch_legacy import read_torch_legacy
from diffusion_policy.tensor_file.torch_zip import MAX_PICKLE_BYTES, TorchArchive, read_torch_zip


def open_tensor_file(path: str | Path) -> TensorFile:
    """Open a file of named tensors, or the shards of a folder or an index, here or in a repository (``hf://``).

    Only headers are read: a file of several gigabytes opens in about a second. Objects of other programs' classes in a
    file of PyTorch's are not read; `TensorFile.stand_ins` counts them.

    Raises:
        PathError: a repository cannot be read.
        TensorFileError: absent, of an unsupported format (the message states which), damaged, or of absurd sizes.
        UnsafePickleError: its pickle names something that is not on the allow-list.
    """
    path = local_copy(path)
    match kind_of(path):
        case "shards":
            return open_sharded(path)
        case "safetensors":
            return open_safetensors(path)
        case "pickle":
            return _open_pickle(path)
        case "torch zip":
            return _open_archive(path, "torch", read_torch_zip(path, check=False, stand_ins=True))
        case "torch legacy":
            return _open_archive(path, "torch before 1.6", read_torch_legacy(path, check=False, stand_ins=True))


def read_torch(path: Path) -> TorchArchive:
    """Open a file written by `torch.save`, current or from before PyTorch 1.6, and compare its checksums.

    Raises:
        TensorFileError: of an unsupported format (the message states which), damaged, or of absurd sizes.
        UnsafePickleError: its pickle names something that is not on the allow-list.
    """
    kind = kind_of(path)
    if kind == "torch zip":
        return read_torch_zip(path)
    if kind == "torch legacy":
        return read_torch_legacy(path)
    raise TensorFileError(of_weights_only(path, kind))


def _open_archive(path: Path, kind: str, archive: TorchArchive) -> TensorFile:
    loaded = dict(walk(archive.content, path.name))

    def load(name: str) -> torch.Tensor:
        archive.check((loaded[name],))
        return loaded[name]

    file = _described(path, kind, archive.content, loaded, archive.identities, load, archive)
    return replace(file, stand_ins=archive.stand_ins)


def _open_pickle(path: Path) -> TensorFile:
    with path.open("rb") as file:
        content = load(file, allowed={**CONTENT_GLOBALS, **GYM3_GLOBALS}, where=path.name, max_bytes=MAX_PICKLE_BYTES)
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
    """The same tree with a `TensorInfo` instead of each tensor."""
    if isinstance(value, torch.Tensor):
        return tensors[path]
    prefix = f"{path}." if path else ""
    if isinstance(value, dict):
        return {key: _with_leaves(child, tensors, f"{prefix}{key}") for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_leaves(child, tensors, f"{prefix}{index}") for index, child in enumerate(value))
    return value
