"""NumPy arrays and scalars in pickles, as NumPy 1 (`numpy.core`) and NumPy 2 (`numpy._core`) write them.

Only plain numbers and text are read: an array of objects would contain unchecked references, and structured types or
sizes that disagree with the number of bytes are not needed for recordings.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from diffusion_policy.safe_pickle.machine import Allowed, NotPlainError, Recipe

MAX_DIMENSIONS = 32

_DTYPE = re.compile(r"[<>=|]?([biufc][0-9]{1,2}|[SU][0-9]{1,6}|\?)")
_NDARRAY = "numpy.ndarray"


def _numbers_only(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or dtype.names is not None:
        raise ValueError(f"an array of {dtype!r}: only plain numbers and text are read"[:200])
    return dtype


def _fitting_shape(shape: Any, dtype: Any, size: int) -> tuple[int, ...]:
    """`shape`, after checking that `size` bytes fill it exactly."""
    plain = type(shape) is tuple and all(type(side) is int and side >= 0 for side in shape)
    if not plain or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"an array of shape {shape!r}"[:200])
    needed = _numbers_only(dtype).itemsize
    for side in shape:
        needed *= side
    if needed != size:
        raise ValueError(f"an array of shape {shape} and type {dtype} with {size} bytes of data")
    return shape


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Replacement of `_codecs.encode`, with which protocols 0 to 2 encode bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"an encoding {encoding!r}: bytes are spelled in latin1"[:200])
    return text.encode("latin1")


def _make_dtype(text: Any, align: Any = False, copy: Any = False) -> np.dtype[Any]:
    if isinstance(text, str) and text.lstrip("<>=|").startswith("O"):
        raise NotPlainError("an array of Python objects (dtype object), and only plain numbers and text are read")
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise ValueError(f"an array of type {text!r}: only plain numbers and text are read"[:200])
    return np.dtype(text, align=False, copy=True)


def _set_dtype_state(dtype: np.dtype[Any], state: Any) -> None:
    """The state is (version, byte order, subarray, names, fields, ...), of which only the byte order may be set."""
    if type(state) is not tuple or len(state) != 8 or state[1] not in ("<", ">", "|", "=") or state[2:5] != (None,) * 3:
        raise ValueError(f"an array type with the state {state!r}"[:200])
    size, alignment = (dtype.itemsize, dtype.alignment) if dtype.kind in "SU" else (-1, -1)
    dtype.__setstate__((3, state[1], None, None, None, size, alignment, 0))  # type: ignore[attr-defined]


def _make_array(kind: Any, shape: Any, code: Any) -> np.ndarray[Any, Any]:
    if kind != _NDARRAY:
        raise ValueError("an array of a class other than numpy.ndarray")
    return np.zeros(0, dtype=np.int8)


def _set_array_state(array: np.ndarray[Any, Any], state: Any) -> None:
    if type(state) is not tuple or len(state) != 5 or type(state[4]) not in (bytes, str):
        raise ValueError("an array whose state is not (version, shape, type, order, bytes)")
    _, shape, dtype, fortran, content = state
    content = _as_bytes(content)
    shape = _fitting_shape(shape, dtype, len(content))
    array.__setstate__((1, shape, dtype, bool(fortran), content))  # type: ignore[arg-type]


def _as_bytes(content: Any) -> Any:
    """The content as bytes: Python 2 wrote bytes as text, one character per byte."""
    return content.encode("latin1") if type(content) is str else content


def _make_scalar(dtype: Any, content: Any) -> Any:
    content = _as_bytes(content)
    if type(content) is not bytes:
        raise ValueError("a number whose content is not bytes")
    _fitting_shape((), dtype, len(content))
    return np.frombuffer(content, dtype=dtype, count=1)[0]


def _array_from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    if type(content) is not bytes or order not in ("C", "F"):
        raise ValueError("an array whose content is not bytes")
    shape = _fitting_shape(shape, dtype, len(content))
    return np.frombuffer(content, dtype=dtype).reshape(shape, order=order)


def _no_bytes() -> bytes:
    """Replacement of `bytes()` without arguments, with which protocols 0 to 2 encode empty bytes."""
    return b""


NUMPY_GLOBALS: Allowed = {
    ("_codecs", "encode"): Recipe(_encode),
    ("__builtin__", "bytes"): Recipe(_no_bytes),
    ("builtins", "bytes"): Recipe(_no_bytes),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): Recipe(_make_dtype, np.dtype, _set_dtype_state),
    **{
        (f"numpy.{core}.{module}", name): recipe
        for core in ("core", "_core")
        for module, name, recipe in (
            ("multiarray", "_reconstruct", Recipe(_make_array, np.ndarray, _set_array_state)),
            ("multiarray", "scalar", Recipe(_make_scalar)),
            ("numeric", "_frombuffer", Recipe(_array_from_buffer)),
        )
    },
}
"""Allow-list for arrays and scalars of plain numbers and text; arrays of objects are refused."""
