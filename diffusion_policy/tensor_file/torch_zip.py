"""PyTorch's zip archives: one pickle, and one uncompressed entry for each storage.

The directory is checked before anything in it is believed: sizes against the file, names against tricks, no entry
compressed (PyTorch never does; a zip bomb must). The pickle goes through `safe_pickle`. Storages are mapped
copy-on-write, so opening costs the headers, and tensors that shared a storage share it again.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from diffusion_policy.safe_pickle import Allowed, Recipe, load
from diffusion_policy.tensor_file.inert import CONTENT_GLOBALS, to_plain
from diffusion_policy.tensor_file.opened import TensorFileError

MAX_DIRECTORY_BYTES = 4 * 2**20
MAX_PICKLE_BYTES = 64 * 2**20
MAX_DIMENSIONS = 32
MAX_SIDE = 2**48

_END_RECORD = struct.Struct("<4s4H2LH")  # end of central directory: the directory's size is its sixth value
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64_RECORD = struct.Struct("<4sQ2H2L4Q")
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_UNSET = 0xFFFFFFFF


@dataclass(frozen=True)
class StorageType:
    """`torch.FloatStorage` and its like: only the type of number matters."""

    dtype: torch.dtype


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    content: torch.UntypedStorage
    numel: int


_STORAGE_TYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


@dataclass(frozen=True)
class TorchArchive:
    """`content` is plain Python with mapped tensors; `identities` names the storage and view of each, by `id`."""

    content: Any
    identities: dict[int, str]


def read_torch_zip(path: Path) -> TorchArchive:
    """Open a file that `torch.save` wrote; nothing in it is run and no tensor's bytes are read.

    Raises:
        TensorFileError: not such an archive, damaged, or with sizes and names that cannot be right.
        UnsafePickleError: its pickle names something that is not on the allow-list.
    """
    where = str(path)
    with path.open("rb") as file:
        entries = _read_directory(file, where)
        root = _root(entries, where)
        pickle_at, pickle_size = entries[f"{root}data.pkl"]
        if pickle_size > MAX_PICKLE_BYTES:
            raise TensorFileError(f"{where}: its data.pkl has {pickle_size} bytes, more than {MAX_PICKLE_BYTES}.")
        pickle = _read_at(file, pickle_at, pickle_size)
        order_at, order_size = entries.get(f"{root}byteorder", (0, 0))
        if order_size and _read_at(file, order_at, min(order_size, 8)) != b"little":
            raise TensorFileError(f"{where}: it was written on a big-endian machine; save it again on a usual one.")
    tensors = _Tensors(path, {name.removeprefix(f"{root}data/"): at for name, at in entries.items()})
    allowed: Allowed = {**CONTENT_GLOBALS, **tensors.recipes()}
    content = load(pickle, allowed=allowed, where=where, persistent_load=tensors.storage, max_bytes=MAX_PICKLE_BYTES)
    return TorchArchive(to_plain(content, where), tensors.identities)


def _read_at(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _root(entries: dict[str, tuple[int, int]], where: str) -> str:
    """The one folder that PyTorch puts everything in, as a prefix."""
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise TensorFileError(
            f"{where}: it is a zip archive, but not one of PyTorch's (it has {len(pickles)} data.pkl, expected one)."
        )
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in entries:
        raise TensorFileError(f"{where}: it is a TorchScript program; save its state_dict with torch.save instead.")
    return root


def _read_directory(file: BinaryIO, where: str) -> dict[str, tuple[int, int]]:
    """Each entry's (offset of its data, size), once the directory has been found credible."""
    file_size = file.seek(0, 2)
    _check_directory_size(file, file_size, where)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
        raise TensorFileError(f"{where}: it is a damaged or truncated zip archive ({error}).") from error
    entries: dict[str, tuple[int, int]] = {}
    for info in infos:
        _check_entry(info, where)
        if info.filename in entries:
            raise TensorFileError(f"{where}: the zip entry {info.filename!r} is there twice.")
        entries[info.filename] = _locate(file, info, file_size, where)
    total = sum(size for _, size in entries.values())
    if total > file_size:
        raise TensorFileError(f"{where}: its zip entries claim {total} bytes, but the file has {file_size}.")
    return entries


def _check_directory_size(file: BinaryIO, file_size: int, where: str) -> None:
    """Python's zipfile reads the whole directory at its word; so look at the word first."""
    tail_at = max(0, file_size - 2**16 - _END_RECORD.size)
    tail = _read_at(file, tail_at, file_size - tail_at)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END_RECORD.size:
        raise TensorFileError(f"{where}: it begins like a zip archive but has no end; it is truncated.")
    size = _END_RECORD.unpack_from(tail, at)[5]
    locator_at = at - _END64_LOCATOR.size
    if locator_at >= 0 and tail[locator_at : locator_at + 4] == b"PK\x06\x07":
        record = _read_at(file, _END64_LOCATOR.unpack_from(tail, locator_at)[2], _END64_RECORD.size)
        size = max(_END64_RECORD.unpack(record)[8] if len(record) == _END64_RECORD.size else 0, size % _UNSET)
    if size > MAX_DIRECTORY_BYTES:
        raise TensorFileError(f"{where}: its zip directory claims {size} bytes, more than {MAX_DIRECTORY_BYTES}.")


