"""What every format becomes once it is open: names, shapes, types, identities, and a way to each tensor."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diffusion_policy.spec import WorkspaceError

_HASH_BLOCK = 2**22


class TensorFileError(WorkspaceError):
    """A file that is not what its format says, is damaged, or asks for absurd amounts."""


@dataclass(frozen=True)
class TensorInfo:
    """One name in a file. Two names with equal `storage` mean the same tensor: same bytes, shape and type."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as PyTorch calls it, without the prefix: "float32", "bfloat16"
    nbytes: int
    storage: str

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorFile:
    """An open file. `tree` is its content as plain Python with `TensorInfo` leaves; `tensors` the same leaves by
    dotted path, in the file's order (`state_dicts.ema_model.model.head.weight`).
    """

    path: Path
    format: str  # "torch", "safetensors", "sharded safetensors" or "pickle"
    files: tuple[Path, ...]
    tree: Any
    tensors: dict[str, TensorInfo]
    loader: Callable[[str], torch.Tensor] = field(repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)  # safetensors' own notes; empty for other formats

    def load(self, name: str) -> torch.Tensor:
        """The tensor under a dotted path, mapped from disk: its bytes are read when they are looked at.

        Raises:
            TensorFileError: no such name.
        """
        if name not in self.tensors:
            raise TensorFileError(f"{self.path.name}: there is no tensor {name!r} among the {len(self.tensors)} in it.")
        return self.loader(name)

    def sha256(self) -> str:
        """The file's SHA-256 in hexadecimal; for shards, that of the lines `digest  name`, in the order of `files`."""
        digests = [_sha256(path) for path in self.files]
        if len(digests) == 1:
            return digests[0]
        lines = "".join(f"{digest}  {path.name}\n" for digest, path in zip(digests, self.files, strict=True))
        return hashlib.sha256(lines.encode()).hexdigest()

    def nonfinite(self) -> dict[str, int]:
        """How many NaN and infinite numbers each tensor holds, for those that hold any. Reads every tensor once.

        Additive attention masks hold -inf on purpose: what to make of a count is the caller's matter.
        """
        counts: dict[str, int] = {}
        by_storage: dict[str, int] = {}
        for name, info in self.tensors.items():
            if info.storage not in by_storage:
                by_storage[info.storage] = _count_nonfinite(self.load(name))
            if by_storage[info.storage]:
                counts[name] = by_storage[info.storage]
        return counts


def describe(name: str, tensor: torch.Tensor, storage: str) -> TensorInfo:
    """The entry for a tensor in memory or mapped."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorInfo(name, tuple(tensor.shape), dtype, tensor.numel() * tensor.element_size(), storage)


def walk(tree: Any, where: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor in a plain tree with its dotted path.

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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _count_nonfinite(tensor: torch.Tensor) -> int:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    return int(tensor.numel() - torch.isfinite(tensor).sum())
