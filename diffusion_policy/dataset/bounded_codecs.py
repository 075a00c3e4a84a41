"""General codecs whose packed bytes do not state their unpacked size, with a limit to it, for zarr formats 2 and 3."""

from __future__ import annotations

import asyncio
import bz2
import lzma
import zlib
from typing import Any, Protocol

import numcodecs
import zarr
from numcodecs.compat import ensure_contiguous_ndarray, ndarray_copy
from zarr.codecs import GzipCodec
from zarr.core.buffer.cpu import as_numpy_array_wrapper
from zarr.registry import register_codec

from diffusion_policy.dataset.limits import LARGEST_CHUNK


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: Any, max_length: int, /) -> bytes: ...


def _bounded(decompressor: _Decompressor, packed: Any, out: Any) -> Any:
    content = decompressor.decompress(ensure_contiguous_ndarray(packed), LARGEST_CHUNK + 1)
    if len(content) > LARGEST_CHUNK or not decompressor.eof:
        raise ValueError(f"it is truncated, or unpacks to more than {LARGEST_CHUNK} bytes")
    return ndarray_copy(content, out)


class BoundedZlib(numcodecs.Zlib):
    """zlib."""

    codec_id = "zlib"

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The unpacked bytes; ValueError if they exceed the largest chunk."""
        return _bounded(zlib.decompressobj(), buf, out)


class BoundedGZip(numcodecs.GZip):
    """gzip."""

    codec_id = "gzip"

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The unpacked bytes; ValueError if they exceed the largest chunk."""
        return _bounded(zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), buf, out)


class BoundedBZ2(numcodecs.BZ2):
    """bzip2."""

    codec_id = "bz2"

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The unpacked bytes; ValueError if they exceed the largest chunk."""
        return _bounded(bz2.BZ2Decompressor(), buf, out)


class BoundedLZMA(numcodecs.LZMA):
    """LZMA."""

    codec_id = "lzma"

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The unpacked bytes; ValueError if they exceed the largest chunk."""
        return _bounded(lzma.LZMADecompressor(format=self.format, filters=self.filters), buf, out)


class BoundedGzipCodec(GzipCodec):
    """gzip for format 3."""

    def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        return as_numpy_array_wrapper(BoundedGZip(self.level).decode, chunk_bytes, chunk_spec.prototype)

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)


for _codec in (BoundedZlib, BoundedGZip, BoundedBZ2, BoundedLZMA):
    numcodecs.register_codec(_codec)
register_codec("gzip", BoundedGzipCodec)
zarr.config.set({"codecs.gzip": f"{BoundedGzipCodec.__module__}.{BoundedGzipCodec.__qualname__}"})
