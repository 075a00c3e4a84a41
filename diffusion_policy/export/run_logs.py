"""Logged runs as episodes for other formats: first recordings, then a dataset, made by the converter itself."""

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
    """Returns the episodes of logged runs, with frames at the logged size and the steps that a person drove.

    Args:
        logs: run folders, or inference logs with images.
        scratch: an empty folder for the intermediate recordings and dataset.
        gripper_scale: scale of the logs' grippers, if it is neither 0..1 nor labeled.

    Raises:
        RunLogError: a log cannot be read, or cannot be converted to data.
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
    """Returns the steps that a person drove, from a converted log's marks: flagged by the client or corrected later."""
    marks = json.loads((episode / "marks.json").read_text(encoding="utf-8"))
    driven = np.isin(marks["steps"], [*marks[INTERVENTION], *marks["corrected"]])
    return EpisodeMetadata(interventions=tuple(true_runs(driven)))
