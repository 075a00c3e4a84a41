"""Every step of a converted dataset, or of its recordings, in one form for the checks of data.

Numbers are kept in memory, frames are read on demand. Arrays are named as in a dataset.

Legend: N steps, E episodes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.chunk_files import ChunkFault
from diffusion_policy.dataset.errors import DatasetError
from diffusion_policy.dataset.frame_files import FrameFiles
from diffusion_policy.dataset.gripper_columns import grippers_of
from diffusion_policy.dataset.replay_buffer import ACTION_KEY, GRIPPER_KEY, POSE_KEY, ReplayBuffer
from diffusion_policy.dataset.sources import episode_names
from diffusion_policy.diagnose import ReportError
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.geometry import geodesic_distance
from diffusion_policy.gripper_scale import DeclaredScales, GripperScale, ResolvedScales
from diffusion_policy.images import DecodedImage
from diffusion_policy.spec import GRIPPER, ActionLayout, ImageArray, find_layout
from diffusion_policy.spec.action_layout import is_gripper_name

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
# A quaternion shorter than this is not a rotation.
_SHORTEST = 0.5
_RADIANS = {"rad": 1.0, "deg": np.pi / 180}


@dataclass(frozen=True)
class Look:
    """The frame of one step.

    Attributes:
        file: its file, or its row of a dataset.
        image: the frame resized to (height, width, 3) RGB, with its stored form; None if absent; the error if it does
            not decode.
    """

    file: str
    image: DecodedImage | WorkspaceError | None


class Camera(Protocol):
    """The frames of one camera, one for each of N steps."""

    def frame(self, step: int, width: int, height: int) -> DecodedImage | None:
        """Returns the frame of a step, resized to (height, width, 3) RGB, with its stored form; None if absent.

        Raises:
            WorkspaceError: it does not decode.
        """

    def looks(self, steps: range, width: int, height: int) -> Iterator[Look]:
        """Yields consecutive steps in order, which is faster than one by one where frames are in a video."""


@dataclass(frozen=True)
class ConvertedCamera:
    """Frames of a dataset; `lost` maps steps whose file is missing or truncated to what is wrong with it."""

    frames: FrameFiles
    lost: Mapping[int, str] = field(default_factory=dict)

    def frame(self, step: int, width: int, height: int) -> DecodedImage | None:
        """See `Camera.frame`."""
        if step in self.lost:
            raise DatasetError(self.lost[step])
        pixels = self.frames.read(step, step + 1)[0]
        size = (pixels.shape[1], pixels.shape[0])
        small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        return DecodedImage(small, size)

    def looks(self, steps: range, width: int, height: int) -> Iterator[Look]:
        """See `Camera.looks`."""
        for step in steps:
            try:
                yield Look(f"step {step}", self.frame(step, width, height))
            except WorkspaceError as error:
                yield Look(f"step {step}", error)

    def whole(self, step: int) -> ImageArray | None:
        """Returns the frame (H, W, 3) of a step as stored; None if it is lost or does not unpack."""
        try:
            return None if step in self.lost else self.frames.read(step, step + 1)[0]
        except DatasetError:
            return None


@dataclass(frozen=True)
class Steps:
    """All steps of a dataset, or of all recordings that can be opened.

    Attributes:
        where: the dataset, or the folder of recordings.
        numbers: (N, D) or (N,) by key of the dataset, as stored; may hold NaN.
        names: (D,) of each vector.
        episode_ends: (E,) exclusive.
        episode_names: (E,) as recorded.
        cameras: by key of the dataset.
        refused: recordings that cannot be opened, with the reason.
        notes: for each odd recording, what is odd.
        grippers: by name, the scales in which each gripper is stored; in ``numbers`` it is 0 closed .. 1 open where
            these are known.
        units: units stored in the dataset, for numbers whose name does not give one.
    """

    where: str
    numbers: Mapping[str, FloatArray]
    names: Mapping[str, tuple[str, ...]]
    episode_ends: IntArray
    episode_names: tuple[str, ...]
    cameras: Mapping[str, Camera]
    refused: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    grippers: Mapping[str, ResolvedScales] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)

    @property
    def scales(self) -> ResolvedScales | None:
        """The scales of the first gripper whose scale is unknown, else of the first gripper; None without one."""
        resolved = self.grippers.values()
        return next((scales for scales in resolved if scales.unknown), next(iter(resolved), None))

    def layout(self, key: str) -> ActionLayout | None:
        """Returns the layout of a vector; None if its names do not define one."""
        names = self.names.get(key, ())
        return find_layout(names, self.units) if names else None

    @property
    def measured_keys(self) -> tuple[str, ...]:
        """Arrays of measured arms: the usual one if it exists, otherwise all that hold poses or joints."""
        if POSE_KEY in self.numbers:
            return (POSE_KEY,)
        layouts = {key: self.layout(key) for key in self.names if key != ACTION_KEY}
        return tuple(key for key, layout in layouts.items() if layout is not None and layout.motion_columns)

    @property
    def n_steps(self) -> int:
        """N."""
        return int(self.episode_ends[-1])

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The steps of each episode."""
        ends = self.episode_ends.tolist()
        return tuple(slice(first, end) for first, end in zip([0, *ends[:-1]], ends, strict=True))

    @property
    def within(self) -> NDArray[np.bool_]:
        """(N - 1,) whether a step and the next are in the same episode."""
        inside = np.ones(self.n_steps - 1, dtype=bool)
        inside[self.episode_ends[:-1] - 1] = False
        return inside

    def column(self, key: str, name: str) -> FloatArray | None:
        """Returns (N,) one dimension of a vector; None if absent, or if a gripper's scale is unknown."""
        if key not in self.numbers or name not in self.names[key]:
            return None
        if is_gripper_name(name) and scale_of(self.grippers.get(name), key) is None:
            return None
        return self.numbers[key][:, self.names[key].index(name)]

    def commanded_grippers(self) -> FloatArray | None:
        """Returns (N, G) commands; None without a gripper, or if the scale of one is unknown."""
        return _stacked([self.column(ACTION_KEY, name) for name in self.names[ACTION_KEY] if is_gripper_name(name)])

    def measured_grippers(self) -> FloatArray | None:
        """Returns (N, G) measurements of the commanded grippers, in their order; None if one is not measured."""
        names = [name for name in self.names[ACTION_KEY] if is_gripper_name(name)]
        return _stacked([self._measured_gripper(name) for name in names])

    def _measured_gripper(self, name: str) -> FloatArray | None:
        """Returns (N,) one gripper; its bare name counts only in the array named after it."""
        others = (key for key in self.names if key not in (ACTION_KEY, GRIPPER_KEY) and name != GRIPPER)
        columns = (self.column(key, name) for key in (GRIPPER_KEY, *others))
        return next((column for column in columns if column is not None), None)

    def position_in_episode(self, step: int) -> tuple[int, int]:
        """Returns the number of a step's episode, and the step within it."""
        episode = int(np.searchsorted(self.episode_ends, step, side="right"))
        return episode, step - self.slices[episode].start