def _check_entry(info: zipfile.ZipInfo, where: str) -> None:
    name = info.orig_filename
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or "\0" in name or ":" in name or ".." in parts or "." in parts:
        raise TensorFileError(f"{where}: the zip entry {name[:80]!r} points outside the archive.")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise TensorFileError(
            f"{where}: the zip entry {name[:80]!r} is compressed or encrypted ({info.compress_size} bytes for "
            f"{info.file_size}); PyTorch writes plain entries, so this one is refused."
        )


def _locate(file: BinaryIO, info: zipfile.ZipInfo, file_size: int, where: str) -> tuple[int, int]:
    header = _read_at(file, info.header_offset, _LOCAL_HEADER.size) if 0 <= info.header_offset < file_size else b""
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise TensorFileError(f"{where}: the zip entry {info.filename[:80]!r} is not where the directory says.")
    *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    at = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if at + info.file_size > file_size:
        raise TensorFileError(
            f"{where}: the zip entry {info.filename[:80]!r} claims {info.file_size} bytes, beyond the file's end."
        )
    return at, info.file_size


class _Tensors:
    """Makes the tensors that the pickle describes, over one mapping of the file."""

    def __init__(self, path: Path, entries: dict[str, tuple[int, int]]) -> None:
        self.where = str(path)
        self.entries = entries
        self.mapped = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)  # noqa: FBT003 (C signature)
        self.storages: dict[str, torch.UntypedStorage] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.identities: dict[int, str] = {}

    def recipes(self) -> Allowed:
        return {
            ("torch._utils", "_rebuild_tensor_v2"): Recipe(self.rebuild),
            ("torch._utils", "_rebuild_parameter"): Recipe(self.parameter),
            **{("torch", name): StorageType(dtype) for name, dtype in _STORAGE_TYPES.items()},
        }

    def storage(self, reference: Any) -> _Storage:
        """A storage from ("storage", type, key, device, count)."""
        if type(reference) is not tuple or len(reference) != 5 or reference[0] != "storage":
            raise TensorFileError(f"{self.where}: a reference to outside storage that is not one of PyTorch's.")
        _, kind, key, _, numel = reference
        if not isinstance(kind, StorageType) or type(key) is not str or type(numel) is not int:
            raise TensorFileError(f"{self.where}: a reference to outside storage of an unknown kind.")
        if key not in self.entries:
            raise TensorFileError(f"{self.where}: the storage {key[:80]!r} is missing; the archive is incomplete.")
        at, size = self.entries[key]
        if numel < 0 or numel * kind.dtype.itemsize != size:
            raise TensorFileError(
                f"{self.where}: the storage {key!r} should hold {numel} numbers of {kind.dtype}, but has {size} bytes."
            )
        if key not in self.storages:
            self.storages[key] = self._map(at, size)
        return _Storage(key, kind.dtype, self.storages[key], numel)

    def _map(self, at: int, size: int) -> torch.UntypedStorage:
        if not size:
            return torch.UntypedStorage(0)
        storage = self.mapped[at : at + size]
        return storage if at % 16 == 0 else storage.clone()

    def rebuild(
        self, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False, hooks: Any = None, *_: Any
    ) -> torch.Tensor:
        """`torch._utils._rebuild_tensor_v2`, for a view that lies within its storage and is not larger than it."""
        if not isinstance(storage, _Storage):
            raise TypeError("a tensor without a storage")
        if not (_are_sizes(size) and _are_sizes(stride) and len(size) == len(stride) and _are_sizes((offset,))):
            raise ValueError(f"a tensor with shape {size!r}, strides {stride!r} and offset {offset!r}"[:200])
        numel, last = 1, offset
        for side, step in zip(size, stride, strict=True):
            numel *= side
            last += (side - 1) * step
        if numel > storage.numel or (numel and last >= storage.numel):
            raise TensorFileError(
                f"{self.where}: a tensor of shape {size} with strides {stride} does not fit into the storage "
                f"{storage.key!r} of {storage.numel} numbers."
            )
        identity = f"{storage.key}+{offset}:{size}/{stride}:{storage.dtype}"
        if identity not in self.tensors:
            tensor = torch.empty(0, dtype=storage.dtype).set_(storage.content, offset, size, stride)
            self.tensors[identity] = tensor
            self.identities[id(tensor)] = identity
        return self.tensors[identity]

    @staticmethod
    def parameter(data: Any, requires_grad: Any = False, hooks: Any = None) -> torch.Tensor:
        """`torch._utils._rebuild_parameter`: whether it was trained is not the file's to say."""
        if not isinstance(data, torch.Tensor):
            raise TypeError("a parameter without a tensor")
        return data


def _are_sizes(values: Any) -> bool:
    short = type(values) is tuple and len(values) <= MAX_DIMENSIONS
    return short and all(type(value) is int and 0 <= value < MAX_SIDE for value in values)
