"""Frames of a foreign zarr array: any chunks, uint8 or numbers in 0..1 or 0..255, channels first or last."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from diffusion_policy.dataset.errors import DatasetError
from diffusion_policy.dataset.frame_files import FrameFiles
from diffusion_policy.dataset.opening import open_dataset
from diffusion_policy.dataset.replay_buffer import UNPACKING
from diffusion_policy.images import MAX_PIXELS
from diffusion_policy.recording.contract import Picture
from diffusion_policy.recording.errors import RecordingError
from diffusion_policy.spec import ImageArray
from diffusion_policy.storage import sha256

_COLORS = 3
# Rounding error of numbers computed as float32, relative to the brightest one.
_ROUNDED = 1e-5


@dataclass(frozen=True)
class Pixels:
    """How an array holds colors.

    Attributes:
        brightest: the number for full brightness: 255 or 1.
        channels_first: whether a frame is (3, H, W).
    """

    brightest: int
    channels_first: bool

    def frame(self, values: NDArray[Any], where: str) -> ImageArray:
        """Converts the recorded numbers of one frame to (H, W, 3) uint8.

        Raises:
            RecordingError: a number is not within 0 and the brightest.
        """
        frame = np.moveaxis(values, 0, -1) if self.channels_first else values
        if frame.dtype == np.uint8:
            return np.ascontiguousarray(frame)
        low, high = float(frame.min()), float(frame.max())
        if not (low >= -_ROUNDED * self.brightest and high <= self.brightest * (1 + _ROUNDED)):
            raise RecordingError(
                f"{where}: numbers from {low:g} to {high:g}; expected 0 to {self.brightest}, as in the first "
                "frames: rewrite the array as uint8"
            )
        scaled = frame.astype(np.float64) * (255 / self.brightest)
        return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


@dataclass(frozen=True)
class ArrayFrames:
    """Rows of an array that are frames.

    Attributes:
        root: the dataset's path, for names.
        store: store of the zarr.
        changed: when the store was written, so that a rewritten store is read again.
        key: key of the array in data/.
        rows: rows of the array, increasing.
        pixels: how the array holds colors.
        per_chunk: rows in a chunk.
    """

    root: Path
    store: Path
    changed: int
    key: str
    rows: tuple[int, ...]
    pixels: Pixels
    per_chunk: int

    def __len__(self) -> int:
        return len(self.rows)

    def pictures(self) -> Iterator[Picture]:
        """Yields the frames in order, a chunk at a time; see `recording.contract.Frames`."""
        array = _array(self.store, self.key, self.changed)
        for _, group in itertools.groupby(self.rows, lambda row: row // self.per_chunk):
            rows = list(group)
            values = self._read(array, rows[0], rows[-1] + 1)
            for row in rows:
                name = self.root / "data" / f"{self.key}#{row}"
                yield Picture(name, self.pixels.frame(values[row - rows[0]], f"{self.root}/data/{self.key}[{row}]"))

    def _read(self, array: zarr.Array[Any], first: int, end: int) -> NDArray[Any]:
        try:
            if array.dtype == np.uint8:
                return FrameFiles(array).read(first, end)
            return np.asarray(array[first:end])
        except (DatasetError, *UNPACKING) as error:
            raise RecordingError(
                f"{self.root}/data/{self.key}: one of rows {first} to {end - 1} does not unpack ({error}): copy "
                "the dataset again from an intact source"
            ) from error

    def at(self, steps: Sequence[int]) -> ArrayFrames:
        """Returns the frames of some steps, in increasing order."""
        return replace(self, rows=tuple(self.rows[step] for step in steps))

    def pieces(self, steps: Sequence[int], at_most: int) -> Iterator[ArrayFrames]:
        """Yields `at_most` frames if each is a chunk, otherwise those of one chunk, which is unpacked only once."""
        if self.per_chunk == 1 or at_most == 1:
            return (self.at(steps[start : start + at_most]) for start in range(0, len(steps), at_most))
        grouped = itertools.groupby(steps, lambda step: self.rows[step] // self.per_chunk)
        return (self.at(list(group)) for _, group in grouped)

    def sample_sha256(self) -> str:
        """Returns the SHA-256 of the first frame."""
        picture = next(replace(self, rows=self.rows[:1]).pictures())
        return sha256(np.ascontiguousarray(picture.content).tobytes()).hex()


@lru_cache(maxsize=16)
def _array(store: Path, key: str, changed: int) -> zarr.Array[Any]:
    """Opens an array once per process; `changed` distinguishes a rewritten store."""
    array = open_dataset(store, "r").root[f"data/{key}"]
    assert isinstance(array, zarr.Array), changed
    return array


def is_color(shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape can be frames (N, H, W, 3) or (N, 3, H, W) of an allowed size."""
    return len(shape) == 4 and _COLORS in (shape[-1], shape[1]) and np.prod(shape[1:]) <= _COLORS * MAX_PIXELS


def pixels_of(array: zarr.Array[Any], rows: Sequence[int], where: str) -> Pixels:
    """Returns how an array holds colors, found from some of its rows.

    Raises:
        RecordingError: its numbers are not colors.
    """
    channels_first = array.shape[-1] != _COLORS
    if array.dtype == np.uint8:
        return Pixels(255, channels_first)
    if array.dtype.kind != "f":
        raise RecordingError(
            f"{where} has dtype {array.dtype}; expected uint8, or floating-point numbers in 0..255 or 0..1: "
            "rewrite the array as uint8"
        )
    try:
        images = [np.asarray(array[row]) for row in rows]
    except (DatasetError, *UNPACKING) as error:
        raise RecordingError(f"{where} does not unpack ({error}): copy the dataset again") from error
    low, high = min(float(one.min()) for one in images), max(float(one.max()) for one in images)
    if not (low >= 0 and high <= 255 * (1 + _ROUNDED)):
        raise RecordingError(
            f"{where} holds numbers from {low:g} to {high:g}; expected colors in 0..255 or 0..1: rewrite it as uint8"
        )
    return Pixels(255 if high > 1 + _ROUNDED else 1, channels_first)