def _stacked(columns: Sequence[FloatArray | None]) -> FloatArray | None:
    """Returns (N, G) from columns (N,); None if there are none, or one is absent."""
    known = [column for column in columns if column is not None]
    return np.stack(known, axis=1) if known and len(known) == len(columns) else None


class HeldNumbers(ReplayBuffer):
    """A dataset whose numbers are read once and kept in memory, for checks and pictures that use them repeatedly."""

    @cached_property
    def _held(self) -> dict[str, NDArray[Any]]:
        return {}

    def read(self, key: str) -> NDArray[Any]:
        """See `ReplayBuffer.read`; returns the same read-only array for a vector or column every time."""
        if self[key].ndim > 2:
            return super().read(key)
        if key not in self._held:
            self._held[key] = super().read(key)
            self._held[key].setflags(write=False)
        return self._held[key]


def open_for_report(
    path: Path | str, gripper_scale: DeclaredScales | None = None, otherwise: DeclaredScales | None = None
) -> tuple[HeldNumbers, list[ChunkFault]]:
    """Opens a dataset for a report, even if frames of it are lost; these are listed.

    Args:
        path: path of the dataset.
        gripper_scale: scale in which its gripper is stored, if declared now.
        otherwise: scale to use where neither a declaration nor its numbers decide it.

    Raises:
        DatasetError: there is no dataset, or a file of numbers is missing or damaged.
        SpecError: its gripper contradicts the declared scale.
    """
    buffer = HeldNumbers.open(path, gripper_scale=gripper_scale, check_files=False)
    assert isinstance(buffer, HeldNumbers)
    faults = buffer.file_faults()
    buffer.refuse([fault for fault in faults if fault.key not in buffer.cameras])
    unknown = otherwise is not None and any(scales.unknown for scales in buffer.scales_by_gripper.values())
    if gripper_scale is None and unknown:
        buffer.declare(otherwise)
    return buffer, faults


