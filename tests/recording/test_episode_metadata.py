"""Flags of recordings reach the dataset, counted from the first step that it holds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trajectory_factory import write_trajectory

from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.dataset.episode_metadata import EpisodeMetadata, episode_metadata
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.recording.contract import true_runs

DRIVEN = np.isin(np.arange(12), [0, 1, 5, 6])
SHOWN = np.where(np.arange(12) < 1, -1, np.arange(12))  # the first step shows no frame, and is left out


@pytest.mark.parametrize(
    ("flags", "metadata"),
    [
        (DRIVEN, EpisodeMetadata(interventions=((0, 1), (4, 6)))),
        (DRIVEN.astype(np.int64)[:, None], EpisodeMetadata(interventions=((0, 1), (4, 6)))),
        (np.zeros(12, dtype=bool), EpisodeMetadata(interventions=())),
        (None, EpisodeMetadata()),
        (np.arange(12), EpisodeMetadata()),
        (DRIVEN[:5], EpisodeMetadata()),
        (DRIVEN.astype(np.float32), EpisodeMetadata()),
    ],
    ids=["flags", "a column of 0 and 1", "nobody drove", "no flags", "numbers", "too few", "floats"],
)
def test_what_a_person_drove_is_in_the_dataset(tmp_path: Path, flags: Any, metadata: EpisodeMetadata) -> None:
    arrays = {"image_index": SHOWN} if flags is None else {"image_index": SHOWN, "intervention": flags}
    write_trajectory(tmp_path / "in", n_steps=12, size=(32, 18), arrays=arrays)
    report = convert(ConversionSettings(tmp_path / "in", tmp_path / "out.zarr", resolution=(32, 18), workers=1))
    assert episode_metadata(ReplayBuffer.open(tmp_path / "out.zarr")) == (metadata,)
    is_flag = flags is None or metadata.interventions is not None
    assert any("not carried over" in note for note in report.kept[0].notes) != is_flag, "what is no flag is named"


def test_runs_of_true_flags() -> None:
    assert true_runs(np.array([1, 1, 0, 1, 0, 0, 1], dtype=bool)) == [(0, 2), (3, 4), (6, 7)]
    assert true_runs(np.zeros(3, dtype=bool)) == true_runs(np.zeros(0, dtype=bool)) == []
