"""Writes PyTorch archives under a temporary name, reads them back, and then renames them to the target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_policy.safe_pickle import UnsafePickleError
from diffusion_policy.storage import StorageError, atomic_file
from diffusion_policy.tensor_file.opened import TensorFileError
from diffusion_policy.tensor_file.torch_zip import read_torch_zip

_SCALARS = (str, int, float, bool, bytes, type(None))


def save_torch_zip(path: Path, content: dict[str, Any], check: Callable[[Path], None] | None = None) -> None:
    """`torch.save`, atomically: whatever happens, `path` holds either the former file or the complete new one.

    Readers that use dill open it, too. Its pickler, in Python, would take half as long again for a small checkpoint.

    The new file is flushed to disk and opened with our own reader before it takes the former one's place.

    Args:
        path: of the file.
        content: what it holds.
        check: called with the finished file before it is moved into place; if it raises, the file is discarded.

    Raises:
        TensorFileError: it could not be written (a full disk, no permission) or not read back; the former file is
            untouched and the unfinished one is removed.
    """
    try:
        path.parent.stat()  # a missing folder is a mistake in the path, so it is not created
        with atomic_file(path, shared=False) as unfinished:
            _write(unfinished, path, content)
            if check is not None:
                check(unfinished)
    except FileNotFoundError as error:
        raise _refusal(path, error) from error
    except StorageError as error:
        if error.refused != path:  # about a file that `check` writes
            raise
        raise _refusal(path, error) from error


def _write(unfinished: Path, path: Path, content: dict[str, Any]) -> None:
    """Write the archive, and open it."""
    try:
        with unfinished.open("wb") as file:  # its errors give a reason; those of files that PyTorch opens do not
            torch.save(content, file)
        read_torch_zip(
            unfinished, check=False
        )  # the bytes are still in the page cache, so checksums would show nothing
    except (OSError, RuntimeError, TensorFileError, UnsafePickleError) as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> TensorFileError:
    """The error of the disk or PyTorch, as one sentence about `path`."""
    kept = "the previous file is kept" if path.exists() else "nothing was left behind"
    return TensorFileError(f"{path}: could not be written ({_cause(error)}); {kept}.")


def _cause(error: BaseException) -> str:
    """The operating system's reason, which PyTorch wraps in its own errors."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__cause__ or link.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class Portable:
    """Converts content into what every reader accepts: plain containers, numbers, strings and CPU tensors.

    Names that shared a tensor still share it. A tensor that covers only part of its storage is copied, since PyTorch
    saves whole storages.
    """

    def __init__(self) -> None:
        self._tensors: dict[tuple[Any, ...], torch.Tensor] = {}

    def of(self, value: Any, where: str) -> Any:
        """`value`, portable. Raises TensorFileError with the dotted path `where` of anything that is not plain data."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, np.generic):
            return value.item()
        if type(value) in _SCALARS:
            return value
        if isinstance(value, dict):
            for key in value:
                if type(key) not in (str, int, float, bool, type(None)):
                    raise TensorFileError(f"{where}: the key {key!r} is a {type(key).__name__}; use text or a number.")
            return {key: self.of(child, f"{where}.{key}") for key, child in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.of(child, f"{where}.{index}") for index, child in enumerate(value))
        raise TensorFileError(
            f"{where}: a {type(value).__name__} cannot be saved, because files are read back without running code; "
            "use dictionaries, lists, numbers, text and tensors."
        )

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        view = (storage._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if view not in self._tensors:
            saved = tensor.detach().cpu()
            whole = saved.untyped_storage().nbytes() == saved.numel() * saved.element_size()
            self._tensors[view] = saved if whole else saved.clone(memory_format=torch.contiguous_format)
        return self._tensors[view]
