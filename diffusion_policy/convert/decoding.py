"""Reads, decodes and resizes one recorded frame, with the server's decoder and its checks (`images`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from diffusion_policy.images import FEWEST_PIXELS, SAFE_PIXELS, DecodedImage, ImageError, decode_image, resize_frame
from diffusion_policy.images.jpeg import jpeg_header, jpeg_size
from diffusion_policy.paths import read_bytes
from diffusion_policy.recording import Picture
from diffusion_policy.spec import ImageArray
from diffusion_policy.trajectory import TrajectoryError

__all__ = [
    "FEWEST_PIXELS",
    "IDENTICAL_DB",
    "SAFE_PIXELS",
    "Decode",
    "decode_frame",
    "decode_picture",
    "decode_recorded",
    "jpeg_header",
    "jpeg_size",
    "psnr",
    "read_frame",
    "read_recorded",
]

Decode = Literal["exact", "fast"]
# PSNR of two equal images, in dB.
IDENTICAL_DB = 99.0


def read_frame(
    file: Path, width: int, height: int, decode: Decode = "exact", pixels: float = SAFE_PIXELS
) -> tuple[ImageArray, tuple[int, int]]:
    """Returns a frame (height, width, 3) RGB, and (width, height) of the file; see `read_recorded`."""
    decoded = read_recorded(file, width, height, decode, pixels)
    return decoded.frame, decoded.size


def read_recorded(
    file: Path, width: int, height: int, decode: Decode = "exact", pixels: float = SAFE_PIXELS
) -> DecodedImage:
    """Reads a frame from its file; see `decode_recorded`.

    Raises:
        TrajectoryError: the file is missing; or see `decode_recorded`.
        PathError: its store cannot be reached.
    """
    try:
        data = read_bytes(file)
    except OSError as error:
        raise TrajectoryError(f"{file}: cannot be read ({error.strerror or error})") from error
    return decode_recorded(data, str(file), width, height, decode, pixels)


def decode_frame(
    data: bytes, where: str, width: int, height: int, decode: Decode = "exact", pixels: float = SAFE_PIXELS
) -> tuple[ImageArray, tuple[int, int]]:
    """Returns the frame of `decode_recorded`, and (width, height) as recorded."""
    decoded = decode_recorded(data, where, width, height, decode, pixels)
    return decoded.frame, decoded.size


def decode_recorded(
    data: bytes, where: str, width: int, height: int, decode: Decode = "exact", pixels: float = SAFE_PIXELS
) -> DecodedImage:
    """Returns a recorded frame, resized to (height, width, 3) by area interpolation.

    Args:
        data: a JPEG or 8-bit PNG.
        where: its name, for errors.
        width: target width.
        height: target height.
        decode: "fast" lets the JPEG decoder scale down first.
        pixels: for "fast", how many decoded pixels must remain per target pixel, per side.

    Raises:
        TrajectoryError: it is truncated or damaged, or not what a color camera writes.
    """
    wanted = (width, height) if decode == "fast" else None
    try:
        decoded = decode_image(data, where, wanted=wanted, pixels=pixels)
    except ImageError as error:
        raise TrajectoryError(str(error)) from error
    return replace(decoded, frame=resize_frame(decoded.frame, width, height))


def decode_picture(
    picture: Picture, width: int, height: int, decode: Decode = "exact", pixels: float = SAFE_PIXELS
) -> DecodedImage:
    """Returns the frame of a picture as in `decode_recorded`; one that is already decoded is only resized."""
    if isinstance(picture.content, bytes):
        return decode_recorded(picture.content, str(picture.name), width, height, decode, pixels)
    size = (picture.content.shape[1], picture.content.shape[0])
    return DecodedImage(resize_frame(picture.content, width, height), size)


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Returns the peak signal-to-noise ratio of two images in dB; 99 if they are equal."""
    return min(float(cv2.PSNR(a, b)), IDENTICAL_DB)
