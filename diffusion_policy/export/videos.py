"""Frames -> H.264 videos of a constant rate, and how near they come to what went in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import cv2
import numpy as np
from numpy.typing import NDArray

from diffusion_policy.export.errors import ExportError

# Without B frames, so that videos of one frame can be joined; short groups, so that a frame is found fast.
ENCODER = {"crf": "18", "g": "2", "bf": "0"}
CODEC = "h264"
_IDENTICAL_DB = 99.0
_TURNS = 2


def pixel_format(width: int, height: int) -> str:
    """With half as many colors as pixels per side, which most players need; of odd sides with all of them."""
    return "yuv444p" if width % _TURNS or height % _TURNS else "yuv420p"


class VideoFile:
    """One mp4 that is being written.

    Args:
        file: to be made.
        size: (width, height), pixels.
        fps: frames a second.
    """

    def __init__(self, file: Path, size: tuple[int, int], fps: float) -> None:
        self.file = file
        self.n_frames = 0
        file.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(file), "w", format="mp4")
        rate = Fraction(fps).limit_denominator(1001)
        try:
            self._stream: Any = self._container.add_stream("libx264", rate=rate, options=ENCODER)
        except (av.error.FFmpegError, ValueError) as error:
            raise ExportError(f"this PyAV cannot encode H.264 ({error}): install one with libx264") from error
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = pixel_format(*size)
        self._stream.codec_context.thread_count = 1

    def write(self, frame: NDArray[np.uint8]) -> None:
        """One frame (H, W, 3) RGB."""
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        self.n_frames += 1

    def close(self) -> None:
        """Write what waits, and the index."""
        self._container.mux(self._stream.encode())
        self._container.close()


def lowest_psnr(files: Sequence[Path], frames: Iterable[NDArray[np.uint8]]) -> float:
    """Over all frames of videos, one after the other, the lowest PSNR with what went in, in dB; 99 of equal ones.

    Raises:
        ExportError: the videos do not have as many frames as went in.
    """
    lowest = _IDENTICAL_DB
    decoded = _decoded(files)
    for number, frame in enumerate(frames):
        found = next(decoded, None)
        if found is None or found.shape != frame.shape:
            raise ExportError(f"{files[-1]}: frame {number} is lost in encoding; nothing was written")
        lowest = min(lowest, float(cv2.PSNR(frame, found)))
    if next(decoded, None) is not None:
        raise ExportError(f"{files[-1]}: holds more frames than went in; nothing was written")
    return lowest


def _decoded(files: Sequence[Path]) -> Iterator[NDArray[np.uint8]]:
    for file in files:
        with av.open(str(file), "r", format="mp4") as container:
            for frame in container.decode(video=0):
                yield np.asarray(frame.to_ndarray(format="rgb24"))
