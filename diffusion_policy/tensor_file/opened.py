"""An open file of any format: names, shapes, types and identities of its tensors, and access to each tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.storage import file_sha256, sha256


class TensorFileError(WorkspaceError):
    """A file that violates its format, is damaged, or has absurd sizes."""


@dataclass(frozen=True)
class TensorInfo:
    """The entry of one name in a file. Names with equal `storage` refer to one tensor: same bytes, shape and type."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # PyTorch's name without the prefix: "float32", "bfloat16"
    nbytes: int
    storage: str

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Integrity(Protocol):
    """Checks whether a file's bytes are unchanged since it was written."""

    def check(self) -> None:
        """Compare all bytes with the recorded checksums; TensorFileError names the records that differ."""

    def describe(self) -> str:
        """Which checksums are recorded, and whether they were compared, as a sentence."""


@dataclass(frozen=True)
class TensorFile:
    """An open file. `tree` is its content as plain Python with `TensorInfo` leaves; `tensors` the same leaves by
    dotted path, in the file's order (`state_dicts.ema_model.model.head.weight`).
    """

    path: Path
    format: str  # "torch", "torch before 1.6", "safetensors", "sharded safetensors" or "pickle"
    files: tuple[Path, ...]
    tree: Any
    tensors: dict[str, TensorInfo]
    loader: Callable[[str], torch.Tensor] = field(repr=False)
    integrity: Integrity = field(repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)  # safetensors' own notes; empty for other formats
    stand_ins: Mapping[str, int] = field(default_factory=dict)  # objects that were not read, by their class

    def load(self, name: str) -> torch.Tensor:
        """The memory-mapped tensor of a dotted path, after its bytes were compared with their checksum.

        Raises:
            TensorFileError: no such name, or the bytes are damaged.
        """
        if name not in self.tensors:
            raise TensorFileError(f"{self.path.name}: there is no tensor {name!r} among the {len(self.tensors)} in it.")
        return self.loader(name)

    def check_format(self) -> None:
        """Compare the format's own checksums, which PyTorch's archives have, at 3 GB/s or more.

        A hash recorded in another file takes several seconds per gigabyte; it is compared when tensors are read.

        Raises:
            TensorFileError: the bytes are damaged.
        """
        if self.format == "torch":
            self.integrity.check()

    def sha256(self) -> str:
        """The file's SHA-256 in hexadecimal; for shards, that of the lines `digest  name`, in the order of `files`."""
        return sha256_of_shards({path: file_sha256(path) for path in self.files})


def describe(name: str, tensor: torch.Tensor, storage: str) -> TensorInfo:
    """The entry of a tensor, in memory or memory-mapped."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorInfo(name, tuple(tensor.shape), dtype, tensor.numel() * tensor.element_size(), storage)


def walk(tree: Any, where: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Iterate over the tensors of a plain tree with their dotted paths.

    Raises:
        TensorFileError: two tensors with one path, such as `{"a.b": x, "a": {"b": y}}`.
    """
    seen: set[str] = set()
    pending: list[tuple[str, Any]] = [("", tree)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, torch.Tensor):
            if path in seen:
                raise TensorFileError(f"{where}: two tensors have the path {path!r}.")
            seen.add(path)
            yield path, value
        elif isinstance(value, (dict, list, tuple)):
            children = value.items() if isinstance(value, dict) else enumerate(value)
            prefix = f"{path}." if path else ""
            pending.extend(reversed([(f"{prefix}{key}", child) for key, child in children]))


def sha256_of_shards(digests: Mapping[Path, str]) -> str:
    """One SHA-256 for several files, in their order; that of a single file is its own."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{digest}  {path.name}\n" for path, digest in digests.items())
    return sha256(lines.encode()).hex()
