"""Modules built for their shapes alone, as inspecting, planning and checking a checkpoint need them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DRAWS = (Tensor.normal_, Tensor.uniform_)


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as they are where they would be initialized."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = kwargs or {}
        if func in _DRAWS or getattr(func, "__module__", None) == "torch.nn.init":
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Tensors that are made in this block are on torch's meta device: they have no values and take no memory.

    Nothing is drawn for them: torch draws on that device in Python, for which it loads its compiler, and that takes a
    second of processor time.
    """
    with torch.device("meta"), _Undrawn():
        yield
