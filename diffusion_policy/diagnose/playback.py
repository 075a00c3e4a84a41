"""Playback, step by step and separately for each arm, of an inference log or a recorded episode.

A log that names the dataset and episode that it was made on is shown with the recording if the measured poses show
that they match; then predicted and recorded gripper commands can be compared at every step.

Legend: N steps, T actions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.frame_files import FrameFiles
from diffusion_policy.dataset.opening import dataset_exists
from diffusion_policy.dataset.replay_buffer import (
    ACTION_KEY,
    GRIPPER_KEY,
    POSE_KEY,
    TIMESTAMP_KEY,
    ReplayBuffer,
)
from diffusion_policy.diagnose.dataset_evidence import episode_slices
from diffusion_policy.diagnose.steps import ConvertedCamera
from diffusion_policy.images import decode_jpeg
from diffusion_policy.run_log import RunLog
from diffusion_policy.spec import GRIPPER, ActionLayout, SpecError, find_layout

FloatArray = NDArray[np.float64]
Frame = NDArray[np.uint8]

# Number of actions of a recorded episode that are drawn as if they were a chunk.
RECORDED_CHUNK = 8
# A log's measured positions count as those of a recording within this distance, in meters.
SAME_METERS = 1e-3


@dataclass(frozen=True)
class Playback:
    """The playback of N steps of one arm.

    Attributes:
        name: name of the log or episode, and of the arm where there are several.
        length: N.
        positions: (N, 3) measured, meters; None if the layout has no position.
        chunks: (N, T, 3) positions commanded from each step on; None likewise.
        chunk_grippers: (N, T) gripper commands of the chunk, 1 = open; None without a 0..1 gripper.
        measured: (N,) measured gripper before the command, or None.
        recorded: (N,) gripper command in the recording, or None.
        recorded_positions: (N, 3) positions commanded in the recording, or None.
        seconds: (N,) time since the first step, or None.
        frames: returns the images of a step by camera, without those that are missing or do not decode.
        predicted: whether the commands are a policy's, not a recording's.
    """

    name: str
    length: int
    positions: FloatArray | None
    chunks: FloatArray | None
    chunk_grippers: FloatArray | None
    measured: FloatArray | None
    recorded: FloatArray | None
    recorded_positions: FloatArray | None
    seconds: FloatArray | None
    frames: Callable[[int], dict[str, Frame]]
    predicted: bool

    def __len__(self) -> int:
        return self.length

    @property
    def commands(self) -> FloatArray | None:
        """(N,) the next gripper command at each step."""
        return None if self.chunk_grippers is None else self.chunk_grippers[:, 0]


def playbacks_of_log(log: RunLog, *datasets: ReplayBuffer) -> list[Playback]:
    """Returns a playback of each of a log's arms, with the recording from the first dataset that holds it.

    Empty if the meaning of the log's numbers is unknown.
    """
    layout, state = log.action_layout, log.state_layout
    if not log.steps or layout is None:
        return []
    scales = log.gripper_scales() if layout.has_gripper else None
    is_internal = scales is not None and scales.command.is_internal
    grippers = {gripper.arm: gripper for gripper in log.grippers} if is_internal else {}
    positions = {} if state is None else _positions(state, log.states)
    commanded, recording = _positions(layout, log.actions), _recording(log, datasets)
    seconds = None if log.step_period is None else (log.numbers - log.numbers[0]) / log.stride * log.step_period
    result = []
    for arm in layout.labels("position") or layout.labels("gripper"):
        gripper = grippers.get(arm)
        recorded = None if recording is None or gripper is None else gripper_column(recording[0], ACTION_KEY, _of(arm))
        way = None if recording is None else _recorded_positions(recording[0]).get(arm)
        result.append(
            Playback(
                name=_name(log.path.stem.removeprefix("inference_log_"), arm),
                length=len(log.steps),
                positions=positions.get(arm),
                chunks=commanded.get(arm),
                chunk_grippers=None if gripper is None else gripper.chunks,
                measured=None if gripper is None else gripper.measured,
                recorded=None if recording is None or recorded is None else recorded[recording[1]],
                recorded_positions=None if way is None or recording is None else way[recording[1]],
                seconds=seconds,
                frames=lambda step: _decoded(log.steps[step].frames, f"{log.path}, step {step}"),
                predicted=True,
            )
        )
    return result


def _name(name: str, arm: str) -> str:
    return f"{name}, {arm}" if arm else name


def _of(arm: str) -> str:
    """The name of an arm's gripper."""
    return f"{arm}.{GRIPPER}" if arm else GRIPPER


def _positions(layout: ActionLayout, values: FloatArray) -> dict[str, FloatArray]:
    """Returns (..., 3) positions of each arm."""
    return dict(zip(layout.labels("position"), np.moveaxis(layout.positions(values), -2, 0), strict=True))


def _recorded_positions(dataset: ReplayBuffer, key: str = ACTION_KEY) -> dict[str, FloatArray]:
    """Returns (N, 3) positions of each arm at each step of a dataset, commanded or measured."""
    names = dataset.vector_names(key)
    layout = find_layout(names) if names else None
    return {} if layout is None else _positions(layout, dataset.read(key).astype(np.float64))


