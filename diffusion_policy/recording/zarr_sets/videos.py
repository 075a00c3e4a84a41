"""Videos of a zarr, as written by diffusion_policy's collectors: videos/<episode>/<camera>.mp4."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.recording.errors import RecordingError
from diffusion_policy.recording.lerobot.frames import VideoFrames, opened_video

_CAMERA = re.compile(r"\w+")
_PREFIX = "camera_"


def cameras_of(videos: Path) -> list[str]:
    """Returns the names of the first episode's cameras: "camera_0" for 0.mp4.

    Raises:
        RecordingError: it has no video.
    """
    folder = videos / "0"
    names = sorted(file.stem for file in folder.glob("*.mp4") if _CAMERA.fullmatch(file.stem))
    if not names:
        raise RecordingError(
            f"{folder}: holds no video (0.mp4 and so on); expected one per camera of the first episode"
        )
    return [f"{_PREFIX}{stem}" for stem in names]


def video_frames(videos: Path, episode: int, camera: str, times: NDArray[np.float64]) -> tuple[VideoFrames, str | None]:
    """Returns the frames that an episode's steps show, and a note if they were found by time.

    A video with one frame per step is read as such, whatever its stated rate; any other by the time since the first
    step.

    Args:
        videos: folder of all episodes.
        episode: episode number, from 0 on.
        camera: name of the camera, from `cameras_of`.
        times: (N,) seconds of the steps.

    Raises:
        RecordingError: the video is absent or damaged.
    """
    file = videos / str(episode) / f"{camera.removeprefix(_PREFIX)}.mp4"
    n = len(times)
    with opened_video(file) as container:
        video = container.streams.video[0]
        n_frames, rate = int(video.frames), float(video.average_rate or 0)
        begin = float(video.start_time * video.time_base) if video.start_time else 0.0
    if rate <= 0:
        raise RecordingError(f"{file}: has no frame rate: copy it again, or rewrite it")
    if n_frames == n:
        at = begin + np.arange(n) / rate
        return VideoFrames(file, tuple(at.tolist()), tuple(range(n)), 1 / rate), None
    at = begin + times - times[0]
    period = float(np.median(np.diff(times))) if n > 1 else 1 / rate
    note = f"{camera}: {n_frames} frames at {rate:g} per second for {n} steps: each step has the frame nearest in time"
    return VideoFrames(file, tuple(at.tolist()), tuple(range(n)), period), note
