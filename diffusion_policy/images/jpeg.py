"""The structure of a JPEG (ITU T.81, annex B): its header, the position of its end marker, EXIF orientation."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

START, END = b"\xff\xd8", b"\xff\xd9"
_DHT, _DRI, _SOS, _APP1 = 0xC4, 0xDD, 0xDA, 0xE1
# Markers that end compressed data: all except a stuffed 0xFF, restarts and fill bytes.
_MARKER_IN_DATA = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_EXIF = b"Exif\x00\x00"
_ORIENTATION, _SHORT = 0x0112, 3


@dataclass(frozen=True)
class Component:
    """A color component: its identifier and how many blocks of it an MCU holds, across and down."""

    identifier: int
    across: int
    down: int


@dataclass(frozen=True)
class JpegHeader:
    """What a JPEG declares before its pixels.

    Attributes:
        size: (width, height) of the compressed picture, in pixels, before rotation.
        process: low byte of the frame marker: 0xC0 baseline, 0xC1 extended, 0xC2 progressive, ...
        precision: bits of a sample.
        components: 1 gray, 3 color, 4 CMYK.
        orientation: of EXIF, 1 to 8; 1 is upright.
        frame_at: offset of the frame marker.
        scan: payload of the first start of scan; empty if no scan begins.
        scan_at: offset of the first byte of compressed data.
        huffman: payloads of all Huffman table segments before the first scan.
        restart_interval: MCUs between restart markers; 0 for none.
    """

    size: tuple[int, int]
    process: int
    precision: int
    components: tuple[Component, ...]
    orientation: int
    frame_at: int
    scan: bytes
    scan_at: int
    huffman: tuple[bytes, ...]
    restart_interval: int

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) after rotation by EXIF."""
        return self.size if self.orientation < 5 else (self.size[1], self.size[0])


def segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(offset, code, payload) of each segment up to and including the first start of scan; stops at a truncated one."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        code = data[at + 1]
        if code == 0xFF:
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2 or at + 2 + length > len(data):
            return
        yield at, code, data[at + 4 : at + 2 + length]
        if code == _SOS:
            return
        at += 2 + length


def jpeg_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG; None if it is not a JPEG, or ends before its frame header."""
    if data[:2] != START:
        return None
    frame: tuple[int, int, bytes] | None = None
    scan, scan_at, orientation, restart = b"", len(data), 1, 0
    huffman: list[bytes] = []
    for at, code, payload in segments(data):
        if _is_frame(code) and frame is None and len(payload) >= 6 and len(payload) >= 6 + 3 * payload[5]:
            frame = at, code, payload
        elif code == _DHT:
            huffman.append(payload)
        elif code == _DRI and len(payload) == 2:
            restart = int.from_bytes(payload, "big")
        elif code == _APP1 and payload.startswith(_EXIF):
            orientation = exif_orientation(payload[len(_EXIF) :])
        elif code == _SOS:
            scan, scan_at = payload, at + 4 + len(payload)
    if frame is None:
        return None
    at, code, payload = frame
    precision, height, width, count = struct.unpack(">BHHB", payload[:6])
    parts = tuple(Component(*_component(payload[6 + 3 * i :])) for i in range(count))
    return JpegHeader((width, height), code, precision, parts, orientation, at, scan, scan_at, tuple(huffman), restart)


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) from the header of a JPEG, before rotation; None if it is not a JPEG."""
    header = jpeg_header(data)
    return None if header is None else header.size


def _is_frame(code: int) -> bool:
    """A frame header is C0-CF but not C4, C8 or CC (ITU T.81, B.1.1)."""
    return 0xC0 <= code <= 0xCF and code not in (_DHT, 0xC8, 0xCC)


def _component(entry: bytes) -> tuple[int, int, int]:
    return entry[0], entry[1] >> 4, entry[1] & 15


def end_of_picture(data: bytes, scan_at: int) -> int | None:
    """Offset after the end marker of the picture whose first scan starts there; None if it has no end marker."""
    at = scan_at
    while (match := _MARKER_IN_DATA.search(data, at)) is not None:
        if match.group() == END:
            return match.end()
        at = match.end() + max(int.from_bytes(data[match.end() : match.end() + 2], "big"), 2)
    return None


def restart_segments(data: bytes) -> tuple[list[bytes], list[bytes]]:
    """Compressed data between restart markers, and these markers."""
    return _RESTART.split(data), _RESTART.findall(data)


def exif_orientation(tiff: bytes) -> int:
    """Orientation, 1 to 8, in the TIFF structure of EXIF (CIPA DC-008, 4.6.4); 1 if it is missing or unreadable."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    at = struct.unpack(order + "I", tiff[4:8])[0]
    (count,) = struct.unpack(order + "H", tiff[at : at + 2].ljust(2, b"\0"))
    for entry in (tiff[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(count)):
        if len(entry) < 12:
            return 1
        tag, kind, _, value = struct.unpack(order + "HHIH", entry[:10])
        if tag == _ORIENTATION:
            return value if kind == _SHORT and 1 <= value <= 8 else 1
    return 1
