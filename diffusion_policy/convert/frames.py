"""Blocks of frames: read, decode, resize, pack. They are the unit of parallel work; a bounded number is in memory.

A block holds frames of one camera in one episode: a few image files, or a stretch of a video. Its worker
needs only the block, and may be a thread, another process, or on a cluster that can access the same files. Decoding
and resizing release the interpreter's lock, so threads use all cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from diffusion_policy.convert.decoding import (
    FEWEST_PIXELS,
    IDENTICAL_DB,
    SAFE_PIXELS,
    Decode,
    decode_frame,
    decode_picture,
    psnr,
)
from diffusion_policy.dataset.content_hash import frame_digest
from diffusion_policy.dataset.frame_files import FrameFiles
from diffusion_policy.images import DecodedImage, FrameKind, ImageNote
from diffusion_policy.recording import Frames, Picture
from diffusion_policy.spec import ImageArray

FRAMES_IN_BLOCK = 32
# How close to exact the first frame of a block must be: 45 dB are promised for all, and with the fewest pixels they
# vary more. If more pixels are not close enough either, the block is decoded whole.
_TRUSTED_DB = ((FEWEST_PIXELS, 47.0), (SAFE_PIXELS, 46.0))


@dataclass(frozen=True)
class Block:
    """Frames of one camera, to be written to an array from row `start` on.

    Attributes:
        frames: the frames, one per row.
        array: path of the zarr array to write to.
        start: first row.
        width, height: target size, pixels.
        decode: "exact" or "fast".
        lossless: whether the array is lossless; if not, it is read back and measured.
    """

    frames: Frames
    array: Path
    start: int
    width: int
    height: int
    decode: Decode
    lossless: bool


@dataclass(frozen=True)
class FrameLook:
    """The result of examining one file: its kind and oddities."""

    file: Path
    kind: FrameKind
    notes: tuple[ImageNote, ...]


@dataclass(frozen=True)
class BlockReport:
    """What was written for a block.

    Attributes:
        digests: SHA-256 of each row as read back.
        looks: the look at each file, in order.
        psnr_db: lowest PSNR compared with the exact frame over the measured rows; None if exact by construction.
    """

    digests: tuple[bytes, ...]
    looks: tuple[FrameLook, ...]
    psnr_db: float | None


def write_block(block: Block) -> BlockReport:
    """Decodes, resizes and stores the frames of a block.

    Raises:
        TrajectoryError: a file is missing, truncated or damaged, or does not decode.
        PathError: the files' store cannot be reached.
        OSError: the rows cannot be stored.
    """
    pictures = block.frames.pictures()
    digests: list[bytes] = []
    frame_looks: list[FrameLook] = []
    agreement: list[float] = []
    while len(digests) < len(block.frames):
        rows, looks, exact = _small_frames(block, pictures, len(block.frames) - len(digests))
        files = FrameFiles(zarr.open_array(str(block.array), mode="r+"))
        first = block.start + len(digests)
        files.write(first, rows)
        stored = rows if block.lossless else files.read(first, first + len(rows))
        digests += [frame_digest(row) for row in stored]
        frame_looks += looks
        agreement += _measured_psnr(block, rows, stored, exact)
    return BlockReport(tuple(digests), tuple(frame_looks), min(agreement, default=None))


def look_again(packed: zarr.Array[Any], sources: zarr.Array[Any], first: int) -> tuple[NDArray[np.uint8], float]:
    """Measures what a lossy codec made of frames that were packed only now, from row `first` on.

    Args:
        packed: the array with the packed frames.
        sources: (n, H, W, 3) the frames before packing.
        first: row of the first frame in `packed`.

    Returns:
        (n, 32) SHA-256 of each frame as read back, and the lowest PSNR compared with the original, in dB.
    """
    before, after = FrameFiles(sources), FrameFiles(packed)
    digests, lowest = [], IDENTICAL_DB
    for start in range(0, sources.shape[0], FRAMES_IN_BLOCK):
        end = min(start + FRAMES_IN_BLOCK, sources.shape[0])
        rows, stored = before.read(start, end), after.read(first + start, first + end)
        digests += [frame_digest(row) for row in stored]
        lowest = min(lowest, *map(psnr, rows, stored))
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32), lowest


def look_of(decoded: DecodedImage, file: Path) -> FrameLook:
    """Returns what is kept about a decoded file."""
    return FrameLook(file, FrameKind(*decoded.size, decoded.orientation), decoded.notes)


def _small_frames(
    block: Block, pictures: Iterator[Picture], n_left: int
) -> tuple[NDArray[np.uint8], tuple[FrameLook, ...], ImageArray | None]:
    """Yields the next rows of a block, a look at each picture and, for "fast", the first row decoded as in "exact".

    Pictures that are already decoded are exact in either mode.
    """
    rows = np.empty((min(n_left, FRAMES_IN_BLOCK), block.height, block.width, 3), dtype=np.uint8)
    decode, pixels, exact = block.decode, SAFE_PIXELS, None
    before, looks = None, []
    for i, picture in enumerate(islice(pictures, len(rows))):
        if picture.name == before:
            rows[i] = rows[i - 1]
            continue
        if i == 0 and decode == "fast" and isinstance(picture.content, bytes):
            exact = decode_frame(picture.content, str(picture.name), block.width, block.height)[0]
            decode, pixels = _spared(picture.content, str(picture.name), exact)
        decoded = decode_picture(picture, block.width, block.height, decode, pixels)
        rows[i], before = decoded.frame, picture.name
        looks.append(look_of(decoded, picture.name))
    return rows, tuple(looks), exact


def _spared(data: bytes, where: str, exact: ImageArray) -> tuple[Decode, float]:
    """Decides from one frame and its exact picture how to decode a block: with the fewest pixels that suffice."""
    height, width = exact.shape[:2]
    for pixels, wanted_db in _TRUSTED_DB:
        quick, _ = decode_frame(data, where, width, height, "fast", pixels)
        if psnr(exact, quick) >= wanted_db:
            return "fast", pixels
    return "exact", SAFE_PIXELS


def _measured_psnr(
    block: Block, rows: NDArray[np.uint8], stored: NDArray[np.uint8], exact: ImageArray | None
) -> list[float]:
    """Returns the PSNR over all rows for a lossy codec, or of the block's first row for fast decoding."""
    measured = [] if block.lossless else [psnr(row, kept) for row, kept in zip(rows, stored, strict=True)]
    if exact is not None:
        measured.append(psnr(exact, stored[0]))
    return measured
