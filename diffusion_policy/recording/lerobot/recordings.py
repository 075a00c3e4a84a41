"""A LeRobot dataset as recordings: its episodes, opened one by one and checked as those of every other format."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.replay_buffer import ACTION_KEY
from diffusion_policy.places import reaching
from diffusion_policy.pose_check import order_fault, pose_faults
from diffusion_policy.recording.contract import ArrayNames, Told, true_runs
from diffusion_policy.recording.errors import RecordingError
from diffusion_policy.recording.lerobot.episodes import Episode, read_episodes, read_tasks
from diffusion_policy.recording.lerobot.frames import ColumnPictures, VideoFrames
from diffusion_policy.recording.lerobot.info import read_info
from diffusion_policy.recording.lerobot.meaning import SUCCESS, features_of, meaning_of
from diffusion_policy.recording.lerobot.tables import COPY_AGAIN, read_numbers
from diffusion_policy.recording.mapped import MappedArrays, values_of
from diffusion_policy.recording.mapping import RecordingMapping
from diffusion_policy.recording.scales import Gripper, GripperScales, declared_scales, scales_of
from diffusion_policy.spec import INTERVENTION, ActionLayout, SpecError, episode_number
from diffusion_policy.storage import sha256
from diffusion_policy.timestamps import TimestampUnit, timestamp_fault

_INDICES = ("timestamp", "frame_index", "episode_index", "task_index")
# Steps of a video that are decoded in one go: the frames from its key frame to the first are decoded in vain.
_STRETCH = 2048
# Seconds by which recorded times may differ from those of an even rate: float32 rounds them.
_ROUNDED = 1e-3

Rows = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class LeRobotRecording:
    """One episode; see `recording.contract.Recording` for what each attribute is."""

    path: Path
    number: int
    names: ArrayNames
    states: Mapping[str, NDArray[np.float32]]
    action: NDArray[np.float32]
    timestamp: NDArray[np.float64]
    told: Told
    files: tuple[Path, ...]
    numbers_sha256: str
    notes: tuple[str, ...] = ()
    shown: Mapping[str, VideoFrames | ColumnPictures] = field(default_factory=dict, repr=False)

    @property
    def n_steps(self) -> int:
        """N."""
        return len(self.timestamp)

    @property
    def image_index(self) -> NDArray[np.int64]:
        """(N,) each step shows its own frame."""
        return np.arange(self.n_steps, dtype=np.int64)

    @property
    def frame_numbers(self) -> Mapping[str, Collection[int]]:
        """Per camera, a frame for each step."""
        return {camera: range(self.n_steps) for camera in self.shown}

    def frames(self, steps: Sequence[int], camera: str, at_most: int) -> Iterator[VideoFrames | ColumnPictures]:
        """Stretches of the video, or so many pictures a piece."""
        frames = self.shown[camera]
        size = at_most if isinstance(frames, ColumnPictures) or at_most == 1 else _STRETCH
        return (frames.at(steps[start : start + size]) for start in range(0, len(steps), size))

    def content_sha256(self) -> str:
        """Of its numbers and tasks, and of the beginning of what each camera shows."""
        shown = "".join(f"{camera} {frames.sample_sha256()}\n" for camera, frames in sorted(self.shown.items()))
        return sha256(self.numbers_sha256.encode(), shown.encode()).hex()

    def fingerprint(self) -> str:
        """Of its numbers, and of the files that it lies in."""
        lines = [self.numbers_sha256]
        with reaching(self.path):
            for file in self.files:
                status = file.stat()
                lines.append(f"{file.name} {status.st_size} {status.st_mtime_ns}\n")
        return sha256("".join(lines).encode()).hex()


class LeRobotRecordings:
    """The episodes of a LeRobot dataset.

    Args:
        root: its folder, or its URL.
        mapping: what its columns are; None: read from the names of its features.
        gripper_scale: of all its grippers, as ``--gripper-scale`` names it; None: of the mapping, else found in the
            numbers.
        timestamps: what its time stamps are in where that is not seconds.

    Raises:
        RecordingError: a table of meta/ is not as it must be.
        MappingError: the mapping does not fit, or is missing; then the one to fill in is printed.
    """

    def __init__(
        self,
        root: Path,
        mapping: RecordingMapping | None = None,
        gripper_scale: str | None = None,
        timestamps: TimestampUnit | None = None,
    ) -> None:
        self.info = read_info(root)
        self.meaning = meaning_of(self.info, mapping)
        self.arrays = MappedArrays.of(self.meaning.mapping, features_of(self.info), str(self.info.file))
        self._declared = declared_scales(self.arrays, gripper_scale)
        self._timestamps = timestamps
        self._episodes = {root / episode.name: episode for episode in read_episodes(self.info)}
        self._tasks = read_tasks(self.info)
        self._numbers = sorted(self.meaning.mapping.features)
        self._read: tuple[Path, Rows] | None = None

    @property
    def account(self) -> Mapping[str, Any]:
        """Format, rate, and what became of each feature, as plain JSON."""
        return {
            "format": f"LeRobot {self.info.version}",
            "control_hz": self.info.fps,
            "numbers": self._numbers,
            "cameras": dict(self.meaning.cameras),
            "gripper_scales": self.scales.label,
            "left_out": dict(self.meaning.left_out),
        }

    def find(self) -> list[Path]:
        """Names of the episodes below the dataset's folder, in order."""
        return list(self._episodes)

    def open(self, path: Path) -> LeRobotRecording:
        """Open and check an episode.

        Raises:
            RecordingError: its rows are not as its tables say, or its numbers are none to train on.
        """
        episode = self._episodes[path]
        first, rows = self._rows_of(episode)
        self._check_recorded(rows, path)
        states = {key: values_of(columns, rows, self.scales.measured) for key, columns in self.arrays.states.items()}
        action = values_of(self.arrays.action, rows, self.scales.commanded)
        self._check(states, action, path)
        texts = self._texts(rows, episode)
        videos = [episode.videos[key].file for key in self.meaning.cameras.values() if key in episode.videos]
        return LeRobotRecording(
            path=path,
            number=episode_number(path.name) or 0,
            names=self.arrays.names,
            states=states,
            action=action,
            timestamp=self._times(rows, path),
            told=_told(rows, texts),
            files=(episode.data_file, *videos),
            numbers_sha256=_sha256({name: rows[name] for name in self._numbers}, texts),
            shown={name: self._shown(key, episode, rows, first) for name, key in self.meaning.cameras.items()},
        )

    @cached_property
    def scales(self) -> GripperScales:
        """The scale of each gripper.

        Raises:
            RecordingError: one is not known; says which flag settles it.
        """
        unsaid = [name for name, declared in self._declared.items() if declared is None]
        recorded = self._all_grippers() if unsaid else {}
        starts = np.concatenate([[0], np.cumsum([one.length for one in self._episodes.values()])[:-1]]).astype(np.int64)
        commanded, measured = {}, {}
        for name, command, measurement in self.arrays.gripper_columns():
            declared = self._declared[name]
            if declared is None:
                found = scales_of(recorded[name], None, starts)
                if found.unknown:
                    raise RecordingError(
                        f"{self.info.file}: {name} is {found.command.span}: "
                        f"{found.command.reason}; say what it is: {found.advice()}, or scale in the mapping"
                    )
                scales = (found.command.scale, None if found.measured is None else found.measured.scale)
            else:
                scales = (declared.command, declared.measured or declared.command)
            if command is not None and scales[0] is not None:
                commanded[name] = scales[0]
            if measurement is not None:
                measured[name] = scales[1] or commanded[name]
        return GripperScales(commanded, measured)

    def _all_grippers(self) -> dict[str, Gripper]:
        """The recorded numbers of each gripper in all episodes."""
        columns = self.arrays.gripper_columns()
        features = {column.part.feature for _, *both in columns for column in both if column is not None}
        widths = {name: self._width(name) for name in sorted(features)}
        files = dict.fromkeys(episode.data_file for episode in self._episodes.values())
        tables = [read_numbers(file, widths) for file in files]
        joined = {name: np.concatenate([_as_rows(table[name]) for table in tables]) for name in widths}
        return {name: _gripper(joined, command, measured) for name, command, measured in columns}

    def _rows_of(self, episode: Episode) -> tuple[int, Rows]:
        """The first row of an episode in its file, and its rows."""
        if self._read is None or self._read[0] != episode.data_file:
            names = [*self._numbers, *self.meaning.flags]
            widths = {name: self._width(name) for name in names} | dict.fromkeys(_INDICES, 0)
            self._read = (episode.data_file, read_numbers(episode.data_file, widths))
        file, table = self._read
        at = np.flatnonzero(table["episode_index"] == episode.index)
        if len(at) != episode.length or (len(at) and at[-1] - at[0] + 1 != len(at)):
            raise RecordingError(
                f"{file}: column 'episode_index' has {len(at)} rows of episode {episode.index}; expected "
                f"{episode.length} in one run, as the tables of episodes say: {COPY_AGAIN}"
            )
        rows = {name: values[at[0] : at[-1] + 1] for name, values in table.items()}
        if not np.array_equal(rows["frame_index"], np.arange(episode.length)):
            raise RecordingError(
                f"{file}: column 'frame_index' of episode {episode.index} does not count from 0 to "
                f"{episode.length - 1}: its rows are not in order, or some are lost: {COPY_AGAIN}"
            )
        named = {name: _as_rows(values) if name in self._numbers else values for name, values in rows.items()}
        return int(at[0]), named

    def _width(self, name: str) -> int:
        """Numbers of a row as a table is asked for them: 0 of what is stored as plain numbers."""
        feature = self.info.features[name]
        return feature.width if feature.width > 1 else 0

    def _check_recorded(self, rows: Rows, path: Path) -> None:
        """Numbers that are none, and grippers beyond their declared scale, before anything is converted."""
        for name in [*self._numbers, "timestamp"]:
            if rows[name].dtype.kind == "f" and not np.isfinite(rows[name]).all():
                step = int(np.argwhere(~np.isfinite(rows[name]))[0, 0])
                raise RecordingError(f"{path}: {name} holds NaN or infinity, first at step {step}: cut these steps")
        for name, command, measured in self.arrays.gripper_columns():
            if self._declared[name] is not None:
                try:
                    scales_of(_gripper(rows, command, measured), self._declared[name])
                except SpecError as error:
                    raise RecordingError(f"{path}: {name}: {error}") from error

    def _check(self, states: Mapping[str, NDArray[np.float32]], action: NDArray[np.float32], path: Path) -> None:
        """Poses that are none."""
        names = self.arrays.names
        for key, values in {**states, ACTION_KEY: action}.items():
            faults = pose_faults(values, names.action if key == ACTION_KEY else names.states[key], f"{path}: {key}")
            if faults:
                raise RecordingError(str(faults[0]))
        ours = names.action_layout
        for key, values in states.items():
            theirs = ActionLayout.of(names.states[key])
            for i, arm in enumerate(theirs.labels("rotation")):
                if arm not in ours.labels("rotation"):
                    continue
                commanded = ours.rotations(action)[:, ours.labels("rotation").index(arm)]
                fault = order_fault(commanded, theirs.rotations(values)[:, i], f"{arm or 'action'}")
                if fault is not None:
                    raise RecordingError(f"{path}: {fault}")

    def _times(self, rows: Rows, path: Path) -> NDArray[np.float64]:
        """(N,) seconds: those of the dataset's rate where the recorded ones are these, rounded."""
        if self._timestamps is not None:
            return self._timestamps.seconds(rows["timestamp"])
        recorded = rows["timestamp"].astype(np.float64)
        even = np.arange(len(recorded)) / self.info.fps
        if np.abs(recorded - even).max() <= _ROUNDED:
            return even
        fault = timestamp_fault(recorded, f"{path}: timestamp")
        if fault is not None:
            raise RecordingError(str(fault))
        return recorded

    def _texts(self, rows: Rows, episode: Episode) -> tuple[str, ...]:
        """Tasks in the order in which they are done."""
        numbers = dict.fromkeys(int(number) for number in rows["task_index"])
        unknown = [number for number in numbers if number not in self._tasks]
        if unknown:
            raise RecordingError(
                f"{episode.data_file}: column 'task_index' is {unknown[0]} in episode {episode.index}, which the table "
                f"of tasks in {self.info.root / 'meta'} does not have: {COPY_AGAIN}"
            )
        return tuple(self._tasks[number] for number in numbers)

    def _shown(self, key: str, episode: Episode, rows: Rows, first: int) -> VideoFrames | ColumnPictures:
        if self.info.features[key].dtype == "image":
            return ColumnPictures(episode.data_file, key, tuple(range(first, first + episode.length)))
        stretch = episode.videos[key]
        times = tuple(stretch.start + rows["timestamp"].astype(np.float64))
        return VideoFrames(stretch.file, times, tuple(range(episode.length)), 1 / self.info.fps)


def _as_rows(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.ndim == 2 else values[:, None]


def _gripper(rows: Rows, command: Any, measured: Any) -> Gripper:
    """The numbers of a gripper by its columns."""
    found = [
        None if column is None else rows[column.part.feature][:, column.at[0]].astype(np.float64)
        for column in (command, measured)
    ]
    return found[0], found[1]


def _told(rows: Rows, texts: tuple[str, ...]) -> Told:
    success = [bool(rows[name].any()) for name in SUCCESS if name in rows]
    driven = true_runs(rows[INTERVENTION].reshape(-1).astype(bool)) if INTERVENTION in rows else None
    return Told(texts, any(success) if success else None, None if driven is None else tuple(driven))


def _sha256(rows: Rows, texts: Sequence[str]) -> str:
    parts: list[bytes] = []
    for name, values in sorted(rows.items()):
        parts += [f"{name} {values.dtype.str} {values.shape}\n".encode(), np.ascontiguousarray(values).tobytes()]
    return sha256(*parts, "\0".join(texts).encode()).hex()
