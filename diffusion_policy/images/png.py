"""The structure of a PNG (ISO/IEC 15948): its chunks, whether all pixels are there, EXIF orientation.

OpenCV fills in the missing part of a truncated PNG; here every critical chunk must match its CRC-32, and the compressed
pixels must unpack to exactly the number of bytes that the header implies.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diffusion_policy.images.errors import ImageError
from diffusion_policy.images.jpeg import exif_orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = b"\0\0\0\0IEND\xaeB`\x82"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_GRAY, _ALPHA = (0, 4), (4, 6)
# Column and row where each pass of an interlaced picture starts, and its steps (ISO/IEC 15948, 8.2).
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_WHOLE = ((0, 0, 1, 1),)


@dataclass(frozen=True)
class PngHeader:
    """The contents of a PNG's first chunk.

    Attributes:
        size: (width, height), pixels.
        depth: bits of a sample.
        color: type of color: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGB and alpha.
        interlaced: whether the rows are interlaced.
    """

    size: tuple[int, int]
    depth: int
    color: int
    interlaced: bool

    @property
    def is_gray(self) -> bool:
        """Whether it has no color."""
        return self.color in _GRAY

    @property
    def has_alpha(self) -> bool:
        """Whether it has an alpha channel."""
        return self.color in _ALPHA

    @property
    def raw_size(self) -> int:
        """Bytes of the unpacked rows, including a filter byte before each."""
        width, height = self.size
        bits = _SAMPLES[self.color] * self.depth
        total = 0
        for left, top, step_x, step_y in _ADAM7 if self.interlaced else _WHOLE:
            columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
            total += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
        return total


@dataclass(frozen=True)
class Png:
    """A PNG whose pixels are all there.

    Attributes:
        data: up to and including its end chunk.
        orientation: of EXIF, 1 to 8.
        has_alpha: an alpha channel, or transparent palette entries or colors.
        is_ended: whether it had its end chunk.
        n_trailing: bytes that came after it.
    """

    data: bytes
    orientation: int
    has_alpha: bool
    is_ended: bool
    n_trailing: int


def png_header(data: bytes) -> PngHeader | None:
    """The first chunk, IHDR, of a PNG; None if it is missing or invalid."""
    if not data.startswith(SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    if color not in _SAMPLES or depth not in (1, 2, 4, 8, 16) or not width or not height:
        return None
    return PngHeader((width, height), depth, color, bool(interlaced))


def check_png(data: bytes, header: PngHeader, where: str) -> Png:
    """A PNG whose pixels have been checked.

    Raises:
        ImageError: a critical chunk is damaged, pixels are missing, or there are several pictures.
    """
    orientation, has_alpha, animated = 1, header.has_alpha, False
    packed: list[bytes] = []
    end, is_ended, is_cut = len(SIGNATURE), False, False
    for at, kind, payload, is_complete in _chunks(data):
        if payload is None:
            is_cut = True
            break
        if not is_complete and kind[:1].isupper():
            name = kind.decode("ascii", "replace")
            raise ImageError(f"{where}: a damaged PNG (its {name} chunk at byte {at} fails its CRC-32)")
        end = at + 12 + len(payload)
        if kind == b"IDAT":
            packed.append(payload)
        elif kind == b"IEND":
            is_ended = True
            break
        orientation = exif_orientation(payload) if kind == b"eXIf" and is_complete else orientation
        has_alpha = has_alpha or kind == b"tRNS"
        animated = animated or kind == b"acTL"
    if animated:
        raise ImageError(f"{where}: an animated PNG; expected one picture per file")
    missing = _missing_pixels(packed, header)
    if missing is not None:
        problem = f"the PNG is cut off after {len(data)} bytes" if is_cut else f"a damaged PNG: {missing}"
        raise ImageError(f"{where}: {problem}")
    whole = data[:end] if is_ended else data[:end] + END
    return Png(whole, orientation, has_alpha, is_ended, len(data) - end)


def _chunks(data: bytes) -> Iterator[tuple[int, bytes, bytes | None, bool]]:
    """(offset, type, payload, whether its CRC matches) of each chunk; payload is None for a truncated one."""
    at = len(SIGNATURE)
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if at + 12 + length > len(data):
            yield at, kind, None, False
            return
        payload, crc = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        yield at, kind, payload, zlib.crc32(payload, zlib.crc32(kind)) == int.from_bytes(crc, "big")
        at += 12 + length


def _missing_pixels(packed: Sequence[bytes], header: PngHeader) -> str | None:
    """What is wrong with the compressed pixels; None if they are all there."""
    unpacker, n_bytes = zlib.decompressobj(), 0
    try:
        for part in packed:
            n_bytes += len(unpacker.decompress(part, header.raw_size + 1 - n_bytes))
            if n_bytes > header.raw_size:
                break
    except zlib.error as error:
        return f"its pixels do not unpack ({error})"
    if n_bytes != header.raw_size or not unpacker.eof:
        return f"its pixels unpack to {n_bytes} bytes, but its header implies {header.raw_size}"
    return None
