"""Episodes as MP4 videos (H.264), written while they run; the file name states the outcome."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from diffusion_policy.env_runner.document import video_name
from diffusion_policy.env_runner.results import ResultError, SceneResult
from diffusion_policy.spec import ImageArray
from diffusion_policy.storage import rename, unfinished

__all__ = ["Video", "video_name"]

_CODEC = "libx264"
_STRIP = 18  # pixels below the frame, for the caption
_HOLD_S = 1.0  # the last frame is shown for so long


class Video:
    """The video of one episode.

    Args:
        folder: folder of the file.
        scene: number of the scene.
        hz: frames per second.

    Raises:
        ResultError: the file cannot be written.
    """

    def __init__(self, folder: Path, scene: int, hz: float) -> None:
        self._folder, self._scene = folder, scene
        self._rate = Fraction(hz).limit_denominator(1000)
        self._partial = unfinished(folder / f"scene_{scene:04d}.mp4")
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None
        self._last: ImageArray | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultError(f"{folder}: cannot be created ({error.strerror})") from error

    def add(self, frame: ImageArray, caption: str) -> None:
        """Adds one frame (H, W, 3) RGB with a line of text below it."""
        self._last = _captioned(frame, caption)
        self._encode(self._last)

    def finish(self, result: SceneResult | None) -> None:
        """Closes the file and names it by its outcome; the file of an interrupted episode is removed."""
        if self._container is None or self._stream is None or self._last is None:
            return
        if result is None:
            self._container.close()
            self._partial.unlink(missing_ok=True)
            return
        for _ in range(round(_HOLD_S * self._rate)):
            self._encode(self._last)
        self._container.mux(self._stream.encode())
        self._container.close()
        rename(self._partial, self._folder / video_name(result))

    def _encode(self, frame: ImageArray) -> None:
        if self._container is None or self._stream is None:
            self._container, self._stream = self._open(*frame.shape[:2])
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def _open(self, height: int, width: int) -> tuple[av.container.OutputContainer, av.VideoStream]:
        try:
            container = av.open(str(self._partial), "w", format="mp4")
        except OSError as error:
            raise ResultError(f"{self._partial}: cannot be written ({error.strerror})") from error
        stream = container.add_stream(_CODEC, rate=self._rate, options={"crf": "23"})
        assert isinstance(stream, av.VideoStream), "an H.264 encoder makes a video stream"
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p"
        return container, stream


def _captioned(frame: ImageArray, caption: str) -> ImageArray:
    """Returns the frame above a dark strip with the caption; width and height are even, as the codec requires."""
    height, width = (side - side % 2 for side in frame.shape[:2])
    picture = np.zeros((height + _STRIP, width, 3), dtype=np.uint8)
    picture[:height] = frame[:height, :width]
    at = (6, height + _STRIP - 5)
    cv2.putText(picture, caption, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (235, 235, 235), 1, cv2.LINE_AA)
    return picture
