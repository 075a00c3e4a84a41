"""Episodes as MP4 videos (H.264), written while they run; the file name states the outcome."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from diffusion_policy.env_runner.document import video_name
from diffusion_policy.env_runner.results import SceneResult
from diffusion_policy.spec import ImageArray
from diffusion_policy.storage import rename, unfinished
from diffusion_policy.video_writer import SMALL, VideoWriter

__all__ = ["Video", "video_name"]

_STRIP = 18  # pixels below the frame, for the caption
_HOLD_S = 1.0  # how long the last frame is shown


class Video:
    """The video of one episode.

    Args:
        folder: folder of the file.
        scene: number of the scene.
        hz: frames per second.

    Raises:
        VideoError: the file cannot be written (at the first frame).
    """

    def __init__(self, folder: Path, scene: int, hz: float) -> None:
        self._folder, self._scene = folder, scene
        self._hz = hz
        self._partial = unfinished(folder / f"scene_{scene:04d}.mp4")
        self._writer: VideoWriter | None = None
        self._last: ImageArray | None = None

    def add(self, frame: ImageArray, caption: str) -> None:
        """Adds one frame (H, W, 3) RGB with a line of text below it."""
        self._last = _captioned(frame, caption)
        self._encode(self._last)

    def finish(self, result: SceneResult | None) -> None:
        """Closes the file and names it by its outcome; the file of an interrupted episode is removed."""
        if self._writer is None or self._last is None:
            return
        if result is None:
            self._writer.abandon()
            self._partial.unlink(missing_ok=True)
            return
        for _ in range(round(_HOLD_S * self._hz)):
            self._encode(self._last)
        self._writer.close()
        rename(self._partial, self._folder / video_name(result))

    def _encode(self, frame: ImageArray) -> None:
        if self._writer is None:
            height, width, _ = frame.shape
            self._writer = VideoWriter(self._partial, (width, height), self._hz, SMALL)
        self._writer.write(frame)


def _captioned(frame: ImageArray, caption: str) -> ImageArray:
    """Returns the frame above a dark strip with the caption; width and height are even, as the codec requires."""
    height, width = (side - side % 2 for side in frame.shape[:2])
    picture = np.zeros((height + _STRIP, width, 3), dtype=np.uint8)
    picture[:height] = frame[:height, :width]
    at = (6, height + _STRIP - 5)
    cv2.putText(picture, caption, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (235, 235, 235), 1, cv2.LINE_AA)
    return picture
