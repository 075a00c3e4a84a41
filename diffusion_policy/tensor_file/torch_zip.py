"""PyTorch's zip archives: one pickle, and one uncompressed entry for each storage.

The directory is checked before anything in it is trusted: sizes against the file, names for tricks, and no entry may be
compressed (PyTorch never does that; a zip bomb must). Records are compared with their CRC-32 before they are trusted.
The pickle goes through `safe_pickle`. Storages are mapped copy-on-write, and tensors that shared a storage share it
again.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from diffusion_policy.safe_pickle import Allowed, Recipe, load
from diffusion_policy.tensor_file.inert import CONTENT_GLOBALS, to_plain
from diffusion_policy.tensor_file.integrity import REMEDY, Record, RecordedHashes, Records
from diffusion_policy.tensor_file.kinds import foreign_zip
from diffusion_policy.tensor_file.opened import TensorFileError, walk

MAX_DIRECTORY_BYTES = 4 * 2**20
MAX_PICKLE_BYTES = 64 * 2**20
MAX_DIMENSIONS = 32
MAX_SIDE = 2**48
# A training run replaces its checkpoint; if that happens while it is read, it is read again.
ATTEMPTS = 3

_END_RECORD = struct.Struct("<4s4H2LH")  # end of central directory: the directory's size is its sixth value
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64_RECORD = struct.Struct("<4sQ2H2L4Q")
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_UNSET = 0xFFFFFFFF


@dataclass(frozen=True)
class StorageType:
    """`torch.FloatStorage` and the like: only the number type matters."""

    dtype: torch.dtype


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    content: torch.UntypedStorage
    numel: int


# Types without their own storage class: such tensors have an untyped storage and a separate type.
_PLAIN_TYPES = tuple(
    name
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "uint16", "uint32", "uint64")
    if hasattr(torch, name)
)
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
    """An open archive.

    Attributes:
        content: plain Python with mapped tensors.
        identities: names the storage and view of each tensor, by `id`.
        integrity: checks whether its bytes are those that were written.
        storages: the record that holds the bytes of each tensor, by `id`; empty if records have no checksums.
        stand_ins: how many objects of each class, of other programs, were not read.
    """

    content: Any
    identities: dict[int, str]
    integrity: Records | RecordedHashes
    storages: dict[int, str]
    stand_ins: Mapping[str, int] = field(default_factory=dict)

    def check(self, tensors: Iterable[torch.Tensor] | None = None) -> None:
        """Compare the bytes of some of its tensors, or of everything in it, with what was written.

        Raises:
            TensorFileError: they differ; names the record and what it holds.
        """
        if isinstance(self.integrity, RecordedHashes):
            self.integrity.check()
            return
        names = None
        if tensors is not None:
            names = [self.storages[id(tensor)] for tensor in tensors if id(tensor) in self.storages]
        self.integrity.check(names, self._holds)

    def describe(self) -> str:
        """Which checksums are recorded, and whether they were compared."""
        return self.integrity.describe()

    def _holds(self, record: str) -> str:
        """The dotted path of the first tensor in a record; empty if the record is not a storage."""
        tensors = walk(self.content, "the archive")
        return next((path for path, tensor in tensors if self.storages.get(id(tensor)) == record), "")


def read_torch_zip(path: Path, *, check: bool = True, stand_ins: bool = False) -> TorchArchive:
    """Open a file written by `torch.save`; none of its code is run.

    Args:
        path: of the file.
        check: compare every record with its CRC-32 now. False: only those that are read immediately; for callers that
            need only names and shapes, or that call `TorchArchive.check` before they use numbers.
        stand_ins: skip objects of other programs' classes (`safe_pickle.load`).

    Raises:
        TensorFileError: not such an archive, damaged, or with impossible sizes or names.
        UnsafePickleError: its pickle names something that is not on the allow-list.
    """
    for _ in range(ATTEMPTS):
        with path.open("rb") as file:
            archive = _read(file, path, stand_ins=stand_ins)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
    else:
        raise TensorFileError(f"{path}: it keeps being replaced while it is read; make a copy of it")
    if check:
        archive.check()
    return archive


def _read(file: BinaryIO, path: Path, *, stand_ins: bool) -> TorchArchive:
    where = str(path)
    records = Records(file, where, _read_directory(file, where))
    root = _root(records.by_name, where)
    pickle_size = records.by_name[f"{root}data.pkl"].size
    if pickle_size > MAX_PICKLE_BYTES:
        raise TensorFileError(f"{where}: its data.pkl has {pickle_size} bytes, more than {MAX_PICKLE_BYTES}.")
    order = f"{root}byteorder"
    if order in records.by_name and records.read(order, 8) != b"little":
        raise TensorFileError(f"{where}: it was written on a big-endian machine; save it again on a little-endian one.")
    pickle = records.read(f"{root}data.pkl", MAX_PICKLE_BYTES)
    tensors = Tensors(path, f"{root}data/", records.by_name)
    allowed: Allowed = {**CONTENT_GLOBALS, **tensors.recipes()}
    content = load(pickle, allowed=allowed, where=where, persistent_load=tensors.storage, max_bytes=MAX_PICKLE_BYTES,
                   stand_ins=stand_ins)  # fmt: skip
    stand_in_classes: Counter[str] = Counter()
    return TorchArchive(
        to_plain(content, where, stand_in_classes), tensors.identities, records, tensors.records, stand_in_classes
    )


def _read_at(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _root(entries: dict[str, Record], where: str) -> str:
    """The one folder into which PyTorch puts everything, as a prefix."""
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise TensorFileError(
            foreign_zip(where, list(entries))
            or f"{where}: it is a zip archive, but not one of PyTorch's (it has {len(pickles)} data.pkl, expected one)."
        )
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in entries:
        raise TensorFileError(f"{where}: it is a TorchScript program; save its state_dict with torch.save instead.")
    return root


def _read_directory(file: BinaryIO, where: str) -> dict[str, Record]:
    """The location of each entry's data, once the directory has passed its checks."""
    file_size = file.seek(0, 2)
    _check_directory_size(file, file_size, where)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
        raise TensorFileError(f"{where}: it is a damaged or truncated zip archive ({error}): {REMEDY}.") from error
    entries: dict[str, Record] = {}
    for info in infos:
        _check_entry(info, where)
        if info.filename in entries:
            raise TensorFileError(f"{where}: the zip entry {info.filename!r} occurs twice.")
        entries[info.filename] = _locate(file, info, file_size, where)
    total = sum(entry.size for entry in entries.values())
    if total > file_size:
        raise TensorFileError(f"{where}: its zip entries claim {total} bytes, but the file has {file_size}.")
    return entries


