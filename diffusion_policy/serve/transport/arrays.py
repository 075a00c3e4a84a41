"""NumPy arrays in msgpack, in the format of openpi's clients, read with bounds checks.

An array is a map with the *bytes* keys ``__ndarray__`` (true), ``data``, ``dtype``, ``shape``; a scalar has
``__npgeneric__`` instead of ``__ndarray__``. Objects, structures and complex numbers are refused, as is a shape that
does not fit its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from diffusion_policy.serve.transport.protocol import ProtocolError

_KINDS = "biuf"


def pack(message: Mapping[str, Any]) -> bytes:
    """Encodes one message with its arrays."""
    return bytes(msgpack.packb(message, default=_pack_array))


def unpack(data: bytes) -> Any:
    """Decodes one message.

    Raises:
        ProtocolError: malformed.
    """
    try:
        return msgpack.unpackb(data, object_hook=_unpack_array)
    except ProtocolError:
        raise
    except (msgpack.UnpackException, ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise ProtocolError("malformed", f"not a single msgpack message: {error}") from error


def _pack_array(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in _KINDS:
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic) and value.dtype.kind in _KINDS:
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _unpack_array(entry: dict[Any, Any]) -> Any:
    if b"__ndarray__" in entry:
        dtype, shape = _dtype(entry), entry.get(b"shape")
        if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
            raise ProtocolError("malformed", f"an array has the shape {str(shape)[:60]}")
        data = entry.get(b"data")
        if not isinstance(data, bytes) or len(data) != int(np.prod(shape, dtype=object)) * dtype.itemsize:
            raise ProtocolError("malformed", f"an array of shape {shape} and {dtype} does not fit its bytes")
        return np.frombuffer(data, dtype).reshape(shape)
    if b"__npgeneric__" in entry:
        return _dtype(entry).type(entry.get(b"data")).item()
    return entry


def _dtype(entry: Mapping[Any, Any]) -> np.dtype[Any]:
    name = entry.get(b"dtype")
    dtype = np.dtype(name) if isinstance(name, str) and len(name) < 8 else None
    if dtype is None or dtype.kind not in _KINDS or dtype.names is not None:
        raise ProtocolError("malformed", f"an array has the dtype {str(name)[:20]!r}; expected numbers")
    return dtype
