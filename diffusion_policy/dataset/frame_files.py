"""Frames stored one per file: packed and unpacked directly, bypassing zarr's event loop.

The event loop costs more than the default codec (docs/data.md). It is bypassed where the result is the same: format 2,
a local folder or a zip archive, one whole frame per chunk, and only a compressor. Everything else goes through zarr. A
frame whose file does not exist is an error: nothing is read in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from diffusion_policy.dataset.archive import Archive, ArchiveStore
from diffusion_policy.dataset.replay_buffer import STORE_EVERY_CHUNK, UNPACKING, DatasetError


def chunk_file(array: zarr.Array[Any], index: int) -> Path:
    """The file of the chunk or shard of a local array with this index along the first axis."""
    root = Path(str(array.store_path).removeprefix("file://"))
    return root / array.metadata.encode_chunk_key((index, *(0 for _ in array.shape[1:])))


class FrameFiles:
    """Frames (N, H, W, 3) uint8 of a zarr array."""

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._array = array.with_config(STORE_EVERY_CHUNK)
        self.shape: tuple[int, ...] = array.shape[1:]
        self._folder = _folder_of_frames(array)
        self._archive = _archive_of_frames(array)
        # In format 2 these are numcodecs objects, which zarr's type annotations do not say.
        is_plain = self._folder is not None or self._archive is not None
        codecs: Sequence[Any] = array.compressors if is_plain else ()
        self._codec = codecs[0] if codecs else None

    def write(self, first: int, frames: NDArray[np.uint8]) -> None:
        """Write frames (n, H, W, 3) to the rows from `first` on."""
        if self._folder is None:  # an archive refuses
            self._array[first : first + len(frames)] = frames
            return
        for row, frame in enumerate(np.ascontiguousarray(frames), start=first):
            packed = frame if self._codec is None else self._codec.encode(frame[None])
            self._file(self._folder, row).write_bytes(packed)

    def read(self, first: int, end: int) -> NDArray[np.uint8]:
        """Frames (n, H, W, 3) of the rows from `first` to before `end`.

        Raises:
            DatasetError: one of their files does not unpack.
        """
        frames = np.empty((end - first, *self.shape), dtype=np.uint8)
        self.read_into(frames, first)
        return frames

    def read_into(self, frames: NDArray[np.uint8], first: int) -> None:
        """Fill (n, H, W, 3) with the rows from `first` on; different rows may be read in several threads at once.

        Raises:
            DatasetError: one of their files does not unpack.
        """
        try:
            self._read(frames, first)
        except FileNotFoundError as error:
            raise DatasetError(
                f"{self._array.store_path}: the file of row {error.args[-1]} does not exist; the dataset is damaged: "
                "copy it again from an intact source, or convert again"
            ) from error
        except UNPACKING as error:  # from the codecs, and from an array of another size
            rows = f"row {first}" if len(frames) == 1 else f"one of the rows {first} to {first + len(frames) - 1}"
            raise DatasetError(
                f"{self._array.store_path}: {rows} does not unpack ({error}); the dataset is damaged: convert again"
            ) from error

    def _read(self, frames: NDArray[np.uint8], first: int) -> None:
        if self._folder is None and self._archive is None:
            frames[:] = self._array[first : first + len(frames)]
            return
        for frame, row in zip(frames, range(first, first + len(frames)), strict=True):
            packed = self._packed(row)
            pixels = packed if self._codec is None else self._codec.decode(packed)
            frame[:] = np.frombuffer(pixels, dtype=np.uint8).reshape(self.shape)

    def _packed(self, row: int) -> bytes:
        name = self._array.metadata.encode_chunk_key((row, 0, 0, 0))
        try:
            if self._archive is not None:
                return self._archive.read(f"{self._array.path}/{name}")
            return (self._folder / name).read_bytes()  # type: ignore[operator]
        except (FileNotFoundError, KeyError) as error:
            raise FileNotFoundError(row) from error

    def _file(self, folder: Path, row: int) -> Path:
        return folder / self._array.metadata.encode_chunk_key((row, 0, 0, 0))


def _folder_of_frames(array: zarr.Array[Any]) -> Path | None:
    """The folder of an array whose files are each one compressed frame; else None."""
    is_local = isinstance(array.store, LocalStore) and _is_plain(array)
    return Path(str(array.store.root)) / array.path if is_local else None  # type: ignore[attr-defined]


def _archive_of_frames(array: zarr.Array[Any]) -> Archive | None:
    return array.store.archive if isinstance(array.store, ArchiveStore) and _is_plain(array) else None


def _is_plain(array: zarr.Array[Any]) -> bool:
    metadata = array.metadata
    return (
        metadata.zarr_format == 2
        and array.dtype == np.uint8
        and array.chunks == (1, *array.shape[1:])
        and metadata.order == "C"
        and not metadata.filters
    )
