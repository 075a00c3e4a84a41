"""Corrections that a person made: the marked parts of recordings become separate episodes.

While a policy runs on a robot a person takes over where it goes wrong, and the recorder marks these steps:
``intervention`` in data.pkl, (N,) or (N, 1), is true where the person drove, as in LeRobot's recordings. The commands
there are the person's. Each run of marked steps becomes an episode; the policy's own steps are left out. The recordings
are only read.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy import safe_pickle
from diffusion_policy.dagger.teacher import CorrectionError
from diffusion_policy.gripper_scale import DeclaredScales
from diffusion_policy.paths import read_bytes
from diffusion_policy.recording.contract import true_runs
from diffusion_policy.spec import INTERVENTION
from diffusion_policy.storage import atomic_folder
from diffusion_policy.trajectory import NO_IMAGE, Trajectory, find_trajectories, open_trajectory

SHORTEST = 4  # steps; a shorter part is an accidental touch rather than a correction


@dataclass(frozen=True)
class Cut:
    """The episodes that were cut out of one recording.

    Attributes:
        source: the recording's folder.
        episodes: names of the written episodes, in order.
        frames: total number of their steps.
        too_short: number of marked parts with fewer than ``SHORTEST`` steps, which are left out.
    """

    source: Path
    episodes: tuple[str, ...]
    frames: int
    too_short: int


def cut_marked(
    source: Path, output: Path, *, first_number: int = 0, gripper_scale: DeclaredScales | None = None
) -> list[Cut]:
    """Writes every marked part of the recordings in a folder as an episode.

    Args:
        source: folder of recordings, all with marks; one without a takeover gives no episode.
        output: created if absent; must be empty. It is written completely or not at all.
        first_number: number of the first episode.
        gripper_scale: scale of the recordings, where it is not 1 (open) and 0 (closed); the episodes keep it.

    Raises:
        CorrectionError: a recording has no marks or invalid ones; there is no takeover; the output is not empty.
        TrajectoryError: a recording that cannot be trusted.
    """
    if output.exists() and any(output.iterdir()):
        raise CorrectionError(f"{output} is not empty; name another folder")
    with atomic_folder(output) as aside:
        cuts: list[Cut] = []
        for path in find_trajectories(source):
            number = first_number + sum(len(cut.episodes) for cut in cuts)
            cuts.append(_cut(open_trajectory(path, gripper_scale), aside, number))
        if not any(cut.episodes for cut in cuts):
            short = sum(cut.too_short for cut in cuts)
            found = f"; {short} parts are shorter than {SHORTEST} steps" if short else ""
            raise CorrectionError(f"{source}: no step of {len(cuts)} recordings is marked as an {INTERVENTION}{found}")
    return cuts


def marks_of(data: Any, n_steps: int, where: Path) -> NDArray[np.bool_]:
    """Returns (N,) which steps of a recording a person drove.

    Raises:
        CorrectionError: the data has no marks, or marks other than one boolean for each step.
    """
    if INTERVENTION not in data:
        raise CorrectionError(
            f"{where}: data.pkl has no {INTERVENTION!r}; expected ({n_steps},) booleans, true where a person drove"
        )
    marks = np.asarray(data[INTERVENTION])
    flags = marks.dtype.kind in "biu" and bool(np.isin(marks, (0, 1)).all())
    if marks.shape not in ((n_steps,), (n_steps, 1)) or not flags:
        raise CorrectionError(
            f"{where}: {INTERVENTION} is {marks.dtype} {marks.shape}; expected ({n_steps},) booleans, true where a "
            "person drove"
        )
    return marks.reshape(-1).astype(np.bool_)


def _cut(recording: Trajectory, output: Path, number: int) -> Cut:
    file = recording.path / "data.pkl"
    data = safe_pickle.load(read_bytes(file), allowed=safe_pickle.NUMPY_GLOBALS, where=str(file))
    runs = true_runs(marks_of(data, recording.n_steps, recording.path))
    long = [(start, end) for start, end in runs if end - start >= SHORTEST]
    names = []
    for at, (start, end) in enumerate(long):
        _write(recording, data, start, end, output / f"episode_{number + at:04d}", number + at)
        names.append(f"episode_{number + at:04d}")
    return Cut(recording.path, tuple(names), sum(end - start for start, end in long), len(runs) - len(long))


def _write(recording: Trajectory, data: Any, start: int, end: int, folder: Path, number: int) -> None:
    """Writes steps ``start`` to ``end`` of a recording with their frames, which keep their numbers."""
    columns = {key: np.asarray(column) for key, column in data.items()}
    cut = {key: column[start:end] for key, column in columns.items() if column.shape[:1] == (recording.n_steps,)}
    shown = {int(index) for index in recording.image_index[start:end] if index != NO_IMAGE}
    for frames in recording.frames.values():
        for index in sorted(shown):
            target = folder / frames[index].relative_to(recording.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(read_bytes(frames[index]))
    folder.mkdir(exist_ok=True)
    (folder / "data.pkl").write_bytes(pickle.dumps(cut))
    meta = {
        "episode_id": number,
        "n_steps": end - start,
        "n_images": len(shown),
        "duration": float(recording.timestamp[end - 1] - recording.timestamp[start]),
        "data_shapes": {key: list(column.shape) for key, column in cut.items()},
        "correction": {"recording": recording.path.name, "steps": [start, end - 1]},
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
