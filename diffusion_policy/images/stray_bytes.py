"""Stray bytes before a JPEG marker: harmless, or a sign that pixels before them are damaged?

Webcams put bytes between the compressed data and the marker that ends it; libjpeg warns of "extraneous bytes". For some
damage that warning is the only one: when a decoder loses synchronization in the Huffman codes and regains it some
blocks too late, real picture data is left over at the end. Two things distinguish the cases (ITU T.81, F.1.2.3 and
B.1.1.5): with stray bytes, the bits after the last block are ones, an encoder's padding, and the leftover bytes are not
a series of complete blocks that ends like compressed data.

A picture with restart markers is judged one interval at a time, each as a small separate JPEG.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from diffusion_policy.images.jpeg import END, JpegHeader, jpeg_header, restart_segments

# Most arbitrary stray bytes before one marker; drivers write up to a few dozen. Zeros are not limited.
MAX_STRAY = 64
# libjpeg has read ahead when it counts leftover bytes, so up to this many more may be stray.
_READ_AHEAD = 12
_MAX_SIDE = 65_500
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker")
_BASELINE = (0xC0, 0xC1)


@dataclass(frozen=True)
class _Interval:
    """Compressed data between two restart markers, and the segments before the pixels that make it a picture."""

    head: bytes
    data: bytes
    colors: str

    def decode(self, data: bytes) -> tuple[NDArray[np.uint8] | None, str]:
        """The pixels decoded from the head and some data, or None and the first warning."""
        try:
            return simplejpeg.decode_jpeg(self.head + data + END, self.colors), ""
        except ValueError as error:
            return None, str(error)


def without_stray_bytes(data: bytes, header: JpegHeader) -> bytes | None:
    """A JPEG without the stray bytes before its markers; None unless all its pixels are known to be there.

    Args:
        data: up to and including the end marker, of a JPEG that libjpeg warns of.
        header: its header.
    """
    n = len(header.components)
    is_one_scan = len(header.scan) == 2 * n + 4 and header.scan[0] == n
    if header.process not in _BASELINE or not is_one_scan:
        return None
    parts, markers = restart_segments(data[header.scan_at : -len(END)])
    heads = _heads(data, header, len(parts))
    if heads is None:
        return None
    colors = "CMYK" if n == 4 else "RGB"
    blocks, joined = _Blocks(header), data[: header.scan_at]
    for head, part, marker in zip(heads, parts, [*markers, END], strict=True):
        kept = _without_stray(_Interval(head, part, colors), blocks)
        if kept is None:
            return None
        joined += kept + marker
    return joined


def _without_stray(interval: _Interval, blocks: _Blocks) -> bytes | None:
    """The data of an interval without stray bytes at its end; None unless its pixels are known to be complete."""
    end = _last_needed(interval)
    if end is None:
        return None
    used, stray = interval.data[:end], interval.data[end:]
    if not any(stray):
        return used if not stray or _ends_in_ones(interval, used) else None
    is_displaced = len(stray) > MAX_STRAY or blocks.are_in(used, stray)
    return used if not is_displaced and _ends_in_ones(interval, used) else None


def _last_needed(interval: _Interval) -> int | None:
    """Offset after the last byte that the picture needs; None if it needs more than there is, or has another fault."""
    enough = len(interval.data)
    pixels, warning = interval.decode(interval.data)
    while pixels is None:
        match = _EXTRANEOUS.search(warning)
        fewer = enough - int(match.group(1)) if match is not None else 0
        if not 0 < fewer < enough:
            return None
        enough = fewer
        pixels, warning = interval.decode(interval.data[:enough])
    too_few = max(enough - _READ_AHEAD, 0)
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if interval.decode(interval.data[:middle])[0] is None:
            too_few = middle
        else:
            enough = middle
    return enough


def _ends_in_ones(interval: _Interval, used: bytes) -> bool:
    """Whether the bits of the last byte that no block needs are ones: the lowest zero must belong to a block.

    A last byte without a one is not trusted: damage leaves zeros.
    """
    last = 0xFF if used.endswith(b"\xff\x00") else used[-1]
    if last in (0, 0xFF):
        return last == 0xFF
    flipped = last | (last + 1)
    unchanged, _ = interval.decode(used)
    changed, _ = interval.decode(used[:-1] + bytes([flipped]) + (b"\0" if flipped == 0xFF else b""))
    return unchanged is not None and (changed is None or not np.array_equal(unchanged, changed))


def _heads(data: bytes, header: JpegHeader, n_parts: int) -> list[bytes] | None:
    """For each interval, the segments before the pixels with a size that fits just its MCUs; None if there is none."""
    head, interval = data[: header.scan_at], header.restart_interval
    if n_parts == 1:
        return [head]
    width, height = (8 * n for n in _mcu_blocks(header))
    n_mcus = -(-header.size[0] // width) * -(-header.size[1] // height)
    if interval == 0 or -(-n_mcus // interval) != n_parts or interval * width > _MAX_SIDE:
        return None
    counts = [interval] * (n_parts - 1) + [n_mcus - interval * (n_parts - 1)]
    at = header.frame_at + 5
    sized = {n: head[:at] + height.to_bytes(2, "big") + (n * width).to_bytes(2, "big") + head[at + 4 :] for n in counts}
    return [sized[n] for n in counts]


def _mcu_blocks(header: JpegHeader) -> tuple[int, int]:
    """Blocks of 8x8 pixels across and down an MCU; one for a single component (ITU T.81, A.2.2)."""
    if len(header.components) == 1:
        return 1, 1
    return max(part.across for part in header.components), max(part.down for part in header.components)


class _Blocks:
    """Reads Huffman-coded blocks, to check whether bytes are displaced picture data."""

    def __init__(self, header: JpegHeader) -> None:
        self._tables = _huffman_tables(header.huffman or _standard_tables())
        chosen = dict(zip(header.scan[1:-3:2], header.scan[2:-3:2], strict=True))
        self._mcu: list[tuple[int, int]] = []
        for part in header.components:
            direct, alternating = divmod(chosen.get(part.identifier, 0), 16)
            n_blocks = part.across * part.down if len(header.components) > 1 else 1
            self._mcu += [(direct, 0x10 | alternating)] * n_blocks

    def are_in(self, used: bytes, stray: bytes) -> bool:
        """Whether stray bytes, with some of the bits before them, are MCUs that end like compressed data."""
        last = 0xFF if used.endswith(b"\xff\x00") else used[-1]
        n_ones = next((n for n in range(7) if not last >> n & 1), 7)
        bits = "".join(f"{byte:08b}" for byte in stray.replace(b"\xff\x00", b"\xff"))
        return any(self._are_complete("1" * n + bits) for n in range(n_ones + 1))

    def _are_complete(self, bits: str) -> bool:
        at, n_mcus = 0, 0
        while True:
            left = bits[at:]
            if n_mcus and len(left) < 8 and "0" not in left:
                return True
            for direct, alternating in self._mcu:
                after = self._block(bits, at, direct, alternating)
                if after is None:
                    return False
                at = after
            n_mcus += 1

    def _block(self, bits: str, at: int, direct: int, alternating: int) -> int | None:
        """Offset of the bit after a block; None if there is none (ITU T.81, F.2.2)."""
        symbol = self._symbol(bits, at, direct)
        if symbol is None:
            return None
        at, coefficient = symbol[0] + symbol[1], 1
        while coefficient < 64:
            symbol = self._symbol(bits, at, alternating)
            if symbol is None:
                return None
            at, (run, size) = symbol[0], divmod(symbol[1], 16)
            if size == 0 and run != 15:
                break
            at += size
            coefficient += run + 1
        return at if at <= len(bits) and coefficient <= 64 else None

    def _symbol(self, bits: str, at: int, table: int) -> tuple[int, int] | None:
        codes = self._tables.get(table, {})
        for length in range(1, 17):
            symbol = codes.get(bits[at : at + length])
            if symbol is not None:
                return at + length, symbol
        return None


@functools.cache
def _standard_tables() -> tuple[bytes, ...]:
    """The tables implied by a JPEG without any (ITU T.81, K.3), which libjpeg writes by default."""
    made = jpeg_header(simplejpeg.encode_jpeg(np.zeros((8, 8, 3), dtype=np.uint8)))
    return () if made is None else made.huffman


def _huffman_tables(payloads: tuple[bytes, ...]) -> dict[int, dict[str, int]]:
    """Code as a string of bits -> symbol, by class and number of the table (ITU T.81, B.2.4.2 and annex C)."""
    tables: dict[int, dict[str, int]] = {}
    for payload in payloads:
        at = 0
        while at + 17 <= len(payload):
            counts, symbols = payload[at + 1 : at + 17], at + 17
            codes, code = {}, 0
            for length, count in enumerate(counts, start=1):
                for symbol in payload[symbols : symbols + count]:
                    codes[f"{code:0{length}b}"] = symbol
                    code += 1
                symbols += count
                code <<= 1
            tables[payload[at]] = codes
            at = symbols
    return tables
