"""Folders in CogACT's form whose data.pkl holds other arrays, or other numbers, as defined by a mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy.paths import read_bytes
from diffusion_policy.recording.cogact import PictureFiles
from diffusion_policy.recording.contract import EpisodeMetadata
from diffusion_policy.recording.mapped import MappedArrays
from diffusion_policy.recording.mapped_recording import (
    MappedRecording,
    check_recorded,
    mapped_numbers,
    no_command,
    numbers_sha256,
)
from diffusion_policy.recording.mapping import MappingError, RecordingMapping
from diffusion_policy.recording.question import Vectors
from diffusion_policy.recording.scales import (
    Gripper,
    GripperScales,
    declared_scales,
    gripper_numbers,
    settled_scales,
)
from diffusion_policy.storage import sha256
from diffusion_policy.timestamps import TimestampUnit
from diffusion_policy.trajectory import NO_IMAGE, OtherLayout, find_trajectories, open_other_layout


@dataclass(frozen=True)
class FrameFiles:
    """Frames of one camera, in one file each.

    Attributes:
        files: by step; None if a step shows none.
    """

    files: tuple[Path | None, ...]

    def __len__(self) -> int:
        return len(self.files)

    def pictures(self) -> Iterator[Any]:
        """Yields the pictures of all steps that show one; see `recording.contract.Frames`."""
        return self._some(range(len(self.files))).pictures()

    def pieces(self, steps: Sequence[int], at_most: int) -> Iterator[PictureFiles]:
        """Yields `at_most` frames at a time."""
        return (self._some(steps[start : start + at_most]) for start in range(0, len(steps), at_most))

    def sample_sha256(self) -> str:
        """Returns the SHA-256 of the first frame's file."""
        return sha256(read_bytes(next(file for file in self.files if file is not None))).hex()

    def _some(self, steps: Sequence[int]) -> PictureFiles:
        return PictureFiles(tuple(file for step in steps if (file := self.files[step]) is not None))


class OtherLayoutRecordings:
    """The episodes in a folder.

    Args:
        folder: holds episode_0000/ and so on.
        mapping: the mapping of the arrays in their data.pkl.
        gripper_scale: scale of all their grippers, as in ``--gripper-scale``; None to use the mapping's, or find it in
            the numbers.
        timestamps: unit of their time stamps, if not seconds.

    Raises:
        MappingError: the mapping has a rate, or does not fit the first valid episode.
    """

    def __init__(
        self,
        folder: Path,
        mapping: RecordingMapping,
        gripper_scale: str | None = None,
        timestamps: TimestampUnit | None = None,
    ) -> None:
        if mapping.hz is not None or mapping.cameras is not None:
            raise MappingError(
                f"{folder}: the mapping has cameras or hz, which folders of episodes define themselves: omit them"
            )
        self.folder = folder
        self.mapping = mapping
        self._gripper_scale = gripper_scale
        self._timestamps = timestamps

    @property
    def account(self) -> Mapping[str, Any]:
        """The format, and what became of each array, as plain JSON."""
        used = self.mapping.features
        unread = "no entry of the mapping reads it"
        return {
            "format": "CogACT folders, other arrays",
            "numbers": sorted(used),
            "command": f"{self.mapping.lead} steps ahead" if self.mapping.lead else "as recorded",
            "gripper_scales": self.scales.label,
            "left_out": {name: unread for name in self._vectors if name not in used},
        }

    def find(self) -> list[Path]:
        """See `find_trajectories`."""
        return find_trajectories(self.folder)

    def open(self, path: Path) -> MappedRecording:
        """Opens and checks an episode.

        Raises:
            TrajectoryError: it is invalid.
            UnsafePickleError: its data.pkl asks for more than arrays.
            MappingError: the mapping does not fit it.
        """
        layout = open_other_layout(path, self._timestamps)
        arrays = MappedArrays.of(self.mapping, _vectors(layout), f"{path}/data.pkl")
        rows = {name: layout.numbers[name] for name in sorted(self.mapping.features)}
        check_recorded({**rows, "timestamp": layout.timestamp}, arrays, self._declared, path)
        lead = self.mapping.lead
        states, action = mapped_numbers(rows, arrays, self.scales, path, lead)
        n = len(action)
        camera_frames = {
            camera: FrameFiles(tuple(None if i == NO_IMAGE else files[int(i)] for i in layout.image_index[:n]))
            for camera, files in layout.frames.items()
        }
        frames = [file for files in layout.frames.values() for file in files.values()]
        left = no_command(lead, n + lead)
        return MappedRecording(
            path=path,
            number=layout.number,
            n_recorded=n + lead,
            names=arrays.names,
            states=states,
            action=action,
            timestamp=layout.timestamp[:n],
            metadata=EpisodeMetadata(),
            image_index=layout.image_index[:n],
            frame_numbers={camera: files.keys() for camera, files in layout.frames.items()},
            files=(path / "data.pkl", *frames),
            numbers_sha256=numbers_sha256({**rows, "timestamp": layout.timestamp}),
            notes=(*layout.notes, left) if lead else layout.notes,
            camera_frames=camera_frames,
        )

    @cached_property
    def _vectors(self) -> Vectors:
        """The arrays of the first episode."""
        return _vectors(open_other_layout(self.find()[0], self._timestamps))

    @cached_property
    def _arrays(self) -> MappedArrays:
        return MappedArrays.of(self.mapping, self._vectors, str(self.folder))

    @cached_property
    def _declared(self) -> Mapping[str, Any]:
        return declared_scales(self._arrays, self._gripper_scale)

    @cached_property
    def scales(self) -> GripperScales:
        """The scale of each gripper; unless declared, it is found by reading the numbers of all episodes.

        Raises:
            RecordingError: one is unknown; the message names the flag that settles it.
        """
        if None not in self._declared.values():
            return settled_scales(self._arrays, self._declared, dict, [1], str(self.folder))
        episodes = [open_other_layout(path, self._timestamps).numbers for path in self.find()]
        rows = {name: np.concatenate([one[name] for one in episodes]) for name in self.mapping.features}
        lengths = [len(next(iter(one.values()))) for one in episodes]

        def grippers() -> dict[str, Gripper]:
            columns = self._arrays.gripper_columns()
            return {name: gripper_numbers(rows, command, measured) for name, command, measured in columns}

        return settled_scales(self._arrays, self._declared, grippers, lengths, str(self.folder))


def _vectors(layout: OtherLayout) -> Vectors:
    return {name: values.shape[1] for name, values in layout.numbers.items()}
