"""The location of a foreign zarr dataset: alone, or with a video for each episode and camera."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from diffusion_policy.dataset.opening import is_dataset
from diffusion_policy.paths import is_remote, reaching

_BUFFERS = ("replay_buffer.zarr", "replay_buffer.zarr.zip")
_VIDEOS = "videos"


@dataclass(frozen=True)
class ZarrSet:
    """A dataset.

    Attributes:
        root: the requested path.
        store: the zarr: `root`, or replay_buffer.zarr in it.
        videos: holds <episode>/<camera>.mp4; None if frames are in the zarr.
    """

    root: Path
    store: Path
    videos: Path | None = None


def zarr_set(path: Path) -> ZarrSet | None:
    """Returns the zarr dataset at a path; None if there is none."""
    with reaching(path):
        if not is_remote(path) and path.is_file():
            return ZarrSet(path, path) if path.suffix == ".zip" or zipfile.is_zipfile(path) else None
        if is_dataset(path):
            return ZarrSet(path, path)
        buffer = next((path / name for name in _BUFFERS if (path / name).exists()), None)
        if buffer is None:
            return None
        videos = path / _VIDEOS
        return ZarrSet(path, buffer, videos if videos.is_dir() else None)
