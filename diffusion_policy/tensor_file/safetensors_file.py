"""safetensors, alone or in shards with an index: headers through the safetensors library, tensors on demand."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from diffusion_policy.tensor_file.integrity import RecordedHashes
from diffusion_policy.tensor_file.kinds import kind_of
from diffusion_policy.tensor_file.opened import TensorFile, TensorFileError, TensorInfo

MAX_HEADER_BYTES = 64 * 2**20
INDEX_SUFFIX = ".safetensors.index.json"
MODEL_NAME = "model.safetensors"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


def open_safetensors(path: Path) -> TensorFile:
    """Open one file. Raises TensorFileError when its header is larger than the file, too large, or not valid."""
    tensors, metadata = _read_header(path)
    hashes = RecordedHashes(path, (path,))

    def load(name: str) -> torch.Tensor:
        hashes.check_file(path)
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    return TensorFile(path, "safetensors", (path,), dict(tensors), tensors, load, hashes, metadata)


def open_sharded(path: Path) -> TensorFile:
    """Open shards by their `*.safetensors.index.json` or by its folder.

    Raises:
        TensorFileError: no index or several, a shard outside the folder or absent, or shards with other tensors than
            in the index.
    """
    index_path = _find_index(path) if path.is_dir() else path
    if index_path.suffix == ".safetensors":
        return open_safetensors(index_path)
    home, shard_of = _read_index(index_path)
    files = tuple(home / name for name in sorted(set(shard_of.values())))
    headers: dict[str, TensorInfo] = {}
    for file in files:
        if kind_of(file) != "safetensors":
            raise TensorFileError(f"{index_path.name}: the shard {file.name} is not a safetensors file.")
        header, _ = _read_header(file)
        expected = {name for name, shard in shard_of.items() if shard == file.name}
        if header.keys() != expected:
            odd = sorted(header.keys() ^ expected)
            raise TensorFileError(
                f"{index_path.name}: {file.name} does not hold the tensors that the index says; {len(odd)} differ, "
                f"first {odd[0]!r}."
            )
        headers.update(header)
    tensors = {name: headers[name] for name in shard_of}
    hashes = RecordedHashes(path, files)

    def load(name: str) -> torch.Tensor:
        hashes.check_file(home / shard_of[name])
        with safe_open(home / shard_of[name], framework="pt") as file:
            return file.get_tensor(name)

    return TensorFile(path, "sharded safetensors", files, dict(tensors), tensors, load, hashes)


def _read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        claimed = int.from_bytes(file.read(8), "little")
    if size < 10 or claimed > size - 8 or claimed > MAX_HEADER_BYTES:
        raise TensorFileError(
            f"{path.name}: it claims a header of {claimed} bytes, but the file has {size} and at most "
            f"{MAX_HEADER_BYTES} are read; it is damaged or not a safetensors file."
        )
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            metadata = dict(file.metadata() or {})
            described = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, UnicodeDecodeError) as error:
        raise TensorFileError(f"{path.name}: its safetensors header is not valid ({error}).") from error
    return {name: _info(name, shape, dtype, path.name) for name, (shape, dtype) in described.items()}, metadata


def _info(name: str, shape: tuple[int, ...], dtype: str, where: str) -> TensorInfo:
    if dtype not in _DTYPES:
        raise TensorFileError(f"{where}: {name!r} is of type {dtype}; expected one of {', '.join(_DTYPES)}.")
    kind = _DTYPES[dtype]
    return TensorInfo(
        name, shape, str(kind).removeprefix("torch."), math.prod(shape) * kind.itemsize, f"{where}:{name}"
    )


def _find_index(folder: Path) -> Path:
    indexes = sorted(folder.glob(f"*{INDEX_SUFFIX}")) or sorted(folder.glob("*.safetensors"))
    if folder / MODEL_NAME in indexes:  # LeRobot's folder also has files with statistics
        return folder / MODEL_NAME
    if len(indexes) != 1:
        raise TensorFileError(
            f"{folder.name}: expected one *{INDEX_SUFFIX} or one .safetensors file in the folder, found "
            f"{len(indexes)}; name the file."
        )
    return indexes[0]


def _read_index(path: Path) -> tuple[Path, dict[str, str]]:
    """The folder, and the shard of each tensor in the index's order."""
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise TensorFileError(f"{path.name}: the index has {path.stat().st_size} bytes, more than {MAX_HEADER_BYTES}.")
    try:
        index: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f"{path.name}: it is not valid JSON ({error}).") from error
    shard_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(name, str) for name in shard_of.values()):
        raise TensorFileError(f"{path.name}: it has no weight_map from tensor names to files.")
    for name, count in Counter(shard_of.values()).items():
        if not name or Path(name).name != name or "\\" in name or "\0" in name:
            raise TensorFileError(f"{path.name}: it places {count} tensors in {name!r}, outside its own folder.")
        if not (path.parent / name).is_file():
            raise TensorFileError(f"{path.name}: the shard {name!r} with {count} tensors is not next to it.")
    return path.parent, shard_of
