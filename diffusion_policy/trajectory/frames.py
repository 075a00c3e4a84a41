"""The frames of an episode: which files there are, and whether every step's frame is among them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.trajectory.errors import TrajectoryError
from diffusion_policy.trajectory.links import refuse_broken

NO_IMAGE = -1
SINGLE_CAMERA = "image"
# Allowed characters before and after the dot of a frame's name.
_FRAME = re.compile(r"frame_(\d+)\.(?:jpe?g|png)", re.IGNORECASE)


def list_frames(path: Path) -> dict[str, dict[int, Path]]:
    """Per camera, the file of each frame number.

    Raises:
        TrajectoryError: no frames, two sets of them, a frame that occurs twice, or a broken link.
    """
    for name in ("images", "Images"):
        refuse_broken(path / name)
    folders = [path / name for name in ("images", "Images") if (path / name).is_dir()]
    if len(folders) == 2 and folders[0].samefile(folders[1]):
        folders = folders[:1]
    if len(folders) != 1:
        folders_found = "neither images/ nor Images/" if not folders else "both images/ and Images/"
        raise TrajectoryError(f"{path}: has {folders_found}; expected one of them")
    (images,) = folders
    entries = sorted(images.iterdir())
    for entry in entries:
        if not entry.suffix:  # the folder of a camera; frames are checked one by one
            refuse_broken(entry)
    single = _number_frames(entry for entry in entries if not entry.is_dir())
    several = {entry.name: _number_frames(entry.iterdir()) for entry in entries if entry.is_dir()}
    several = {camera: frames for camera, frames in several.items() if frames}
    if single and several:
        raise TrajectoryError(f"{images}: frames are both in it and in {', '.join(several)}/; expected one of the two")
    if not single and not several:
        raise TrajectoryError(f"{images}: holds no frame (frame_0000.jpg and so on)")
    return several or {SINGLE_CAMERA: single}


def _number_frames(files: Iterable[Path]) -> dict[int, Path]:
    frames: dict[int, Path] = {}
    for file in files:
        match = _FRAME.fullmatch(file.name)
        if match is None:
            continue
        refuse_broken(file)
        number = int(match.group(1))
        if number in frames:
            raise TrajectoryError(f"{file}: frame {number} occurs twice, also as {frames[number].name}")
        frames[number] = file
    return dict(sorted(frames.items()))


def check_image_index(index: NDArray[np.int64], frames: Mapping[str, Mapping[int, Path]], path: Path) -> None:
    """Raises TrajectoryError: `image_index` (N,) names a frame that does not exist, or none at all."""
    wrong = np.flatnonzero(index < NO_IMAGE)
    if wrong.size:
        raise TrajectoryError(f"{path}: image_index is {index[wrong[0]]} at step {wrong[0]}; expected a frame or -1")
    if (index == NO_IMAGE).all():
        raise TrajectoryError(f"{path}: image_index is -1 at every step: the episode has no image")
    for camera, files in frames.items():
        absent = np.flatnonzero((index != NO_IMAGE) & ~np.isin(index, list(files)))
        if absent.size:
            raise TrajectoryError(
                f"{path}: step {absent[0]} shows frame {index[absent[0]]}, which {next(iter(files.values())).parent} "
                f"does not hold; {absent.size} of {len(index)} steps lack their frame of camera {camera!r}"
            )


def image_notes(index: NDArray[np.int64], frames: Mapping[str, Mapping[int, Path]]) -> list[str]:
    """Harmless irregularities in which step shows which frame."""
    shown = index[index != NO_IMAGE]
    notes = []
    if shown.size < index.size:
        notes.append(f"{index.size - shown.size} steps without an image")
    repeats = shown.size - np.unique(shown).size
    if repeats:
        notes.append(f"{repeats} steps show a frame that another step also shows")
    for camera, files in frames.items():
        unused = len(set(files) - set(shown.tolist()))
        if unused:
            notes.append(f"{unused} frames of camera {camera!r} are not shown at any step")
    return notes
