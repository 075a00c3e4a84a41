"""Logged runs, on their way to other formats: recordings first, then a dataset, by the converter itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.export.episodes import DatasetEpisodes
from diffusion_policy.gripper_scale import DeclaredScales
from diffusion_policy.images import image_size
from diffusion_policy.recording import EpisodeMetadata, open_recordings
from diffusion_policy.recording.contract import true_runs
from diffusion_policy.run_log.to_trajectories import convert_logs
from diffusion_policy.spec import INTERVENTION


def log_episodes(logs: Sequence[Path], scratch: Path, gripper_scale: DeclaredScales | None = None) -> DatasetEpisodes:
    """The episodes of logged runs, frames at the size in which they were logged, with what a person drove.

    Args:
        logs: runs' folders, or inference logs with images.
        scratch: an empty folder for the recordings and the dataset on the way.
        gripper_scale: of the logs' grippers, where it is not 0..1 and they do not say so.

    Raises:
        RunLogError: a log cannot be read, or is none that data can be made of.
        ConversionError: its frames differ in size.
    """
    recordings, dataset = scratch / "recordings", scratch / "dataset.zarr"
    convert_logs(logs, recordings, None, gripper_scale)
    recorded = open_recordings(recordings)
    first = recorded.open(recorded.find()[0])
    picture = next(next(first.frames([0], next(iter(first.frame_numbers)), 1)).pictures())
    size = image_size(picture.content) if isinstance(picture.content, bytes) else None
    settings = ConversionSettings(recordings, dataset, resolution=size or (320, 180), quaternion_sign="keep")
    kept = convert(settings).kept
    metadata = {number: _metadata(recordings / entry.name) for number, entry in enumerate(kept)}
    return DatasetEpisodes(dataset, metadata=metadata)


def _metadata(episode: Path) -> EpisodeMetadata:
    """What a person drove, by the marks of a converted log: as flagged by the client, or as corrected afterwards."""
    marks = json.loads((episode / "marks.json").read_text(encoding="utf-8"))
    driven = np.isin(marks["steps"], [*marks[INTERVENTION], *marks["corrected"]])
    return EpisodeMetadata(interventions=tuple(true_runs(driven)))
