"""Something that can be played back: a log of inferences, or a recorded episode, step by step.

A log that names the dataset and the episode it was made over is put beside the recording, if the measured poses show
that it is the same one: then predicted and recorded gripper commands can be compared at every step.

Legend: N steps, T actions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.frame_files import FrameFiles
from diffusion_policy.dataset.opening import lies_there
from diffusion_policy.dataset.replay_buffer import (
    ACTION_KEY,
    GRIPPER_KEY,
    IMAGE_KEY,
    POSE_KEY,
    TIMESTAMP_KEY,
    ReplayBuffer,
)
from diffusion_policy.diagnose.dataset_evidence import episode_slices
from diffusion_policy.diagnose.steps import ConvertedCamera
from diffusion_policy.images import decode_jpeg
from diffusion_policy.run_log import RunLog
from diffusion_policy.spec import GRIPPER, SpecError

FloatArray = NDArray[np.float64]
Frame = NDArray[np.uint8]

# Actions of a recorded episode that are drawn as if they were a chunk.
RECORDED_CHUNK = 8
# A log's measured positions are those of a recording if they are this near, in metres.
SAME_METRES = 1e-3


@dataclass(frozen=True)
class Playback:
    """N steps.

    Attributes:
        name: of the log or the episode.
        positions: (N, 3) measured, metres.
        chunks: (N, T, 3) positions that are commanded from each step on.
        chunk_grippers: (N, T) gripper commands of the chunk, 1 = open; None without a 0..1 gripper.
        measured: (N,) gripper before the command, or None.
        recorded: (N,) gripper that was commanded in the recording, or None.
        recorded_positions: (N, 3) that were commanded in the recording, or None.
        seconds: (N,) since the first step, or None.
        frame: the image of a step, or None where there is none that decodes.
        predicted: whether the commands are a policy's, not a recording's.
    """

    name: str
    positions: FloatArray
    chunks: FloatArray
    chunk_grippers: FloatArray | None
    measured: FloatArray | None
    recorded: FloatArray | None
    recorded_positions: FloatArray | None
    seconds: FloatArray | None
    frame: Callable[[int], Frame | None]
    predicted: bool

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def commands(self) -> FloatArray | None:
        """(N,) the next gripper command at each step."""
        return None if self.chunk_grippers is None else self.chunk_grippers[:, 0]


def playback_of_log(log: RunLog, *datasets: ReplayBuffer) -> Playback | None:
    """A log as a playback, beside its recording in the first dataset that holds it; None for a log without poses."""
    if not log.steps or log.layout == "unknown":
        return None
    scales = log.gripper_scales() if log.layout == "xyz_quat_gripper" else None
    has_gripper = scales is not None and scales.command.is_internal
    recorded = recorded_positions = None
    for dataset in datasets:
        steps = recorded_steps(log, dataset)
        if steps is None:
            continue
        recorded_positions = dataset.read(ACTION_KEY).astype(np.float64)[steps, :3]
        command = gripper_column(dataset, ACTION_KEY) if has_gripper else None
        recorded = None if command is None else command[steps]
        break
    return Playback(
        name=log.path.stem.removeprefix("inference_log_"),
        positions=log.states[:, :3],
        chunks=log.actions[..., :3],
        chunk_grippers=log.actions[..., 7] if has_gripper else None,
        measured=log.measured_gripper if has_gripper else None,
        recorded=recorded,
        recorded_positions=recorded_positions,
        seconds=None if log.step_period is None else (log.numbers - log.numbers[0]) / log.stride * log.step_period,
        frame=lambda step: _decoded(log.steps[step].jpeg, f"{log.path}, step {step}"),
        predicted=True,
    )


def recorded_steps(log: RunLog, dataset: ReplayBuffer) -> NDArray[np.int64] | None:
    """(N,) the dataset's steps that a log was made over, None if it was not made over this dataset."""
    episode = log.meta.get("episode")
    if type(episode) is not int or not 0 <= episode < dataset.n_episodes or POSE_KEY not in dataset:
        return None
    steps, numbers = _steps(dataset, episode), log.numbers  # counted from the episode's first step
    if not len(numbers) or numbers[0] < 0 or numbers[-1] >= len(steps):
        return None
    steps = steps[numbers]
    measured = dataset.read(POSE_KEY).astype(np.float64)[steps, :3]
    return steps if np.abs(measured - log.states[:, :3]).max() < SAME_METRES else None


def gripper_column(dataset: ReplayBuffer, key: str) -> FloatArray | None:
    """(N,) commanded or measured gripper of a dataset, 1 = open; None without one whose scale is known."""
    column, scales = dataset.stored_column(key, GRIPPER), dataset.gripper_scales
    if column is None or scales is None:
        return None
    found = scales.command if key == ACTION_KEY else scales.measured
    return None if found is None or found.scale is None else found.scale.to_internal(column)


def playback_of_episode(dataset: ReplayBuffer, episode: int, camera: ConvertedCamera | None = None) -> Playback:
    """A recorded episode as a playback: its chunks are what was commanded from each step on.

    Args:
        dataset: that holds it.
        episode: its number.
        camera: that knows which frames are lost; None: all are there.
    """
    steps = _steps(dataset, episode)
    numbers: dict[str, FloatArray] = {
        key: dataset.read(key).astype(np.float64)[steps]
        for key in (ACTION_KEY, POSE_KEY, TIMESTAMP_KEY)
        if key in dataset
    }
    action, command = numbers[ACTION_KEY], gripper_column(dataset, ACTION_KEY)
    measured = gripper_column(dataset, GRIPPER_KEY)
    window = np.minimum(np.arange(len(steps))[:, None] + np.arange(RECORDED_CHUNK), len(steps) - 1)
    times = numbers.get(TIMESTAMP_KEY)
    return Playback(
        name=f"episode {episode}",
        positions=numbers.get(POSE_KEY, action)[:, :3],
        chunks=action[window][..., :3],
        chunk_grippers=None if command is None else command[steps][window],
        measured=None if measured is None else measured[steps],
        recorded=None,
        recorded_positions=None,
        seconds=None if times is None else times - times[0],
        frame=_reader(camera or _camera(dataset), steps),
        predicted=False,
    )


def dataset_of_log(log: RunLog) -> Path | None:
    """The dataset that a log says it was made over, if it is there."""
    named: Any = log.meta.get("dataset")
    return Path(named) if isinstance(named, str) and lies_there(named) else None


def _steps(dataset: ReplayBuffer, episode: int) -> NDArray[np.int64]:
    found = episode_slices(dataset.episode_ends)[episode]
    return np.arange(found.start, found.stop)


def _camera(dataset: ReplayBuffer) -> ConvertedCamera | None:
    return ConvertedCamera(FrameFiles(dataset[IMAGE_KEY])) if IMAGE_KEY in dataset.cameras else None


def _reader(camera: ConvertedCamera | None, steps: NDArray[np.int64]) -> Callable[[int], Frame | None]:
    return lambda step: None if camera is None else camera.whole(int(steps[step]))


def _decoded(jpeg: bytes | None, where: str) -> Frame | None:
    if jpeg is None:
        return None
    try:
        return decode_jpeg(jpeg, where)
    except SpecError:
        return None
