"""Blocks of frames: read, decode, resize, pack. The unit of parallel work, and the bound on memory.

A block is a few frames of one camera of one episode. Whoever runs it needs nothing but the block: threads of this
process, other processes, or a cluster that sees the same files. Decoding and resizing release the interpreter's lock,
so threads use all cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    decode_recorded,
    psnr,
)
from diffusion_policy.dataset.content_hash import frame_digest
from diffusion_policy.dataset.frame_files import FrameFiles
from diffusion_policy.images import DecodedImage, FrameKind, ImageNote
from diffusion_policy.places import read_together
from diffusion_policy.spec import ImageArray
from diffusion_policy.trajectory import TrajectoryError

FRAMES_IN_BLOCK = 32
# How close to exact the first frame of a block must be: 45 dB are promised of all, and with the fewest pixels they
# differ more from one another. What is not close enough with more pixels either is decoded whole.
_TRUSTED_DB = ((FEWEST_PIXELS, 47.0), (SAFE_PIXELS, 46.0))


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
class FrameLook:
    """What was seen of one file: its kind, and what is odd about it."""

    file: Path
    kind: FrameKind
    notes: tuple[ImageNote, ...]


@dataclass(frozen=True)
class BlockReport:
    """What was written.

    Attributes:
        digests: SHA-256 of each row as a reader gets it.
        looks: of each file, in order.
        psnr_db: lowest agreement with the exact frame over the rows that were measured; None if exact by construction.
    """

    digests: tuple[bytes, ...]
    looks: tuple[FrameLook, ...]
    psnr_db: float | None


def write_block(block: Block) -> BlockReport:
    """Decode, resize and store the frames of a block.

    Raises:
        TrajectoryError: a file is gone, cut, damaged or does not decode.
        PlaceError: the files' store cannot be reached.
        OSError: the rows cannot be stored.
    """
    rows, looks, exact = _small_frames(block)
    files = FrameFiles(zarr.open_array(str(block.array), mode="r+"))
    files.write(block.start, rows)
    stored = rows if block.lossless else files.read(block.start, block.start + len(rows))
    return BlockReport(
        digests=tuple(frame_digest(row) for row in stored),
        looks=looks,
        psnr_db=_lowest_psnr(block, rows, stored, exact),
    )


def look_again(packed: zarr.Array[Any], sources: zarr.Array[Any], first: int) -> tuple[NDArray[np.uint8], float]:
    """What a codec that loses something has made of frames that were packed only now, in rows `first` and on.

    Args:
        packed: array that took them.
        sources: (n, H, W, 3) as they were before.
        first: row of the first of them in `packed`.

    Returns:
        (n, 32) SHA-256 of each as a reader gets it, and the lowest PSNR of one with what it was, in dB.
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
    """What is kept of a decoded file."""
    return FrameLook(file, FrameKind(*decoded.size, decoded.orientation), decoded.notes)


def _small_frames(block: Block) -> tuple[NDArray[np.uint8], tuple[FrameLook, ...], ImageArray | None]:
    """The rows of a block, a look at each of its files, and with "fast" the first row as "exact" would make it."""
    rows = np.empty((len(block.files), block.height, block.width, 3), dtype=np.uint8)
    decode, pixels, exact = block.decode, SAFE_PIXELS, None
    before, looks = None, []
    for i, (file, data) in enumerate(zip(block.files, _contents(block.files), strict=True)):
        if file == before:
            rows[i] = rows[i - 1]
            continue
        if i == 0 and decode == "fast":
            exact = decode_frame(data, str(file), block.width, block.height)[0]
            decode, pixels = _spared(data, str(file), exact)
        decoded = decode_recorded(data, str(file), block.width, block.height, decode, pixels)
        rows[i], before = decoded.frame, file
        looks.append(look_of(decoded, file))
    return rows, tuple(looks), exact


def _contents(files: Sequence[Path]) -> Iterator[bytes]:
    try:
        yield from read_together(files)
    except OSError as error:
        raise TrajectoryError(f"{error.filename or files[0]}: cannot be read ({error.strerror or error})") from error


def _spared(data: bytes, where: str, exact: ImageArray) -> tuple[Decode, float]:
    """How a block is decoded, by a frame of it and its exact picture: with as few pixels as come close enough."""
    height, width = exact.shape[:2]
    for pixels, wanted_db in _TRUSTED_DB:
        quick, _ = decode_frame(data, where, width, height, "fast", pixels)
        if psnr(exact, quick) >= wanted_db:
            return "fast", pixels
    return "exact", SAFE_PIXELS


def _lowest_psnr(
    block: Block, rows: NDArray[np.uint8], stored: NDArray[np.uint8], exact: ImageArray | None
) -> float | None:
    """Over all rows for a codec that loses something; of the first row of the block for fast decoding."""
    measured = [] if block.lossless else [psnr(row, kept) for row, kept in zip(rows, stored, strict=True)]
    if exact is not None:
        measured.append(psnr(exact, stored[0]))
    return min(measured, default=None)
