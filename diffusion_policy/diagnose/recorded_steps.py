"""Every step of recordings of any format, before they are converted: the counterpart of `steps_of_dataset`.

Legend: N steps of all recordings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.convert.decoding import decode_picture
from diffusion_policy.dataset.replay_buffer import ACTION_KEY, TIMESTAMP_KEY
from diffusion_policy.diagnose.steps import Look, Steps
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_scale import INTERNAL, ResolvedScale, ResolvedScales
from diffusion_policy.images import DecodedImage
from diffusion_policy.paths import as_path
from diffusion_policy.recording import Picture, Recording, open_recordings
from diffusion_policy.spec.action_layout import is_gripper_name
from diffusion_policy.trajectory import NO_IMAGE, TrajectoryError

# Grippers of opened recordings are 0 (closed) to 1 (open), or were converted to it.
OPEN1_SCALES = ResolvedScales(*(ResolvedScale(INTERNAL, "labeled", 0.0, 1.0, "as recorded"),) * 2)


@dataclass(frozen=True)
class RecordedCamera:
    """Frames of one camera as they were recorded.

    Attributes:
        name: the camera's name.
        recordings: the recordings that have it, in order.
    """

    name: str
    recordings: Sequence[Recording]

    def frame(self, step: int, width: int, height: int) -> DecodedImage | None:
        """See `Camera.frame`; decoded at reduced size where that suffices."""
        (look,) = self.looks(range(step, step + 1), width, height)
        if isinstance(look.image, WorkspaceError):
            raise look.image
        return look.image

    def looks(self, steps: range, width: int, height: int) -> Iterator[Look]:
        """See `Camera.looks`; a video is decoded once, restarting after each frame that does not decode."""
        start = steps.start
        while start < steps.stop:
            recording, first = self._recording_of(start)
            end = min(steps.stop, first + recording.n_steps)
            shown = recording.image_index[start - first : end - first] != NO_IMAGE
            if not shown[0]:
                yield Look("", None)
                start += 1
                continue
            run = int(np.argmin(shown)) or len(shown)
            for look in self._run(recording, range(start - first, start - first + run), width, height):
                yield look
                start += 1

    def _run(self, recording: Recording, steps: range, width: int, height: int) -> Iterator[Look]:
        """Yields the frames of steps that all show one, up to the first that cannot be read."""
        done = 0
        try:
            for piece in recording.frames(list(steps), self.name, len(steps)):
                for picture in piece.pictures():
                    yield _look(picture, width, height)
                    done += 1
        except WorkspaceError as error:
            yield Look(f"{recording.path}, step {steps[done]}", error)

    def _recording_of(self, step: int) -> tuple[Recording, int]:
        """Returns the recording that a step belongs to, and its first step."""
        number = int(np.searchsorted(self._ends, step, side="right"))
        return self.recordings[number], int(self._ends[number - 1]) if number else 0

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum([one.n_steps for one in self.recordings])


def _look(picture: Picture, width: int, height: int) -> Look:
    try:
        return Look(str(picture.name), decode_picture(picture, width, height, "fast"))
    except WorkspaceError as error:
        return Look(str(picture.name), error)


def steps_of_recordings(
    directory: Path, gripper_scale: str | None = None, timestamps: str | None = None, mapping: str | None = None
) -> Steps:
    """Reads the recordings in a folder or below a URL; those that cannot be opened are listed with the reason.

    Args:
        directory: holds recordings of one format.
        gripper_scale: scale in which their grippers are recorded, where it is not 1 (open) and 0 (closed).
        timestamps: unit in which time stamps are recorded, where it is not seconds.
        mapping: what each column holds, for a format with named columns; see `open_recordings`.

    Raises:
        TrajectoryError: there are no recordings, or none can be opened.
        WorkspaceError: their common description is invalid, or a mapping is missing.
    """
    opened: list[Recording] = []
    refused: dict[str, str] = {}
    recordings = open_recordings(directory, gripper_scale=gripper_scale, timestamps=timestamps, mapping=mapping)
    paths = recordings.find()
    for path in paths:
        try:
            opened.append(recordings.open(path))
        except WorkspaceError as error:
            refused[path.name] = str(error)
    if not opened:
        raise TrajectoryError(
            f"none of the {len(paths)} recordings can be opened; the first: {next(iter(refused.values()))}"
        )
    first = opened[0]
    cameras = [name for name in first.frame_numbers if all(name in one.frame_numbers for one in opened)]
    numbers = {key: np.concatenate([one.states[key] for one in opened]) for key in first.states}
    numbers[ACTION_KEY] = np.concatenate([one.action for one in opened])
    numbers[TIMESTAMP_KEY] = np.concatenate([one.timestamp for one in opened])
    return Steps(
        where=str(as_path(directory)),
        numbers={key: values.astype(np.float64) for key, values in numbers.items()},
        names={**first.names.states, ACTION_KEY: first.names.action},
        episode_ends=np.cumsum([one.n_steps for one in opened]),
        episode_names=tuple(one.path.name for one in opened),
        cameras={name: RecordedCamera(name, opened) for name in cameras},
        refused=refused,
        notes={one.path.name: "; ".join(one.notes) for one in opened if one.notes},
        grippers={name: OPEN1_SCALES for name in first.names.action if is_gripper_name(name)},
        units=first.names.units,
    )
