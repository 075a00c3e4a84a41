"""A foreign zarr dataset as recordings: its episodes are opened one by one and checked like every other format's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.frame_files import chunk_file
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.paths import is_remote
from diffusion_policy.recording.contract import EpisodeMetadata
from diffusion_policy.recording.errors import RecordingError
from diffusion_policy.recording.mapped import MappedArrays
from diffusion_policy.recording.mapped_recording import (
    CameraFrames,
    MappedRecording,
    Rows,
    check_recorded,
    mapped_numbers,
    no_command,
    numbers_sha256,
)
from diffusion_policy.recording.mapping import RecordingMapping
from diffusion_policy.recording.scales import (
    Gripper,
    GripperScales,
    declared_scales,
    gripper_numbers,
    settled_scales,
)
from diffusion_policy.recording.zarr_sets.frames import ArrayFrames, Pixels, pixels_of
from diffusion_policy.recording.zarr_sets.meaning import TIMES, meaning_of, vectors_of
from diffusion_policy.recording.zarr_sets.videos import cameras_of, video_frames
from diffusion_policy.recording.zarr_sets.zarr_set import ZarrSet
from diffusion_policy.timestamps import FLAG, TimestampUnit, timestamp_fault

# Number of episodes whose first frame is inspected to find how colors are stored.
_LOOKED_AT = 32


class ZarrRecordings:
    """The episodes of a foreign zarr dataset.

    Args:
        found: its location.
        mapping: mapping of its arrays; if missing and needed, it is printed to fill in.
        gripper_scale: scale of all its grippers, as in ``--gripper-scale``; None to use the mapping's, or find it in
            the numbers.
        timestamps: unit of its time stamps, if not seconds.

    Raises:
        DatasetError: it is not a dataset, or one of its files is missing or damaged.
        RecordingError: it has no camera, or no episode.
        MappingError: the mapping does not fit, or is missing; if missing, the one to fill in is printed.
    """

    def __init__(
        self,
        opened: ZarrSet,
        mapping: RecordingMapping | None = None,
        gripper_scale: str | None = None,
        timestamps: TimestampUnit | None = None,
    ) -> None:
        if is_remote(opened.root):
            raise RecordingError(
                f"{opened.root}: foreign zarr datasets can only be read from disk: copy it to this machine"
            )
        self.zarr_set = opened
        self.buffer = ReplayBuffer.open(opened.store)
        if not self.buffer.n_episodes:
            raise RecordingError(f"{opened.root}: meta/episode_ends is empty: it holds no episode")
        self._videos = [] if opened.videos is None else cameras_of(opened.videos)
        self.meaning = meaning_of(self.buffer, mapping, self._videos)
        self.arrays = MappedArrays.of(self.meaning.mapping, vectors_of(self.buffer), self.buffer.where)
        self._declared = declared_scales(self.arrays, gripper_scale)
        self._timestamps = timestamps
        self._starts = np.concatenate([[0], self.buffer.episode_ends[:-1]]).astype(int).tolist()
        self._changed = opened.store.stat().st_mtime_ns

    @property
    def account(self) -> Mapping[str, Any]:
        """The format, and what became of each array, as plain JSON."""
        mapping = self.meaning.mapping
        return {
            "format": f"zarr {self.buffer.root.metadata.zarr_format}",
            "numbers": sorted(mapping.features),
            "cameras": dict(self.meaning.cameras),
            "colors": {name: f"0..{pixels.brightest}" for name, pixels in self._pixels.items()},
            "command": f"{mapping.lead} steps ahead" if mapping.lead else "as recorded",
            "gripper_scales": self.scales.label,
            "left_out": dict(self.meaning.left_out),
        }

    def find(self) -> list[Path]:
        """Returns the names of the episodes below the dataset, in order."""
        return [self.zarr_set.root / f"episode_{number:06d}" for number in range(self.buffer.n_episodes)]

    def open(self, path: Path) -> MappedRecording:
        """Opens and checks an episode.

        Raises:
            RecordingError: its numbers cannot be trained on, or a video does not exist.
        """
        number = int(path.name.rpartition("_")[2])
        start, end = self._starts[number], int(self.buffer.episode_ends[number])
        rows = {name: values[start:end] for name, values in self._rows.items()}
        times = self._times(start, end, path)
        lead = self.meaning.mapping.lead
        check_recorded({**rows, "timestamp": times}, self.arrays, self._declared, path)
        states, action = mapped_numbers(rows, self.arrays, self.scales, path, lead)
        camera_frames, notes = self._frames_of(number, start, end, times)
        if lead:
            notes.append(no_command(lead, end - start))
        return MappedRecording(
            path=path,
            number=number,
            n_recorded=end - start,
            names=self.arrays.names,
            states=states,
            action=action,
            timestamp=times[: end - start - lead],
            metadata=EpisodeMetadata(),
            image_index=np.arange(end - start - lead, dtype=np.int64),
            frame_numbers=dict.fromkeys(camera_frames, range(end - start)),
            files=self._files(camera_frames),
            numbers_sha256=numbers_sha256({**rows, "timestamp": times}),
            notes=tuple(notes),
            camera_frames=camera_frames,
        )

    @cached_property
    def scales(self) -> GripperScales:
        """The scale of each gripper.

        Raises:
            RecordingError: one is unknown; the message names the flag that settles it.
        """
        lengths = np.diff(self.buffer.episode_ends, prepend=0).tolist()
        return settled_scales(self.arrays, self._declared, self._all_grippers, lengths, self.buffer.where)

    def _all_grippers(self) -> dict[str, Gripper]:
        return {
            name: gripper_numbers(self._rows, command, measured)
            for name, command, measured in self.arrays.gripper_columns()
        }

    @cached_property
    def _rows(self) -> Rows:
        """(N, width) rows of each feature that is read, over all episodes."""
        n = self.buffer.n_steps
        return {name: self.buffer.read(name).reshape(n, -1) for name in sorted(self.meaning.mapping.features)}

    @cached_property
    def _stamps(self) -> NDArray[Any] | None:
        """(N,) time stamps of all episodes as recorded; None if there are none."""
        key = next((key for key in TIMES if key in self.buffer), None)
        if key is None:
            return None
        stamps = self.buffer.read(key)
        if stamps.size != self.buffer.n_steps or stamps.dtype.kind not in "fiu":
            raise RecordingError(
                f"{self.buffer.where}: data/{key} is {stamps.dtype} {stamps.shape}; expected (N,) numbers"
            )
        return stamps.reshape(-1)

    def _times(self, start: int, end: int, path: Path) -> NDArray[np.float64]:
        """(N,) seconds."""
        unit, hz = self._timestamps, self.meaning.mapping.hz
        if self._stamps is None:
            rate = hz if unit is None else unit.hz
            if rate is None:
                raise RecordingError(
                    f"{self.zarr_set.root}: has no time stamps (data/{TIMES[0]}); give the number of steps recorded "
                    f"per second: {FLAG} rate:10, or hz: 10 in the mapping"
                )
            return np.arange(end - start) / rate
        stamps = self._stamps[start:end]
        if unit is not None:
            return unit.seconds(stamps)
        fault = timestamp_fault(stamps, f"{path}: timestamp")
        if fault is not None:
            raise RecordingError(str(fault))
        return stamps.astype(np.float64)

    @cached_property
    def _pixels(self) -> dict[str, Pixels]:
        """How each camera's array holds colors."""
        some = sorted({self._starts[i] for i in np.linspace(0, len(self._starts) - 1, _LOOKED_AT).astype(int)})
        return {
            name: pixels_of(self.buffer[key], some, f"{self.buffer.where}: data/{key}")
            for name, key in self.meaning.cameras.items()
            if key not in self._videos
        }

    def _frames_of(
        self, number: int, start: int, end: int, times: NDArray[np.float64]
    ) -> tuple[dict[str, CameraFrames], list[str]]:
        camera_frames: dict[str, CameraFrames] = {}
        notes: list[str] = []
        for name, key in self.meaning.cameras.items():
            if key in self._videos:
                assert self.zarr_set.videos is not None
                camera_frames[name], note = video_frames(self.zarr_set.videos, number, key, times)
                notes += [note] if note else []
                continue
            array = self.buffer[key]
            camera_frames[name] = ArrayFrames(
                self.zarr_set.root, self.zarr_set.store, self._changed, key,
                tuple(range(start, end)), self._pixels[name],
                (array.shards or array.chunks)[0],
            )  # fmt: skip
        return camera_frames, notes

    def _files(self, camera_frames: Mapping[str, CameraFrames]) -> tuple[Path, ...]:
        """Returns the files whose change means that an episode has changed."""
        files: dict[Path, None] = {}
        for frames in camera_frames.values():
            if not isinstance(frames, ArrayFrames):
                files[frames.file] = None  # type: ignore[attr-defined]
            elif self.zarr_set.store.is_file():
                files[self.zarr_set.store] = None
            else:
                array = self.buffer[frames.key]
                chunks = dict.fromkeys(row // frames.per_chunk for row in frames.rows)
                files |= dict.fromkeys(chunk_file(array, chunk) for chunk in chunks)
        return tuple(files)
