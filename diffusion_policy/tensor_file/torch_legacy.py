"""PyTorch's format from before 1.6, which torch.save can still write: pickles, then storages.

    magic number | protocol | facts of the system | content | names of the storages | per storage: count, numbers

The content refers to storages whose positions come only after it, so it is read twice: first for their sizes. The
format has no checksums; a SHA-256 recorded in another file of the folder is used.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from diffusion_policy.safe_pickle import Allowed, UnsafePickleError, length_of_first, load
from diffusion_policy.tensor_file.inert import CONTENT_GLOBALS, to_plain
from diffusion_policy.tensor_file.integrity import REMEDY, Record, RecordedHashes
from diffusion_policy.tensor_file.opened import TensorFileError
from diffusion_policy.tensor_file.torch_zip import MAX_PICKLE_BYTES, StorageType, Tensors, TorchArchive, tensor_globals

PROTOCOL = 1001
_COUNT_BYTES = 8

Sizes = tuple[int, int]


def read_torch_legacy(path: Path, *, check: bool = True, stand_ins: bool = False) -> TorchArchive:
    """Open such a file; none of its code is run.

    Args:
        path: of the file.
        check: compare it now with the SHA-256 recorded for it, if there is one.
        stand_ins: skip objects of other programs' classes (`safe_pickle.load`).

    Raises:
        TensorFileError: truncated, damaged, or with impossible sizes.
        UnsafePickleError: a pickle in it names something that is not on the allow-list.
    """
    where = str(path)
    with path.open("rb") as file:
        size = file.seek(0, 2)
        pickles = _Pickles(file, where)
        pickles.plain()  # the magic number, by which the file was recognized
        protocol, system = pickles.plain(), pickles.plain()
        if protocol != PROTOCOL or not isinstance(system, dict) or not system.get("little_endian", False):
            raise TensorFileError(
                f"{where}: it is in protocol {protocol!r} of PyTorch's format from before 1.6, or from a big-endian "
                f"machine; expected {PROTOCOL}. Open it with the PyTorch that wrote it and save it again."
            )
        program = pickles.program()
        sizes = _sizes_of(program, where, stand_ins=stand_ins)
        records = _records(file, pickles, sizes, size, where)
    tensors = Tensors(path, "", records)
    content = load(program, allowed={**CONTENT_GLOBALS, **tensors.recipes()}, where=where,
                   persistent_load=lambda reference: tensors.storage(_reference(reference, where)),
                   stand_ins=stand_ins)  # fmt: skip
    stand_in_classes: Counter[str] = Counter()
    plain = to_plain(content, where, stand_in_classes)
    archive = TorchArchive(plain, tensors.identities, RecordedHashes(path, (path,)), {}, stand_in_classes)
    if check:
        archive.check()
    return archive


class _Pickles:
    """The pickles at the beginning of a file, in order."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        self.file = file
        self.where = where
        self.at = 0

    def program(self) -> bytes:
        """The bytes of the next one, not yet interpreted."""
        self.file.seek(self.at)
        ahead = self.file.read(MAX_PICKLE_BYTES)
        try:
            length = length_of_first(ahead, self.where)
        except UnsafePickleError as error:
            raise TensorFileError(f"{self.where}: its content is truncated or damaged: {REMEDY}.") from error
        self.at += length
        return ahead[:length]

    def plain(self) -> Any:
        """The next one, consisting of numbers, strings and containers."""
        return load(self.program(), allowed={}, where=self.where)


def _reference(reference: Any, where: str) -> tuple[Any, ...]:
    """A reference to a storage in the form of later versions, which do not refer to views."""
    if type(reference) is not tuple or len(reference) != 6 or reference[5] is not None:
        raise TensorFileError(
            f"{where}: it refers to outside storage as PyTorch did before 0.4, or not as PyTorch does; open it with "
            "the PyTorch that wrote it and save it again."
        )
    return reference[:5]


def _sizes_of(program: bytes, where: str, *, stand_ins: bool) -> dict[str, Sizes]:
    """For each storage that the content refers to, how many numbers it holds, and their size in bytes."""
    sizes: dict[str, Sizes] = {}

    def note(reference: Any) -> None:
        _, kind, key, _, numel = _reference(reference, where)
        if not isinstance(kind, StorageType) or type(key) is not str or type(numel) is not int or numel < 0:
            raise TensorFileError(f"{where}: a reference to outside storage of an unknown kind.")
        sizes[key] = numel, kind.dtype.itemsize

    allowed: Allowed = {**CONTENT_GLOBALS, **tensor_globals(_no_tensor, _no_tensor, _no_tensor)}
    load(program, allowed=allowed, where=where, persistent_load=note, stand_ins=stand_ins)
    return sizes


def _no_tensor(*_: Any) -> None:
    """Replaces tensors while only storages are looked for."""


def _records(
    file: BinaryIO, pickles: _Pickles, sizes: dict[str, Sizes], file_size: int, where: str
) -> dict[str, Record]:
    """The offset of each storage."""
    keys = pickles.plain()
    if not isinstance(keys, list) or not all(type(key) is str for key in keys) or len(set(keys)) != len(keys):
        raise TensorFileError(f"{where}: its list of storages is invalid; it is damaged: {REMEDY}.")
    records: dict[str, Record] = {}
    at = pickles.at
    for key in keys:
        if key not in sizes:
            raise TensorFileError(f"{where}: it holds the storage {key[:80]!r}, which nothing in it refers to.")
        file.seek(at)
        at += _COUNT_BYTES
        counted = int.from_bytes(file.read(_COUNT_BYTES), "little", signed=True)
        numel, itemsize = sizes[key]
        if counted != numel or at + numel * itemsize > file_size:
            raise TensorFileError(
                f"{where}: the storage {key[:80]!r} should hold {numel} numbers; the file has {counted}, or ends "
                f"before that: it is truncated or damaged: {REMEDY}."
            )
        records[key] = Record(key, at, numel * itemsize, 0)
        at += numel * itemsize
    return records
