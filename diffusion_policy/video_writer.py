"""Frames -> H.264 video in MP4, at a constant rate: the one encoder for exports, rollouts and recordings."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from diffusion_policy.errors import WorkspaceError

CODEC = "h264"
# Without B frames, so that videos of one frame can be joined; short groups, so that a frame is found fast.
SEEKABLE: Mapping[str, str] = MappingProxyType({"crf": "18", "g": "2", "bf": "0"})
SMALL: Mapping[str, str] = MappingProxyType({"crf": "23"})  # for viewing


class VideoError(WorkspaceError):
    """A video cannot be written; says which and why."""


def pixel_format(width: int, height: int) -> str:
    """Half the color resolution per side, which most players need; full resolution if a side is odd."""
    return "yuv444p" if width % 2 or height % 2 else "yuv420p"


class VideoWriter:
    """One MP4 file being written, under the given name: use it within ``storage.atomic_file``.

    Args:
        file: path of the video.
        size: (width, height), pixels.
        fps: frames a second.
        encoder: options of libx264: ``SEEKABLE`` or ``SMALL``.

    Raises:
        VideoError: the file cannot be written, or this PyAV has no H.264 encoder.
    """

    def __init__(self, file: Path, size: tuple[int, int], fps: float, encoder: Mapping[str, str] = SEEKABLE) -> None:
        self.file = file
        self.n_frames = 0
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(file), "w", format="mp4")
        except OSError as error:
            raise VideoError(f"{file}: cannot be written ({error.strerror})") from error
        rate = Fraction(fps).limit_denominator(1001)
        try:
            self._stream: Any = self._container.add_stream("libx264", rate=rate, options=dict(encoder))
        except (av.error.FFmpegError, ValueError) as error:
            raise VideoError(f"this PyAV cannot encode H.264 ({error}): install one with libx264") from error
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = pixel_format(*size)
        self._stream.codec_context.thread_count = 1

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Add one frame (H, W, 3) RGB."""
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        self.n_frames += 1

    def close(self) -> None:
        """Write pending frames, and the index."""
        self._container.mux(self._stream.encode())
        self._container.close()

    def abandon(self) -> None:
        """End without writing pending frames; the file is not a valid video."""
        self._container.close()
