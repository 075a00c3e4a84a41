"""The datasets on disk behind one training set: one or several, opened, checked and concatenated.

Steps are numbered across all of them; reading a step does not require knowing its file.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from diffusion_policy.cpu import usable_cores
from diffusion_policy.dataset.episode_metadata import episode_metadata
from diffusion_policy.dataset.frame_files import FrameFiles
from diffusion_policy.dataset.recorded_frames import recorded_frames
from diffusion_policy.dataset.replay_buffer import ACTION_KEY, DatasetError, ReplayBuffer
from diffusion_policy.dataset.windows import IndexArray
from diffusion_policy.gripper_scale import DeclaredScales
from diffusion_policy.hub import address_of
from diffusion_policy.pose_check import order_fault, pose_faults
from diffusion_policy.spec import (
    POSE,
    ObsField,
    StepSpec,
    arms_of,
    check_semantics,
    layout_from_range,
)

logger = logging.getLogger(__name__)

Semantics = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """One dataset on disk.

    Attributes:
        path: of the zarr.
        episode_ends: (E,) int64.
        episode_names: (E,) as recorded ("episode_0066"); by position for files that do not record names.
        semantics: what its action's numbers mean; None for files that do not declare it.
        action: (N, Da) float32, the columns that `spec` names.
        low_dim: per key (N, D) float32, likewise. A gripper is 0 closed .. 1 open in both.
        gripper_scale: name of the stored scale that its gripper is converted from; None if it is 0..1.
        content: changes when the images do.
        frame_sizes: per camera, (width, height) of its pictures before a conversion resized them; empty if unknown.
        tasks: (E,) what each episode was recorded for, in words; empty if not recorded.
    """

    path: str
    episode_ends: IndexArray
    episode_names: tuple[str, ...]
    semantics: Semantics | None
    action: NDArray[np.float32]
    low_dim: Mapping[str, NDArray[np.float32]]
    content: str
    gripper_scale: str | None = None
    frame_sizes: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()

    @property
    def n_steps(self) -> int:
        """N, steps of all its episodes."""
        return int(self.episode_ends[-1])


def open_source(
    path: str | Path, spec: StepSpec, gripper_scale: DeclaredScales | None = None, *, is_named: bool = True
) -> Source:
    """Open a dataset and check it against what a policy reads and predicts, in recorded form (``StepSpec.robot``).

    Args:
        path: of the dataset.
        spec: of a step.
        gripper_scale: the stored scale of its gripper, if declared by the caller.
        is_named: False: arrays without names take the spec's names, in its order, if their width matches.

    Raises:
        DatasetError: no dataset, no episode, a missing key or dimension, another image size, or invalid poses
            (`pose_check`).
        SpecError: its numbers mean something else, or its gripper's scale is unknown.
    """
    names = {} if is_named else {ACTION_KEY: spec.action_names, **{field.key: field.names for field in spec.low_dim}}
    buffer = ReplayBuffer.open(path, gripper_scale=gripper_scale, names=names)
    if buffer.n_episodes == 0:
        raise DatasetError(f"{buffer.where}: has no episode")
    for camera in spec.rgb:
        _check_images(buffer, camera)
    check_semantics(buffer.semantics, spec.semantics, buffer.where)
    action = _named_columns(buffer, ACTION_KEY, spec.action_names)
    _check_layout(action, spec, buffer)
    low_dim = {field.key: _named_columns(buffer, field.key, field.names) for field in spec.low_dim}
    _check_poses(action, low_dim, spec, buffer)
    return Source(
        path=address_of(buffer.where) or str(path),  # for a hub with the commit, so that workers reopen the same one
        episode_ends=buffer.episode_ends,
        episode_names=episode_names(buffer),
        semantics=buffer.semantics,
        action=action,
        low_dim=low_dim,
        content=str(buffer.root.attrs.get("content_sha256", "")),
        gripper_scale=_stored_scale(buffer),
        frame_sizes=recorded_sizes(buffer, [camera.key for camera in spec.rgb]),
        tasks=tuple(metadata.task for metadata in episode_metadata(buffer)),
    )


def recorded_sizes(buffer: ReplayBuffer, cameras: Sequence[str]) -> dict[str, tuple[tuple[int, int], ...]]:
    """(width, height) of each camera's pictures before a conversion resized them, as far as recorded."""
    sizes_of = {
        camera: {(kind.width, kind.height) for kind in kinds} for camera, kinds in recorded_frames(buffer).items()
    }
    return {camera: tuple(sorted(sizes)) for camera, sizes in sizes_of.items() if camera in cameras}


def _stored_scale(buffer: ReplayBuffer) -> str | None:
    """The scale of a gripper that is converted, by its name on the command line; reported in the log."""
    each = buffer.scales_by_gripper.values()
    known_scales = [one for scales in each for one in (scales.command, scales.measured) if one is not None]
    names = [one.scale.name for one in known_scales if one.scale is not None]
    if all(one.is_internal for one in known_scales if one.scale is not None):
        return None
    name = "/".join(dict.fromkeys(names))
    logger.info("%s: its gripper is %s, and is read as 0 (closed) to 1 (open)", buffer.where, name)
    return name