def _check_directory_size(file: BinaryIO, file_size: int, where: str) -> None:
    """Check the claimed size first, since Python's zipfile reads a directory of whatever size is claimed."""
    tail_at = max(0, file_size - 2**16 - _END_RECORD.size)
    tail = _read_at(file, tail_at, file_size - tail_at)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END_RECORD.size:
        raise TensorFileError(f"{where}: it begins like a zip archive but has no end; it is truncated: {REMEDY}.")
    size = _END_RECORD.unpack_from(tail, at)[5]
    locator_at = at - _END64_LOCATOR.size
    if locator_at >= 0 and tail[locator_at : locator_at + 4] == b"PK\x06\x07":
        record_at = _END64_LOCATOR.unpack_from(tail, locator_at)[2]
        record = _read_at(file, min(record_at, file_size), _END64_RECORD.size)
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
            f"{info.file_size}); PyTorch writes plain entries, so this one is refused. If the archive was "
            "repacked, unpack it and pack it without compression (zip -0 -r)."
        )


def _locate(file: BinaryIO, info: zipfile.ZipInfo, file_size: int, where: str) -> Record:
    header = _read_at(file, info.header_offset, _LOCAL_HEADER.size) if 0 <= info.header_offset < file_size else b""
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise TensorFileError(f"{where}: the zip entry {info.filename[:80]!r} is not where the directory says.")
    *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    name = _read_at(file, info.header_offset + _LOCAL_HEADER.size, name_length)
    if name.decode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace") != info.orig_filename:
        raise TensorFileError(
            f"{where}: the zip entry {info.filename[:80]!r} is called {name[:80]!r} in its local header."
        )
    at = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if at + info.file_size > file_size:
        raise TensorFileError(
            f"{where}: the zip entry {info.filename[:80]!r} claims {info.file_size} bytes, beyond the file's end."
        )
    return Record(info.filename, at, info.file_size, info.CRC)


