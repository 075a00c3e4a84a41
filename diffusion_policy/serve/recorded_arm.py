"""A recorded episode as the arm of the control loop: its observations are the recorded ones; commands do not move it.

The policy's commands can thus be compared, at every moment, with those given when the episode was recorded: see
``replayed_commands``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.recording.contract import ArrayNames, Recording
from diffusion_policy.recording.opening import open_recordings
from diffusion_policy.serve.client.arm import Picture, Reading
from diffusion_policy.serve.client.clock import Clock
from diffusion_policy.serve.client.requester import PolicyForm
from diffusion_policy.serve.replayed_commands import RecordedCommands
from diffusion_policy.spec import SpecError
from diffusion_policy.trajectory import NO_IMAGE

FloatArray = NDArray[np.float64]
_ROUNDING = 1e-6  # seconds; unix times are known to a quarter of it


@dataclass
class RecordedArm:
    """An episode that begins now. Implements ``serve.client.Arm``.

    Attributes:
        clock: the loop's clock.
        states: (N, D) measured states, in the order of the policy's messages.
        times: (N,) seconds from the first step.
        pictures: by camera, the encoded frame of each step, None for a step without one.
        commands: the recorded commands.
    """

    clock: Clock
    states: FloatArray
    times: FloatArray
    pictures: dict[str, list[Any]]
    commands: RecordedCommands
    start: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.clock.now()

    @property
    def ended(self) -> bool:
        """Whether the last step is over."""
        return self.clock.now() - self.start > self.times[-1]

    def observe(self) -> Reading:
        """Returns the latest recorded step at the current time."""
        step = max(0, int(np.searchsorted(self.times, self.clock.now() - self.start + _ROUNDING, side="right")) - 1)
        shown = {}
        for camera, frames in self.pictures.items():
            seen = next((index for index in range(step, -1, -1) if frames[index] is not None), None)
            if seen is not None:
                shown[camera] = Picture(frames[seen], self.start + float(self.times[seen]))
        return Reading(self.states[step], self.start + float(self.times[step]), shown)

    def move(self, action: FloatArray) -> None:
        """Ignored: the recording continues."""

    def hold(self, reason: str) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


def open_recorded_arm(episode: Path, form: PolicyForm, clock: Clock) -> RecordedArm:
    """Opens an episode of any format that the converter reads.

    Args:
        episode: the episode's folder.
        form: what the policy observes.
        clock: the loop's clock; the episode begins now.

    Raises:
        WorkspaceError: it cannot be read, lacks a camera or a number that the policy observes, or its time stamps do
            not rise.
    """
    recording = open_recordings(episode.parent).open(episode)
    times = np.asarray(recording.timestamp - recording.timestamp[0], dtype=np.float64)
    if len(times) < 2 or not (np.diff(times) > 0).all():
        raise WorkspaceError(f"{episode}: its {len(times)} time stamps do not rise; expected at least two, rising")
    missing = sorted(set(form.cameras) - set(recording.frame_numbers))
    if missing:
        raise SpecError(f"{episode}: has cameras {sorted(recording.frame_numbers)}; the policy also needs {missing}")
    states = _states(recording, recording.names, form, episode)
    pictures = {camera: _pictures(recording, camera) for camera in form.cameras}
    return RecordedArm(clock, states, times, pictures, RecordedCommands.of(recording, form.layout, times))


def _states(recording: Recording, names: ArrayNames, form: PolicyForm, episode: Path) -> FloatArray:
    """Returns (N, D) recorded states, found by name."""
    state_columns = [names.state_column(name) for name in form.layout.names]
    unknown = [name for name, column in zip(form.layout.names, state_columns, strict=True) if column is None]
    if unknown:
        raise SpecError(f"{episode}: measured {list(names.states)}, without {unknown}; the policy's messages need it")
    columns = [recording.states[column[0]][:, column[1]] for column in state_columns if column is not None]
    return np.stack(columns, axis=1).astype(np.float64)


def _pictures(recording: Recording, camera: str) -> list[Any]:
    """The encoded frame of each step."""
    steps = [step for step in range(recording.n_steps) if recording.image_index[step] != NO_IMAGE]
    shown: list[Any] = [None] * recording.n_steps
    pictures = (picture for frames in recording.frames(steps, camera, len(steps)) for picture in frames.pictures())
    for step, picture in zip(steps, pictures, strict=True):
        shown[step] = picture.content
    return shown