def steps_of_dataset(buffer: ReplayBuffer, faults: Sequence[ChunkFault] = ()) -> Steps:
    """Returns the steps of a converted dataset; `faults` are the lost frames that `open_for_report` lists.

    Raises:
        ReportError: it has no action, or no step.
    """
    if ACTION_KEY not in buffer or buffer.n_steps == 0 or buffer[ACTION_KEY].ndim != 2:
        where, found = buffer.where, f"the arrays {list(buffer.keys)} and {buffer.n_steps} steps"
        expected = f"actions (data/action) with {POSE_KEY}, {GRIPPER_KEY} and images"
        raise ReportError(f"{where}: has {found}; expected {expected}")
    arrays = {key: buffer[key] for key in buffer.keys}
    numbers = {key: buffer.read(key).astype(np.float64) for key, a in arrays.items() if a.ndim <= 2}
    names = {key: buffer.names(key) for key, array in arrays.items() if array.ndim == 2}
    scales = buffer.scales_by_gripper
    grippers = [(key, name) for key in names for name in grippers_of(key, names[key], ACTION_KEY)]
    for key, name in grippers:
        scale = scale_of(scales.get(name), key)
        if scale is not None:
            index = names[key].index(name)
            numbers[key][:, index] = scale.to_internal(numbers[key][:, index])
    return Steps(
        where=buffer.where,
        numbers=numbers,
        names=names,
        episode_ends=buffer.episode_ends,
        episode_names=episode_names(buffer),
        cameras={key: ConvertedCamera(FrameFiles(arrays[key]), _lost(faults, key)) for key in buffer.cameras},
        grippers=scales,
        units=_units(buffer.label),
    )


def _units(label: Mapping[str, Any] | None) -> dict[str, str]:
    names, units = ((label or {}).get(entry, ()) for entry in ("names", "units"))
    return {str(name): str(unit) for name, unit in zip(names, units, strict=False) if unit != "unknown"}


def _lost(faults: Sequence[ChunkFault], key: str) -> dict[int, str]:
    return {row: f"{f.file} {f.what}" for f in faults if f.key == key for row in range(*f.rows)}


def finite(steps: Steps, key: str) -> FloatArray:
    """Returns (N, D) with zeros for NaN, and the identity for invalid rotations, so that angles are defined."""
    values, layout = np.nan_to_num(steps.numbers[key]), steps.layout(key)
    if layout is None or not layout.labels("rotation"):
        return values
    turns = layout.rotations(values)
    lost = ~(np.linalg.norm(turns, axis=-1) >= _SHORTEST)
    if lost.any():
        turns[lost] = (0, 0, 0, 1)
        values = layout.replaced(values, rotations=turns)
    return values


def arm_steps(layout: ActionLayout, values: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    """Returns how far vectors (N, D) move from each step to the next: meters and radians, (N - 1,) each.

    With several arms, for the one that moves most; joints count as rotations. None if nothing is known to move.
    """
    positions, rotations = layout.positions(values), layout.rotations(values)
    meters = np.linalg.norm(np.diff(positions, axis=0), axis=-1)
    turns = [geodesic_distance(rotations[:-1], rotations[1:])]
    if layout.has_joints and layout.joint_unit in _RADIANS:
        turns.append(np.abs(np.diff(layout.joints(values), axis=0)) * _RADIANS[layout.joint_unit])
    radians = np.concatenate(turns, axis=1)
    if not meters.size and not radians.size:
        return None
    return meters.max(axis=1, initial=0.0), radians.max(axis=1, initial=0.0)


def scale_of(scales: ResolvedScales | None, key: str) -> GripperScale | None:
    """Returns the scale of the commanded or measured gripper; None if unknown."""
    if scales is None:
        return None
    scale = scales.command if key == ACTION_KEY or scales.measured is None else scales.measured
    return scale.scale
