"""Videos of a zarr, as collectors of diffusion_policy write them: videos/<episode>/<camera>.mp4."""

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
    """Names of the cameras of the first episode: "camera_0" of 0.mp4.

    Raises:
        RecordingError: it has no video.
    """
    folder = videos / "0"
    names = sorted(file.stem for file in folder.glob("*.mp4") if _CAMERA.fullmatch(file.stem))
    if not names:
        raise RecordingError(f"{folder}: holds no video (0.mp4 and so on); expected one a camera of the first episode")
    return [f"{_PREFIX}{stem}" for stem in names]


def video_frames(videos: Path, episode: int, camera: str, times: NDArray[np.float64]) -> tuple[VideoFrames, str | None]:
    """The frames that the steps of an episode show, and a note where they were found by their time.

    A video with a frame for each step is read as that, whatever rate it says; any other by the time since the first
    step.

    Args:
        videos: folder of all episodes.
        episode: number, from 0 on.
        camera: as `cameras_of` names it.
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
        raise RecordingError(f"{file}: says no frame rate: copy it again, or write it anew")
    if n_frames == n:
        at = begin + np.arange(n) / rate
        return VideoFrames(file, tuple(at.tolist()), tuple(range(n)), 1 / rate), None
    at = begin + times - times[0]
    period = float(np.median(np.diff(times))) if n > 1 else 1 / rate
    note = f"{camera}: {n_frames} frames at {rate:g} a second for {n} steps: found by time, the nearest to each step"
    return VideoFrames(file, tuple(at.tolist()), tuple(range(n)), period), note
