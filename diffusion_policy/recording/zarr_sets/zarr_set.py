"""Where a zarr dataset of others is: alone, or with a video for each episode and camera."""

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
        root: what was asked for.
        store: the zarr: `root`, or replay_buffer.zarr in it.
        videos: holds <episode>/<camera>.mp4; None where frames are in the zarr.
    """

    root: Path
    store: Path
    videos: Path | None = None


def zarr_set(found: Path) -> ZarrSet | None:
    """The zarr dataset that a path is; None if it is none."""
    with reaching(found):
        if not is_remote(found) and found.is_file():
            return ZarrSet(found, found) if found.suffix == ".zip" or zipfile.is_zipfile(found) else None
        if is_dataset(found):
            return ZarrSet(found, found)
        buffer = next((found / name for name in _BUFFERS if (found / name).exists()), None)
        if buffer is None:
            return None
        videos = found / _VIDEOS
        return ZarrSet(found, buffer, videos if videos.is_dir() else None)