def _recording(log: RunLog, datasets: Sequence[ReplayBuffer]) -> tuple[ReplayBuffer, NDArray[np.int64]] | None:
    """Returns the dataset that a log was made on, and its steps (N,) there."""
    candidates = ((dataset, recorded_steps(log, dataset)) for dataset in datasets)
    return next(((dataset, steps) for dataset, steps in candidates if steps is not None), None)


def recorded_steps(log: RunLog, dataset: ReplayBuffer) -> NDArray[np.int64] | None:
    """Returns (N,) the steps of the dataset that a log was made on; None if it was made on another dataset."""
    episode, layout = log.meta.get("episode"), log.state_layout
    if type(episode) is not int or not 0 <= episode < dataset.n_episodes or layout is None:
        return None
    steps, numbers = _steps(dataset, episode), log.numbers  # counted from the episode's first step
    if not len(numbers) or numbers[0] < 0 or numbers[-1] >= len(steps):
        return None
    steps = steps[numbers]
    columns = [column for arm in layout.arms for column in arm.position] or list(layout.joint_columns)
    measured = [_measured(dataset, layout.names[column]) for column in columns]
    known = [column[steps] for column in measured if column is not None]
    if not known or len(known) < len(columns):
        return None
    return steps if np.abs(np.stack(known, axis=1) - log.states[:, columns]).max() < SAME_METERS else None


def _measured(dataset: ReplayBuffer, name: str) -> FloatArray | None:
    """Returns (N,) the first measured number of that name, looking in the usual arrays first."""
    keys = (POSE_KEY, *(key for key in dataset.keys if key not in (POSE_KEY, ACTION_KEY)))
    columns = (dataset.stored_column(key, name) for key in keys)
    return next((column.astype(np.float64) for column in columns if column is not None), None)


def gripper_column(dataset: ReplayBuffer, key: str, name: str = GRIPPER) -> FloatArray | None:
    """Returns (N,) commanded or measured gripper of a dataset, 1 = open; None if absent or its scale is unknown."""
    column, scales = dataset.stored_column(key, name), dataset.scales_by_gripper.get(name)
    if column is None or scales is None:
        return None
    scale = scales.command if key == ACTION_KEY else scales.measured
    return None if scale is None or scale.scale is None else scale.scale.to_internal(column)


def playbacks_of_episode(
    dataset: ReplayBuffer, episode: int, cameras: Mapping[str, ConvertedCamera] | None = None
) -> list[Playback]:
    """Returns a playback of each arm of a recorded episode; its chunks are the recorded commands from each step on.

    Args:
        dataset: the dataset that holds it.
        episode: its number.
        cameras: the cameras, which know the lost frames; None if none are lost.
    """
    steps, layout = _steps(dataset, episode), find_layout(dataset.names(ACTION_KEY))
    if layout is None:
        return []
    commanded, others = _recorded_positions(dataset), [key for key in dataset.keys if key != ACTION_KEY]
    usual_first = sorted(others, key=lambda key: key != POSE_KEY)
    measured = {arm: way for key in reversed(usual_first) for arm, way in _recorded_positions(dataset, key).items()}
    window = np.minimum(np.arange(len(steps))[:, None] + np.arange(RECORDED_CHUNK), len(steps) - 1)
    times = dataset.read(TIMESTAMP_KEY).astype(np.float64)[steps] if TIMESTAMP_KEY in dataset else None
    result = []
    for arm in layout.labels("position") or layout.labels("gripper"):
        command = gripper_column(dataset, ACTION_KEY, _of(arm))
        keys = (GRIPPER_KEY, *(key for key in others if arm))
        seen = next((column for key in keys if (column := gripper_column(dataset, key, _of(arm))) is not None), None)
        way = measured.get(arm, commanded.get(arm))
        result.append(
            Playback(
                name=_name(f"episode {episode}", arm),
                length=len(steps),
                positions=None if way is None else way[steps],
                chunks=None if arm not in commanded else commanded[arm][steps][window],
                chunk_grippers=None if command is None else command[steps][window],
                measured=None if seen is None else seen[steps],
                recorded=None,
                recorded_positions=None,
                seconds=None if times is None else times - times[0],
                frames=_reader(cameras or _cameras(dataset), steps),
                predicted=False,
            )
        )
    return result


def dataset_of_log(log: RunLog) -> Path | None:
    """Returns the dataset that a log names as its source, if it exists."""
    named: Any = log.meta.get("dataset")
    return Path(named) if isinstance(named, str) and dataset_exists(named) else None


def _steps(dataset: ReplayBuffer, episode: int) -> NDArray[np.int64]:
    steps_of_episode = episode_slices(dataset.episode_ends)[episode]
    return np.arange(steps_of_episode.start, steps_of_episode.stop)


def _cameras(dataset: ReplayBuffer) -> dict[str, ConvertedCamera]:
    return {key: ConvertedCamera(FrameFiles(dataset[key])) for key in dataset.cameras}


def _reader(cameras: Mapping[str, ConvertedCamera], steps: NDArray[np.int64]) -> Callable[[int], dict[str, Frame]]:
    def read(step: int) -> dict[str, Frame]:
        frames = {name: camera.whole(int(steps[step])) for name, camera in cameras.items()}
        return {name: frame for name, frame in frames.items() if frame is not None}

    return read


def _decoded(encoded: Mapping[str, bytes], where: str) -> dict[str, Frame]:
    result = {}
    for camera, data in encoded.items():
        with suppress(SpecError):  # it does not decode
            result[camera] = decode_jpeg(data, f"{where}, camera {camera}")
    return result
