"""One recorded frame: read, decoded, made small. JPEGs go through libjpeg-turbo and may not be damaged inside.

OpenCV reads a JPEG whose compressed data is damaged and fills in grey; libjpeg only warns of it. `simplejpeg`, a thin
binding of libjpeg-turbo, turns that warning into an error and decodes to the same pixels, a little faster. What it
does not read as OpenCV does (other formats, four colours, a camera that turns its pictures) goes through OpenCV.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from diffusion_policy.places import read_bytes
from diffusion_policy.spec import ImageArray, SpecError, decode_jpeg, resize_frame
from diffusion_policy.trajectory import TrajectoryError

Decode = Literal["exact", "fast"]

# PSNR of two images without a difference, in dB.
IDENTICAL_DB = 99.0
# Decoded pixels left for each one wanted, per side, that are enough whatever the picture (57 dB, as measured); and the
# fewest, which spare half of the decoding again and are enough for pictures without much fine texture.
SAFE_PIXELS, FEWEST_PIXELS = 2.0, 1.5
# By which a JPEG can be reduced while it is decoded; odd eighths lack fast code in libjpeg-turbo and cost more.
_REDUCTIONS = (8, 4, 2)
_START_OF_JPEG, _END_OF_JPEG = b"\xff\xd8", b"\xff\xd9"
_EXIF = 0xE1


@dataclass(frozen=True)
class JpegHeader:
    """What a JPEG says of itself before its pixels.

    Attributes:
        size: (width, height), pixels.
        is_plain: whether libjpeg-turbo gives what OpenCV does: Huffman-coded 8-bit grey or colour, nothing to turn.
    """

    size: tuple[int, int]
    is_plain: bool


def jpeg_header(data: bytes) -> JpegHeader | None:
    """The header of a JPEG; None if it is none.

    Segments begin with 0xFF, a code and a length; a frame header is C0-CF but not C4, C8 or CC (ITU T.81, B.1.1).
    """
    at, has_exif = 2, False
    while data[:2] == _START_OF_JPEG and at + 10 <= len(data) and data[at] == 0xFF:
        code = data[at + 1]
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            precision, height, width, components = struct.unpack(">BHHB", data[at + 4 : at + 10])
            is_plain = code <= 0xC2 and precision == 8 and components in (1, 3) and not has_exif
            return JpegHeader((width, height), is_plain)
        has_exif = has_exif or code == _EXIF
        at += 1 if code == 0xFF else 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return None


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) from the header of a JPEG; None if it is none."""
    header = jpeg_header(data)
    return None if header is None else header.size


def read_frame(
    file: Path, width: int, height: int, decode: Decode = "exact", pixels: float = SAFE_PIXELS
) -> tuple[ImageArray, tuple[int, int]]:
    """A frame (height, width, 3) RGB, and (width, height) of the file.

    Raises:
        TrajectoryError: the file is gone, or as `decode_frame` says.
        PlaceError: its store cannot be reached.
    """
    try:
        data = read_bytes(file)
    except OSError as error:
        raise TrajectoryError(f"{file}: cannot be read ({error.strerror or error})") from error
    return decode_frame(data, str(file), width, height, decode, pixels)


def decode_frame(
    data: bytes, where: str, width: int, height: int, decode: Decode = "exact", pixels: float = SAFE_PIXELS
) -> tuple[ImageArray, tuple[int, int]]:
    """A frame (height, width, 3) RGB by area interpolation, and (width, height) as recorded.

    Args:
        data: JPEG, or any image that OpenCV reads.
        where: its name, for errors.
        width: wanted.
        height: wanted.
        decode: "fast" lets the JPEG decoder scale down first.
        pixels: of "fast", how many decoded pixels must be left for each one wanted, per side.

    Raises:
        TrajectoryError: it is cut, damaged inside, or does not decode.
    """
    if data[:2] == _START_OF_JPEG and _END_OF_JPEG not in data[-64:]:
        raise TrajectoryError(f"{where}: the JPEG is cut off after {len(data)} bytes")
    header = jpeg_header(data)
    if header is None or not header.is_plain:
        try:
            image = decode_jpeg(data, where)
        except SpecError as error:
            raise TrajectoryError(str(error)) from error
        return resize_frame(image, width, height), (image.shape[1], image.shape[0])
    least = max(width / header.size[0], height / header.size[1]) * pixels
    reduction = next((n for n in _REDUCTIONS if decode == "fast" and n * least <= 1), 1)
    return resize_frame(_decode_plain(data, header, reduction, where), width, height), header.size


def _decode_plain(data: bytes, header: JpegHeader, reduction: int, where: str) -> ImageArray:
    """Decode at 1 / reduction of the size, which spares most of the inverse transform."""
    width, height = (-(-side // reduction) for side in header.size)
    try:
        decoded: ImageArray = simplejpeg.decode_jpeg(data, "RGB", min_width=width, min_height=height)
    except ValueError as error:
        raise TrajectoryError(f"{where}: {len(data)} bytes that do not decode: a damaged JPEG ({error})") from error
    return decoded


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two images in dB; 99 if they are equal."""
    return min(float(cv2.PSNR(a, b)), IDENTICAL_DB)
