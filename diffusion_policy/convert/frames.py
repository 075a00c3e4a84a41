"""Blocks of frames: read, decode, resize, pack. The unit of parallel work, and the bound on memory.

A block is a few frames of one camera of one episode. Whoever runs it needs nothing but the block: threads of this
process, other processes, or a cluster that sees the same files. Decoding and resizing release the interpreter's lock,
so threads use all cores.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import zarr
from numpy.typing import NDArray

from diffusion_policy.dataset.content_hash import frame_digest
from diffusion_policy.dataset.frame_files import FrameFiles
from diffusion_policy.spec import ImageArray, SpecError, decode_jpeg, resize_frame
from diffusion_policy.trajectory import TrajectoryError

Decode = Literal["exact", "fast"]

FRAMES_IN_BLOCK = 16
# PSNR of two images without a difference, in dB.
IDENTICAL_DB = 99.0
_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
# Decoded pixels left for each one wanted, per side, that are enough whatever the picture (57 dB, as measured); and the
# fewest, which spare half of the decoding again and are enough for pictures without much fine texture.
_SAFE_PIXELS, _FEWEST_PIXELS = 2.0, 1.5
# With the fewest pixels, the first frame of a block must be this close to exact; 45 dB are promised.
_TRUSTED_DB = 47.0
_END_OF_JPEG = b"\xff\xd9"


@dataclass(frozen=True)
class Block:
    """Frames of one camera to be put into rows `start` and on of an array.

    Attributes:
        files: one per row; the same file for rows that show the same frame.
        array: path of the zarr array that takes them.
        start: first row.
        width, height: to resize to, pixels.
        decode: "exact" or "fast".
        lossless: whether the array gives back what is written; if not, it is read back and measured.
    """

    files: tuple[Path, ...]
    array: Path
    start: int
    width: int
    height: int
    decode: Decode
    lossless: bool


@dataclass(frozen=True)
class BlockReport:
    """What was written.

    Attributes:
        digests: SHA-256 of each row as a reader gets it.
        frame_size: (width, height) of the files.
        psnr_db: lowest agreement with the exact frame over the rows that were measured; None if exact by construction.
    """

    digests: tuple[bytes, ...]
    frame_size: tuple[int, int]
    psnr_db: float | None


def write_block(block: Block) -> BlockReport:
    """Decode, resize and store the frames of a block.

    Raises:
        TrajectoryError: a file is gone, cut or does not decode, or sizes differ within the block.
        OSError: the rows cannot be stored.
    """
    rows = np.empty((len(block.files), block.height, block.width, 3), dtype=np.uint8)
    sizes: dict[tuple[int, int], Path] = {}
    previous: Path | None = None
    pixels, exact = _try_fewest_pixels(block) if block.decode == "fast" else (_SAFE_PIXELS, None)
    for i, file in enumerate(block.files):
        if file == previous:
            rows[i] = rows[i - 1]
            continue
        rows[i], size = read_frame(file, block.width, block.height, block.decode, pixels)
        sizes.setdefault(size, file)
        previous = file
    if len(sizes) > 1:
        (first, _), (second, file) = list(sizes.items())[:2]
        raise TrajectoryError(f"{file} is {second[0]}x{second[1]} pixels, frames before it {first[0]}x{first[1]}")
    files = FrameFiles(zarr.open_array(str(block.array), mode="r+"))
    files.write(block.start, rows)
    stored = rows if block.lossless else files.read(block.start, block.start + len(rows))
    return BlockReport(
        digests=tuple(frame_digest(row) for row in stored),
        frame_size=next(iter(sizes)),
        psnr_db=_lowest_psnr(block, rows, stored, exact),
    )


def _try_fewest_pixels(block: Block) -> tuple[float, ImageArray]:
    """How many decoded pixels this block's pictures need, judged by its first frame, and that frame, exact."""
    exact, _ = read_frame(block.files[0], block.width, block.height)
    quick, _ = read_frame(block.files[0], block.width, block.height, "fast", _FEWEST_PIXELS)
    return _FEWEST_PIXELS if psnr(exact, quick) >= _TRUSTED_DB else _SAFE_PIXELS, exact


def read_frame(
    file: Path, width: int, height: int, decode: Decode = "exact", pixels: float = _SAFE_PIXELS
) -> tuple[ImageArray, tuple[int, int]]:
    """A frame (height, width, 3) RGB, and (width, height) of the file.

    Args:
        file: JPEG, or any image that OpenCV reads.
        width: wanted.
        height: wanted.
        decode: "fast" lets the JPEG decoder scale down first.
        pixels: of "fast", how many decoded pixels must be left for each one wanted, per side.

    Raises:
        TrajectoryError: the file is gone, cut, or does not decode.
    """
    data = _read(file)
    size = jpeg_size(data)
    try:
        if decode == "fast" and size is not None:
            return _decode_reduced(data, size, (width, height), pixels, str(file)), size
        image = decode_jpeg(data, str(file))
    except SpecError as error:
        raise TrajectoryError(str(error)) from error
    return resize_frame(image, width, height), (image.shape[1], image.shape[0])


def _read(file: Path) -> bytes:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise TrajectoryError(f"{file}: cannot be read ({error.strerror})") from error
    # libjpeg fills what is missing with grey and calls it a warning.
    if data[:2] == b"\xff\xd8" and _END_OF_JPEG not in data[-64:]:
        raise TrajectoryError(f"{file}: the JPEG is cut off after {len(data)} bytes")
    return data


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) from the header of a JPEG; None if it is none.

    Segments begin with 0xFF, a code and a length; a frame header is C0-CF but not C4, C8 or CC (ITU T.81, B.1.1).
    """
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        code = data[at + 1]
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        at += 1 if code == 0xFF else 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return None


def _decode_reduced(
    data: bytes, size: tuple[int, int], wanted: tuple[int, int], pixels: float, where: str
) -> ImageArray:
    """Decode at a half, a quarter or an eighth, which spares most of the inverse transform, then average the rest."""
    width, height = wanted
    least = max(width / size[0], height / size[1]) * pixels
    reduction = next((n for n in _REDUCED if n * least <= 1), 1)
    if reduction == 1:
        return resize_frame(decode_jpeg(data, where), width, height)
    reduced = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), _REDUCED[reduction])
    if reduced is None:
        raise SpecError(f"{where}: {len(data)} bytes that do not decode as an image")
    small = resize_frame(reduced, width, height)  # type: ignore[arg-type]
    return cv2.cvtColor(small, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two images in dB; 99 if they are equal."""
    return min(float(cv2.PSNR(a, b)), IDENTICAL_DB)


def _lowest_psnr(
    block: Block, rows: NDArray[np.uint8], stored: NDArray[np.uint8], exact: ImageArray | None
) -> float | None:
    """Over all rows for a codec that loses something; of the first row of the block for fast decoding."""
    measured = [] if block.lossless else [psnr(row, kept) for row, kept in zip(rows, stored, strict=True)]
    if exact is not None:
        measured.append(psnr(exact, stored[0]))
    return min(measured, default=None)
