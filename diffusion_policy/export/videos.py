"""How close videos are to their input frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from diffusion_policy.export.errors import ExportError

_IDENTICAL_DB = 99.0


def lowest_psnr(files: Sequence[Path], frames: Iterable[NDArray[np.uint8]]) -> float:
    """Returns the lowest PSNR of all frames of videos, in order, compared with their input, in dB; 99 if equal.

    Raises:
        ExportError: the videos do not have as many frames as their input.
    """
    lowest = _IDENTICAL_DB
    decoded = _decoded(files)
    for number, frame in enumerate(frames):
        decoded_frame = next(decoded, None)
        if decoded_frame is None or decoded_frame.shape != frame.shape:
            raise ExportError(f"{files[-1]}: frame {number} was lost in encoding; nothing was written")
        lowest = min(lowest, float(cv2.PSNR(frame, decoded_frame)))
    if next(decoded, None) is not None:
        raise ExportError(f"{files[-1]}: holds more frames than its input; nothing was written")
    return lowest


def _decoded(files: Sequence[Path]) -> Iterator[NDArray[np.uint8]]:
    for file in files:
        with av.open(str(file), "r", format="mp4") as container:
            for frame in container.decode(video=0):
                yield np.asarray(frame.to_ndarray(format="rgb24"))