def tensor_globals(rebuild: Callable[..., Any], typed: Callable[..., Any], parameter: Callable[..., Any]) -> Allowed:
    """The allow-list of PyTorch's pickles beyond plain content, with safe replacements of PyTorch's functions."""
    return {
        ("torch._utils", "_rebuild_tensor_v2"): Recipe(rebuild),
        ("torch._utils", "_rebuild_tensor_v3"): Recipe(typed),
        ("torch._utils", "_rebuild_parameter"): Recipe(parameter),
        ("torch.storage", "UntypedStorage"): StorageType(torch.uint8),
        **{("torch", name): getattr(torch, name) for name in _PLAIN_TYPES},
        **{("torch", name): StorageType(dtype) for name, dtype in _STORAGE_TYPES.items()},
    }


class Tensors:
    """Builds the tensors that the pickle describes, over one mapping of the file."""

    def __init__(self, path: Path, folder: str, entries: dict[str, Record]) -> None:
        self.where = str(path)
        self.folder = folder
        self.entries = entries
        self.mapped = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)  # noqa: FBT003 (C signature)
        self.storages: dict[str, torch.UntypedStorage] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.identities: dict[int, str] = {}
        self.records: dict[int, str] = {}

    def recipes(self) -> Allowed:
        """The PyTorch names that the pickle may use."""
        return tensor_globals(self.rebuild, self.rebuild_typed, self.parameter)

    def storage(self, reference: Any) -> _Storage:
        """A storage from ("storage", type, key, device, count)."""
        if type(reference) is not tuple or len(reference) != 5 or reference[0] != "storage":
            raise TensorFileError(f"{self.where}: a reference to outside storage that is not one of PyTorch's.")
        _, kind, key, _, numel = reference
        if not isinstance(kind, StorageType) or type(key) is not str or type(numel) is not int:
            raise TensorFileError(f"{self.where}: a reference to outside storage of an unknown kind.")
        entry = self.entries.get(f"{self.folder}{key}")
        if entry is None:
            raise TensorFileError(f"{self.where}: the storage {key[:80]!r} is missing; the archive is incomplete.")
        at, size = entry.at, entry.size
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
        """`torch._utils._rebuild_tensor_v2`, for a view within its storage that is not larger than it."""
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
            self.records[id(tensor)] = f"{self.folder}{storage.key}"
        return self.tensors[identity]

    def rebuild_typed(
        self, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, *_: Any
    ) -> torch.Tensor:
        """`torch._utils._rebuild_tensor_v3`: an untyped storage and a separate type."""
        if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype):
            raise TypeError("a tensor without a storage or a type")
        numel, left = divmod(storage.numel * storage.dtype.itemsize, dtype.itemsize)
        if left:
            raise TensorFileError(f"{self.where}: the storage {storage.key!r} does not hold whole numbers of {dtype}.")
        return self.rebuild(_Storage(storage.key, dtype, storage.content, numel), offset, size, stride)

    @staticmethod
    def parameter(data: Any, requires_grad: Any = False, hooks: Any = None) -> torch.Tensor:
        """`torch._utils._rebuild_parameter`, without `requires_grad` of the file."""
        if not isinstance(data, torch.Tensor):
            raise TypeError("a parameter without a tensor")
        return data


def _are_sizes(values: Any) -> bool:
    short = type(values) is tuple and len(values) <= MAX_DIMENSIONS
    return short and all(type(value) is int and 0 <= value < MAX_SIDE for value in values)
