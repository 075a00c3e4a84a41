"""The demonstrations of a study, by seed and kind of label, and its policies that are broken on purpose."""

from __future__ import annotations

import functools
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from study_plan import NEXT_MEASURED, RECORDED  # type: ignore[import-not-found]

from diffusion_policy import safe_pickle
from diffusion_policy.checkpoint import NORMALIZER, WEIGHTS, read_checkpoint, write_checkpoint
from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.sim.recorder import make_trajectories
from diffusion_policy.storage import atomic_folder, link

Weights = dict[str, torch.Tensor]

FRAME, RESOLUTION = (320, 180), (160, 90)
VARIATION = 0.3  # variation of the expert, as in the demo
FIRST_SEED = 1000  # the shipped policy saw demonstrations of another seed


def dataset_of(folder: Path, seed: int, episodes: int, labels: str) -> Path:
    """Returns the converted demonstrations of a seed, recording and converting them first if needed.

    Args:
        folder: folder of the study's data.
        seed: seed in the study.
        episodes: number recorded, including those held out.
        labels: one of study_plan.LABELS.
    """
    output = folder / f"{labels}_{seed}.zarr"
    if output.is_dir():
        return output
    recordings = folder / f"recordings_{seed}"
    if not recordings.is_dir():
        with atomic_folder(recordings) as aside:
            make_trajectories(aside, episodes, FIRST_SEED + seed, FRAME, variation=VARIATION, referee="physics")
    source = recordings if labels == RECORDED else _copied(recordings, folder / f"copied_recordings_{seed}")
    command: Literal["next-measured", "recorded"] = "next-measured" if labels == NEXT_MEASURED else "recorded"
    convert(
        ConversionSettings(
            source=source, output=output, resolution=RESOLUTION, gripper_command=command, overwrite=True, workers=1
        )
    )
    return output


def _copied(recordings: Path, output: Path) -> Path:
    """Copies recordings as written by a recorder that also stores the command as the measured gripper."""
    if output.is_dir():
        return output
    with atomic_folder(output) as aside:
        for episode in sorted(path for path in recordings.iterdir() if path.is_dir()):
            made = aside / episode.name
            made.mkdir()
            numbers = episode / "data.pkl"
            columns = safe_pickle.load(numbers.read_bytes(), allowed=safe_pickle.NUMPY_GLOBALS, where=str(numbers))
            columns["robot_gripper"] = columns["action_gripper"]
            (made / "data.pkl").write_bytes(pickle.dumps(columns))
            shutil.copy(episode / "meta.json", made)
            shutil.copytree(episode / "images", made / "images", copy_function=link)
    return output


def tamper(source: Path, how: str, output: Path) -> None:
    """Writes a copy of a policy, broken in one of the ways of TAMPERINGS."""
    found = read_checkpoint(source)
    for which in WEIGHTS:
        TAMPERINGS[how](found.state_dict(which))
    write_checkpoint(
        output,
        cfg=found.cfg,
        state_dicts={which: found.state_dict(which) for which in WEIGHTS},
        pickles=found.pickles,
        provenance=found.provenance,
    )


def _blind(weights: Weights) -> None:
    """Makes the features independent of the camera: the last projection is zero."""
    for name in ("weight", "bias"):
        key = f"obs_encoder.obs_nets.image.nets.3.{name}"
        weights[key] = torch.zeros_like(weights[key])


def _shifted(weights: Weights, meters: float) -> None:
    """Shifts the commanded x: position = (normalized - offset) / scale."""
    offset = weights[f"{_ACTION}offset"].clone()
    offset[0] -= meters * weights[f"{_ACTION}scale"][0]
    weights[f"{_ACTION}offset"] = offset


def _stretched(weights: Weights, factor: float) -> None:
    """Changes the unit of commanded positions."""
    scale = weights[f"{_ACTION}scale"].clone()
    scale[:3] /= factor
    weights[f"{_ACTION}scale"] = scale


_ACTION = f"{NORMALIZER}params_dict.action."
TAMPERINGS: dict[str, Callable[[Weights], None]] = {
    "blind": _blind,
    "x off by 15 mm": functools.partial(_shifted, meters=0.015),
    "x off by 40 mm": functools.partial(_shifted, meters=0.04),
    "positions 10 % too large": functools.partial(_stretched, factor=1.1),
}
"""Faults that a user may encounter: an ignored camera, a mount that was moved, a wrong unit."""
