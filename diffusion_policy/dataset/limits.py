"""Limits to an array's metadata: a dataset of unknown origin must not run code, or exhaust memory."""

from __future__ import annotations

import math
from typing import Any

import zarr
from numcodecs.abc import Codec

from diffusion_policy.dataset.errors import DatasetError

# Bytes of an unpacked chunk: Blosc's own limit.
LARGEST_CHUNK = 2**31
# Bytes of an array of numbers, which is read at once: a hundred million steps of ten numbers.
_MOST_NUMBERS = 2**33
_MOST_AXES = 8
# Codecs of numcodecs that do not run what they unpack ("pickle" would), besides image codecs.
_CODECS = frozenset({
    "adler32", "astype", "bitround", "blosc", "bz2", "categorize", "crc32", "crc32c", "delta", "fixedscaleoffset",
    "fletcher32", "gzip", "jenkins_lookup3", "lz4", "lzma", "packbits", "quantize", "shuffle", "zlib", "zstd",
})  # fmt: skip
_IMAGE_CODECS = "imagecodecs_"
_FRAMES = 4
_ZSTD, _ZSTD_SIZES, _ZSTD_DICTIONARY = b"\x28\xb5\x2f\xfd", (0, 2, 4, 8), (0, 1, 2, 4)
# Bytes needed to tell what a chunk unpacks to.
HEADER = 18


def refuse_absurd(array: zarr.Array[Any], where: str) -> None:
    """Refuse an array whose metadata asks for more than a dataset needs.

    Args:
        array: of a dataset; none of its data has been read.
        where: its name.

    Raises:
        DatasetError: data other than fixed-size numbers, a codec that may run code, or sizes that no dataset has.
    """
    if array.dtype.kind not in "biufUSM":
        raise DatasetError(f"{where} holds {array.dtype}, not numbers; such arrays are not read: leave it out")
    codecs = [*(array.filters or ()), *array.compressors]
    unknown = [codec.codec_id for codec in codecs if isinstance(codec, Codec) and not _is_harmless(codec.codec_id)]
    if unknown:
        raise DatasetError(f"{where} is packed with {unknown[0]!r}, which is not unpacked here: write it with blosc")
    chunk = math.prod(array.chunks) * array.dtype.itemsize
    if array.ndim > _MOST_AXES or min(array.chunks, default=1) < 1 or chunk > LARGEST_CHUNK:
        raise DatasetError(
            f"{where} has chunks of {chunk} bytes, {array.chunks}; at most {LARGEST_CHUNK} are unpacked at a time: "
            "write it in smaller ones"
        )
    size = math.prod(array.shape) * array.dtype.itemsize
    if array.ndim < _FRAMES and size > _MOST_NUMBERS:
        raise DatasetError(f"{where} has {size} bytes of numbers, {array.shape}; at most {_MOST_NUMBERS} are read")


def _is_harmless(codec: str) -> bool:
    return codec in _CODECS or codec.startswith(_IMAGE_CODECS)


def unpacked_size(codec: str, beginning: bytes) -> int | None:
    """Bytes that a chunk unpacks to, according to its first bytes; None if they do not say.

    Args:
        codec: its numcodecs name.
        beginning: the first HEADER bytes.
    """
    if codec == "blosc":
        return int.from_bytes(beginning[4:8], "little")
    if codec == "lz4":
        return int.from_bytes(beginning[:4], "little")
    if codec != "zstd" or beginning[:4] != _ZSTD:
        return None
    descriptor = beginning[4]
    is_single = descriptor >> 5 & 1
    length = _ZSTD_SIZES[descriptor >> 6] or is_single
    start = 5 + (not is_single) + _ZSTD_DICTIONARY[descriptor & 3]
    size = int.from_bytes(beginning[start : start + length], "little")
    return size + 256 * (length == 2) if length else None