class Frames:
    """The frames of one camera in several datasets, unpacked on demand; reopened in every process.

    The main process unpacks on all its cores, each loader worker on one.
    """

    def __init__(self, sources: Sequence[Source], key: str) -> None:
        self._paths = [source.path for source in sources]
        self._key = key
        self._firsts = np.cumsum([0, *(source.n_steps for source in sources)])
        self._files: list[FrameFiles] | None = None
        self._threads: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": None, "_threads": None}

    def read(self, steps: IndexArray) -> NDArray[np.uint8]:
        """Frames (..., H, W, 3) of `steps` (...); a step that occurs twice is unpacked once."""
        if self._files is None:
            self._files = [FrameFiles(ReplayBuffer.open(path, check_files=False)[self._key]) for path in self._paths]
        size = self._files[0].shape
        wanted, where = np.unique(steps, return_inverse=True)
        if len(wanted) == steps.size:
            return self._read_all(self._files, steps.reshape(-1)).reshape(*steps.shape, *size)
        return self._read_all(self._files, wanted)[where.reshape(steps.shape)]

    def _read_all(self, files: Sequence[FrameFiles], wanted: IndexArray) -> NDArray[np.uint8]:
        """Frames (n, H, W, 3) of steps (n,) in any order."""
        frames = np.empty((len(wanted), *files[0].shape), dtype=np.uint8)
        source_of = np.searchsorted(self._firsts, wanted, side="right") - 1

        def read_run(run: slice) -> None:
            source = int(source_of[run.start])
            files[source].read_into(frames[run], int(wanted[run.start] - self._firsts[source]))

        runs = _consecutive_runs(wanted, source_of)
        for _ in map(read_run, runs) if get_worker_info() is not None else self._pool().map(read_run, runs):
            pass
        return frames

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(usable_cores(), thread_name_prefix="frames")
        return self._threads


def _consecutive_runs(wanted: IndexArray, source_of: IndexArray) -> list[slice]:
    """Slices of steps that follow one another within one source: each is one read."""
    breaks = np.flatnonzero((np.diff(wanted) != 1) | (np.diff(source_of) != 0)) + 1
    edges = [0, *breaks.tolist(), len(wanted)]
    return [slice(start, end) for start, end in itertools.pairwise(edges)]


def episode_names(buffer: ReplayBuffer) -> tuple[str, ...]:
    """(E,) names of the episodes as recorded; by position in files that do not record names."""
    described = buffer.root.attrs.get("episodes")
    if isinstance(described, list) and len(described) == buffer.n_episodes:
        return tuple(str(episode["name"]) for episode in described)
    return tuple(f"episode_{index:04d}" for index in range(buffer.n_episodes))


def _check_images(buffer: ReplayBuffer, field: ObsField) -> None:
    images = buffer[field.key]
    channels, height, width = field.shape
    if images.shape[1:] != (height, width, channels) or images.dtype != np.uint8:
        raise DatasetError(
            f"{buffer.where}: data/{field.key} is {images.dtype} {images.shape[1:]}; shape_meta wants uint8 "
            f"{(height, width, channels)} (height, width, channels): convert with --resolution {width} {height}, "
            "or correct shape_meta"
        )


def _named_columns(buffer: ReplayBuffer, key: str, names: Sequence[str]) -> NDArray[np.float32]:
    return buffer.columns(key, names, "shape_meta also wants").astype(np.float32, copy=False)


def _check_layout(action: NDArray[np.float32], spec: StepSpec, buffer: ReplayBuffer) -> None:
    """Without attributes only the numbers can tell a rotation vector from a quaternion."""
    if buffer.semantics is None and spec.action_names == POSE:
        layout = layout_from_range(action.min(axis=0), action.max(axis=0))
        if layout == "xyz_rotvec_width":
            raise DatasetError(
                f"{buffer.where}: data/action looks like x y z, rotation vector, gripper width; shape_meta wants "
                f"{list(POSE)}"
            )


def _check_poses(
    action: NDArray[np.float32], low_dim: Mapping[str, NDArray[np.float32]], spec: StepSpec, buffer: ReplayBuffer
) -> None:
    """Refuse what the data checks call an error: NaN, other units, rotations that are not unit quaternions."""
    vectors = {ACTION_KEY: (action, spec.action_names)}
    vectors |= {field.key: (low_dim[field.key], field.names) for field in spec.low_dim}
    faults = [
        fault
        for key, (numbers, names) in vectors.items()
        for fault in pose_faults(numbers, names, f"data/{key}", buffer.episode_ends)
    ]
    commanded = _quaternions(action, spec.action_names)
    measured: dict[str, NDArray[np.float64]] = {}
    for entry in spec.low_dim:
        measured = {**_quaternions(low_dim[entry.key], entry.names), **measured}
    for arm in () if faults else (arm for arm in commanded if arm in measured):
        where = f"data/{ACTION_KEY}, {arm}" if arm else f"data/{ACTION_KEY}"
        order = order_fault(commanded[arm], measured[arm], where)
        faults += [] if order is None else [order]
    if faults:
        others = "".join(f"; {fault.message}" for fault in faults[1:])
        raise DatasetError(f"{buffer.where}: {faults[0]}{others}")


def _quaternions(numbers: NDArray[np.float32], names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Per arm, the rotations (N, 4) of a vector (N, D) that has them as quaternions with a position."""
    return {
        arm.name: numbers[:, list(arm.rotation)].astype(np.float64)
        for arm in arms_of(names)
        if arm.has_pose and arm.representation == "quaternion"
    }
