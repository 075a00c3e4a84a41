"""A LeRobot dataset as recordings: its episodes are opened one by one and checked like those of every other format."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.recording.contract import EpisodeMetadata, true_runs
from diffusion_policy.recording.errors import RecordingError
from diffusion_policy.recording.lerobot.episodes import Episode, read_episodes, read_tasks
from diffusion_policy.recording.lerobot.frames import ColumnPictures, VideoFrames
from diffusion_policy.recording.lerobot.info import read_info
from diffusion_policy.recording.lerobot.meaning import SUCCESS, features_of, meaning_of
from diffusion_policy.recording.lerobot.tables import COPY_AGAIN, read_numbers
from diffusion_policy.recording.mapped import MappedArrays
from diffusion_policy.recording.mapped_recording import (
    MappedRecording,
    Rows,
    check_recorded,
    mapped_numbers,
    numbers_sha256,
)
from diffusion_policy.recording.mapping import MappingError, RecordingMapping
from diffusion_policy.recording.scales import Gripper, GripperScales, declared_scales, gripper_numbers, settled_scales
from diffusion_policy.spec import INTERVENTION, episode_number
from diffusion_policy.timestamps import TimestampUnit, timestamp_fault

_INDICES = ("timestamp", "frame_index", "episode_index", "task_index")
# Seconds by which recorded times may differ from an even rate, since float32 rounds them.
_ROUNDED = 1e-3


class LeRobotRecordings:
    """The episodes of a LeRobot dataset.

    Args:
        root: the dataset's folder or URL.
        mapping: mapping of its columns; None to derive it from the names of its features.
        gripper_scale: scale of all its grippers, as in ``--gripper-scale``; None to use the mapping's, or find it in
            the numbers.
        timestamps: unit of its time stamps, if not seconds.

    Raises:
        RecordingError: a table in meta/ is invalid.
        MappingError: the mapping does not fit, or is missing; if missing, the one to fill in is printed.
    """

    def __init__(
        self,
        root: Path,
        mapping: RecordingMapping | None = None,
        gripper_scale: str | None = None,
        timestamps: TimestampUnit | None = None,
    ) -> None:
        self.info = read_info(root)
        if mapping is not None and (mapping.lead or mapping.hz):
            raise MappingError(
                f"{self.info.file}: the mapping has lead or hz, but LeRobot datasets have commands and a rate: "
                "omit both"
            )
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
        """The format, rate, and what became of each feature, as plain JSON."""
        return {
            "format": f"LeRobot {self.info.version}",
            "control_hz": self.info.fps,
            "numbers": self._numbers,
            "cameras": dict(self.meaning.cameras),
            "gripper_scales": self.scales.label,
            "left_out": dict(self.meaning.left_out),
        }

    def find(self) -> list[Path]:
        """Returns the names of the episodes below the dataset's folder, in order."""
        return list(self._episodes)

    def open(self, path: Path) -> MappedRecording:
        """Opens and checks an episode.

        Raises:
            RecordingError: its rows contradict its tables, or its numbers cannot be trained on.
        """
        episode = self._episodes[path]
        first, rows = self._rows_of(episode)
        read = {name: rows[name] for name in (*self._numbers, "timestamp")}
        check_recorded(read, self.arrays, self._declared, path)
        states, action = mapped_numbers({name: rows[name] for name in self._numbers}, self.arrays, self.scales, path)
        texts = self._texts(rows, episode)
        videos = [episode.videos[key].file for key in self.meaning.cameras.values() if key in episode.videos]
        return MappedRecording(
            path=path,
            number=episode_number(path.name) or 0,
            n_recorded=episode.length,
            names=self.arrays.names,
            states=states,
            action=action,
            timestamp=self._times(rows, path),
            metadata=_metadata(rows, texts),
            image_index=np.arange(episode.length, dtype=np.int64),
            frame_numbers=dict.fromkeys(self.meaning.cameras, range(episode.length)),
            files=(episode.data_file, *videos),
            numbers_sha256=numbers_sha256({name: rows[name] for name in self._numbers}, texts),
            camera_frames={
                name: self._frames_of(key, episode, rows, first) for name, key in self.meaning.cameras.items()
            },
        )

    @cached_property
    def scales(self) -> GripperScales:
        """The scale of each gripper.

        Raises:
            RecordingError: one is unknown; the message names the flag that settles it.
        """
        lengths = [one.length for one in self._episodes.values()]
        return settled_scales(self.arrays, self._declared, self._all_grippers, lengths, str(self.info.file))

    def _all_grippers(self) -> dict[str, Gripper]:
        """Returns the recorded numbers of each gripper in all episodes."""
        columns = self.arrays.gripper_columns()
        features = {column.part.feature for _, *both in columns for column in both if column is not None}
        widths = {name: self._width(name) for name in sorted(features)}
        files = dict.fromkeys(episode.data_file for episode in self._episodes.values())
        tables = [read_numbers(file, widths) for file in files]
        joined = {name: np.concatenate([_as_rows(table[name]) for table in tables]) for name in widths}
        return {name: gripper_numbers(joined, command, measured) for name, command, measured in columns}

    def _rows_of(self, episode: Episode) -> tuple[int, Rows]:
        """Returns the index of an episode's first row in its file, and its rows."""
        if self._read is None or self._read[0] != episode.data_file:
            names = [*self._numbers, *self.meaning.flags]
            widths = {name: self._width(name) for name in names} | dict.fromkeys(_INDICES, 0)
            self._read = (episode.data_file, read_numbers(episode.data_file, widths))
        file, table = self._read
        at = np.flatnonzero(table["episode_index"] == episode.index)
        if len(at) != episode.length or (len(at) and at[-1] - at[0] + 1 != len(at)):
            raise RecordingError(
                f"{file}: column 'episode_index' has {len(at)} rows of episode {episode.index}; expected "
                f"{episode.length} in one run, as listed in the tables of episodes: {COPY_AGAIN}"
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
        """Returns the numbers per row to request from a table: 0 for what is stored as plain numbers."""
        feature = self.info.features[name]
        return feature.width if feature.width > 1 else 0

    def _times(self, rows: Rows, path: Path) -> NDArray[np.float64]:
        """Returns (N,) seconds: those of the dataset's rate if the recorded ones are these, rounded."""
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
        """Returns the tasks in the order in which they are done."""
        numbers = dict.fromkeys(int(number) for number in rows["task_index"])
        unknown = [number for number in numbers if number not in self._tasks]
        if unknown:
            raise RecordingError(
                f"{episode.data_file}: column 'task_index' is {unknown[0]} in episode {episode.index}, not in the "
                f"table of tasks in {self.info.root / 'meta'}: {COPY_AGAIN}"
            )
        return tuple(self._tasks[number] for number in numbers)

    def _frames_of(self, key: str, episode: Episode, rows: Rows, first: int) -> VideoFrames | ColumnPictures:
        if self.info.features[key].dtype == "image":
            return ColumnPictures(episode.data_file, key, tuple(range(first, first + episode.length)))
        stretch = episode.videos[key]
        times = tuple(stretch.start + rows["timestamp"].astype(np.float64))
        return VideoFrames(stretch.file, times, tuple(range(episode.length)), 1 / self.info.fps)


def _as_rows(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.ndim == 2 else values[:, None]


def _metadata(rows: Rows, texts: tuple[str, ...]) -> EpisodeMetadata:
    success = [bool(rows[name].any()) for name in SUCCESS if name in rows]
    driven = true_runs(rows[INTERVENTION].reshape(-1).astype(bool)) if INTERVENTION in rows else None
    return EpisodeMetadata(texts, any(success) if success else None, None if driven is None else tuple(driven))
