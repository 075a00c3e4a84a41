"""The dataset's layout on disk: a zarr group that the reference's readers know, in zarr format 2 or 3.

    data/<key>           (N, ...)  one row per step, all episodes one after another
    meta/episode_ends    (E,)      int64, exclusive end of each episode

Attributes of the root carry what the numbers mean (`action_semantics`), and those of each array the `names` of its
dimensions. Files written by the reference have neither, and chunks of many frames; they open all the same.

A missing chunk of a zarr array reads as zeros. Writers here store every chunk, even one of zeros, and a dataset with a
missing or truncated file is not opened (`chunk_files`): nothing is read in its place.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
import zarr.errors
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import BloscCodec
from zarr.core.array_spec import ArrayConfigParams

from diffusion_policy.dataset.chunk_files import ChunkFault
from diffusion_policy.dataset.errors import DatasetError
from diffusion_policy.dataset.gripper_columns import converted, grippers_of, internal_label, scales_of_dataset
from diffusion_policy.dataset.image_codecs import ImageCodec, image_codec, zarr_arguments
from diffusion_policy.dataset.opening import Opened, check_attributes, open_dataset
from diffusion_policy.gripper_scale import DeclaredScales, ResolvedScales
from diffusion_policy.paths import as_path, reaching
from diffusion_policy.spec import default_names

IMAGE_KEY = "image"
IMAGE_NDIM = 4
POSE_KEY = "robot_eef_pose"
GRIPPER_KEY = "robot_gripper_state"
ACTION_KEY = "action"
TIMESTAMP_KEY = "timestamp"
SEMANTICS = "action_semantics"
HEMISPHERE = "quaternion_hemisphere"  # attribute: (4,) mean direction of the quaternions, null if their signs were kept
# Rows of a low-dimensional chunk: 8192 actions are 262 kB.
_ROWS = 8192
ZARR_FORMATS = (2, 3)
# What codecs raise for bytes that do not unpack, or not to the array's size.
UNPACKING = (RuntimeError, ValueError, TypeError, EOFError, MemoryError, zlib.error)
# Set by the writing program in zarr, not stored in the file.
STORE_EVERY_CHUNK: ArrayConfigParams = {"write_empty_chunks": True}


@dataclass(frozen=True)
class ArrayLayout:
    """One array of `data/`.

    Attributes:
        shape: of one step; (H, W, 3) for images.
        dtype: of its numbers.
        names: of its dimensions, if it is a vector with names.
        codec: how frames are packed, one per chunk; None for an array that is not an image.
        shard: frames per file of a format-3 image array; None for one file per frame.
    """

    shape: tuple[int, ...]
    dtype: DTypeLike
    names: tuple[str, ...] = ()
    codec: ImageCodec | None = None
    shard: int | None = None


class ReplayBuffer:
    """A dataset on disk. Nothing is read until it is requested."""

    def __init__(
        self,
        root: zarr.Group,
        where: str,
        gripper_scale: DeclaredScales | None = None,
        opened: Opened | None = None,
    ) -> None:
        self.root = root
        self.where = where
        self._declared_scale = gripper_scale
        self._declared_names: Mapping[str, Sequence[str]] = {}
        self._opened = opened
        self._data = _group(root, "data", where)
        meta = _group(root, "meta", where) if opened is None else opened.arrays["meta"]
        ends = meta.get("episode_ends")
        if not isinstance(ends, zarr.Array):
            raise DatasetError(f"{where}: has no meta/episode_ends; expected a converted dataset")
        self._ends = ends
        self.episode_ends: NDArray[np.int64] = _all_rows(ends, where).astype(np.int64)
        self._check()

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        mode: str = "r",
        gripper_scale: DeclaredScales | None = None,
        names: Mapping[str, Sequence[str]] | None = None,
        check_files: bool = True,
    ) -> ReplayBuffer:
        """Open a dataset, in a folder, at a URL or in a zip archive, read-only by default.

        Args:
            path: of the dataset.
            mode: of zarr.
            gripper_scale: the stored scale of its gripper, if declared by the caller.
            names: of the dimensions of arrays without names, by key; otherwise derived from their width.
            check_files: whether missing or truncated chunks of data/ and lost attributes are refused; callers that pass
                False should check `file_faults`.

        Raises:
            DatasetError: there is no dataset, a file of it is missing or damaged, or its arrays and episodes disagree.
            PathError: the URL's store cannot be reached.
        """
        location = as_path(path)
        with reaching(location):
            opened = open_dataset(location, mode)
            if mode == "r":
                opened.refuse(opened.faults("meta"))
            buffer = cls(opened.root, str(location), gripper_scale, opened)
            buffer._declared_names = names or {}
            if mode == "r" and check_files:
                check_attributes(opened, location)
                opened.refuse(buffer.file_faults())
            return buffer

    @classmethod
    def create(
        cls, path: Path | str, arrays: Mapping[str, ArrayLayout], *, zarr_format: int = 2, n_steps: int = 0
    ) -> ReplayBuffer:
        """A new dataset without episodes, with arrays allocated for `n_steps`.

        Raises:
            DatasetError: `path` exists already, or the format does not exist.
        """
        if zarr_format not in ZARR_FORMATS:
            raise DatasetError(f"there is no zarr format {zarr_format}; expected 2 or 3")
        try:
            root = zarr.open_group(str(path), mode="w-", zarr_format=zarr_format)  # type: ignore[arg-type]
        except (FileExistsError, zarr.errors.ContainsGroupError) as error:
            raise DatasetError(f"{path}: exists already; it is not overwritten") from error
        data = root.create_group("data")
        for key, layout in arrays.items():
            create_array(data, key, layout, n_steps)
        root.create_group("meta").create_array("episode_ends", shape=(0,), chunks=(_ROWS,), dtype="int64")
        return cls(root, str(path))

    @cached_property
    def _arrays(self) -> dict[str, zarr.Array[Any]]:
        """The arrays of data/ by name, whose metadata is read once."""
        items = self._data.arrays() if self._opened is None else self._opened.arrays["data"].items()
        return {key: array.with_config(STORE_EVERY_CHUNK) for key, array in items}

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the arrays of data/."""
        return tuple(sorted(self._arrays))

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the arrays of images (N, H, W, C)."""
        return tuple(key for key in self.keys if self[key].ndim == IMAGE_NDIM)

    @property
    def n_steps(self) -> int:
        """Steps of all episodes."""
        return int(self.episode_ends[-1]) if len(self.episode_ends) else 0

    @property
    def n_episodes(self) -> int:
        """E, the number of episodes."""
        return len(self.episode_ends)

    @property
    def label(self) -> dict[str, Any] | None:
        """What the action's numbers mean as stored; None for files that do not declare it."""
        stored = self.root.attrs.get(SEMANTICS)
        return dict(stored) if isinstance(stored, Mapping) else None

    @property
    def semantics(self) -> dict[str, Any] | None:
        """What the action's numbers mean as `columns` returns them; None for files that do not declare it."""
        return internal_label(self.label, tuple(self.scales_by_gripper.values()))

    @property
    def gripper_scales(self) -> ResolvedScales | None:
        """The stored scales of its (first) gripper; None without one.

        Raises:
            SpecError: the numbers contradict the declaration, or the label is invalid.
        """
        return next(iter(self.scales_by_gripper.values()), None)

    @cached_property
    def scales_by_gripper(self) -> dict[str, ResolvedScales]:
        """The stored scales of each of its grippers, by name ("gripper", "left.gripper").

        Raises:
            SpecError: the numbers contradict the declaration, or the label is invalid.
        """
        return scales_of_dataset(self, ACTION_KEY, GRIPPER_KEY, self._declared_scale)

    def declare(self, gripper_scale: DeclaredScales | None) -> None:
        """Set the scale in which its gripper is stored, after opening."""
        self._declared_scale = gripper_scale
        self.__dict__.pop("scales_by_gripper", None)

    def stored_column(self, key: str, name: str) -> NDArray[Any] | None:
        """(N,) one dimension of a vector array as stored; None if there is no such dimension."""
        names = self.vector_names(key)
        return self.read(key)[:, names.index(name)] if name in names else None

    def vector_names(self, key: str) -> tuple[str, ...]:
        """Names of the dimensions of a vector array (N, D); empty if it is not a vector, or does not exist."""
        return self.names(key) if key in self and self[key].ndim == 2 else ()

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def __getitem__(self, key: str) -> zarr.Array[Any]:
        if key not in self._arrays:
            raise DatasetError(f"{self.where}: has no data/{key}; it has {', '.join(self.keys)}")
        return self._arrays[key]

    def names(self, key: str) -> tuple[str, ...]:
        """Names of the dimensions of a vector array (N, D): its own, else the declared ones, else by its width."""
        array = self[key]
        names = array.attrs.get("names")
        if isinstance(names, list):
            return tuple(map(str, names))
        declared = tuple(self._declared_names.get(key, ()))
        if len(declared) == array.shape[-1]:
            return declared
        return default_names(array.shape[-1], prefix="a" if key == ACTION_KEY else f"{key}.")

    def columns(self, key: str, names: Sequence[str], lacking: str = "it lacks") -> NDArray[Any]:
        """The columns (N, D) of a vector array with these names, in this order; a gripper as 0 closed .. 1 open.

        Raises:
            DatasetError: the array is not a vector, or lacks some of them; `lacking` are the words before their names.
            SpecError: a requested gripper's scale is unknown.
        """
        array = self[key]
        if array.ndim != 2:
            raise DatasetError(f"{self.where}: data/{key} has shape {array.shape}; expected (N, {len(names)})")
        found = self.names(key)
        missing = [name for name in names if name not in found]
        if missing:
            raise DatasetError(f"{self.where}: data/{key} has dimensions {list(found)}; {lacking} {missing}")
        rows = np.ascontiguousarray(self.read(key)[:, [found.index(name) for name in names]])
        for name in grippers_of(key, names, ACTION_KEY):
            scales = self.scales_by_gripper.get(name)
            if scales is not None:
                scale = scales.command if key == ACTION_KEY or scales.measured is None else scales.measured
                where = f"{self.where}: data/{key}"
                rows = converted(rows, list(names).index(name), name, scale, scales, where)
        return rows

    def append(self, episode: Mapping[str, NDArray[Any]]) -> None:
        """Add one episode; every array of data/ gets one row per step.

        Raises:
            DatasetError: an array is missing or unknown, lengths differ, or there are no steps.
        """
        lengths = {key: len(rows) for key, rows in episode.items()}
        if set(lengths) != set(self.keys):
            raise DatasetError(f"an episode with {sorted(lengths)}; {self.where} has {list(self.keys)}")
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise DatasetError(f"an episode with lengths {lengths}; expected one positive number of steps")
        start = self.n_steps
        end = start + next(iter(lengths.values()))
        for key, rows in episode.items():
            array = self[key]
            if array.shape[0] != end:
                array.resize((end, *array.shape[1:]))
            array[start:end] = rows
        self.set_episode_ends(np.append(self.episode_ends, end))

    def set_episode_ends(self, episode_ends: NDArray[np.int64]) -> None:
        """Write meta/episode_ends."""
        self._ends.resize((len(episode_ends),))
        self._ends[:] = episode_ends
        self.episode_ends = np.asarray(episode_ends, dtype=np.int64)

    def file_faults(self) -> list[ChunkFault]:
        """Missing or damaged files of data/, as far as a listing and a few bytes of each show them."""
        with reaching(self.where):
            return [] if self._opened is None else self._opened.faults("data")

    def refuse(self, faults: Sequence[ChunkFault]) -> None:
        """Raise an error for these faults; does nothing if there are none.

        Raises:
            DatasetError: names the first file, and how many there are.
        """
        if self._opened is not None:
            self._opened.refuse(faults)

    def read(self, key: str) -> NDArray[Any]:
        """All rows (N, ...) of an array of numbers.

        Raises:
            DatasetError: no such array, or a file of it does not unpack.
        """
        return _all_rows(self[key], self.where)

    def _check(self) -> None:
        ends = self.episode_ends
        if len(ends) and (np.diff(ends, prepend=0) <= 0).any():
            raise DatasetError(f"{self.where}: meta/episode_ends does not increase: {ends[:10].tolist()} ...")
        lengths = {key: self[key].shape[0] for key in self.keys}
        if len(ends) and set(lengths.values()) != {self.n_steps}:
            raise DatasetError(f"{self.where}: episodes end at step {self.n_steps}, arrays have {lengths} rows")


def create_array(group: zarr.Group, key: str, layout: ArrayLayout, n_steps: int) -> zarr.Array[Any]:
    """An array of `n_steps` rows: one image per chunk, other arrays in chunks of many rows."""
    zarr_format = group.metadata.zarr_format
    options: dict[str, Any]
    if layout.codec is not None:
        options = {"chunks": (1, *layout.shape), **zarr_arguments(layout.codec, zarr_format)}
        if layout.shard is not None:
            options["shards"] = (layout.shard, *layout.shape)
    else:
        lossless = numcodecs.Blosc("zstd", clevel=3) if zarr_format == 2 else BloscCodec(cname="zstd", clevel=3)
        options = {"chunks": (_ROWS, *layout.shape), "compressors": lossless}
    return group.create_array(
        key,
        shape=(n_steps, *layout.shape),
        dtype=np.dtype(layout.dtype),
        attributes={"names": list(layout.names)} if layout.names else {},
        config=STORE_EVERY_CHUNK,
        **options,
    )


def _all_rows(array: zarr.Array[Any], where: str) -> NDArray[Any]:
    """The whole of an array of numbers.

    Raises:
        DatasetError: names the first file that does not unpack.
        PathError: its store cannot be reached.
    """
    with reaching(where):
        try:
            return np.asarray(array[...])
        except UNPACKING as error:
            rows = (array.shards or array.chunks)[0]
            file = f"{array.path}/{array.metadata.encode_chunk_key((_first_bad(array, rows), *[0] * (array.ndim - 1)))}"
            raise DatasetError(
                f"{where}/{file} does not unpack ({error}): it is damaged. Copy the dataset again from an intact "
                "source, or convert again"
            ) from error


def _first_bad(array: zarr.Array[Any], rows: int) -> int:
    """Number of the first file along the first axis that does not unpack."""
    for index, start in enumerate(range(0, array.shape[0], rows)):
        try:
            array[start : start + rows]
        except UNPACKING:
            return index
    return 0


def low_dim_layout(names: tuple[str, ...]) -> ArrayLayout:
    """A float32 vector with named dimensions."""
    return ArrayLayout((len(names),), np.float32, names)


def image_layout(width: int, height: int, codec: ImageCodec | None = None, shard: int | None = None) -> ArrayLayout:
    """RGB frames (height, width, 3) uint8, one per chunk."""
    return ArrayLayout((height, width, 3), np.uint8, codec=codec or image_codec(), shard=shard)


def _group(root: zarr.Group, name: str, where: str) -> zarr.Group:
    group = root.get(name)
    if not isinstance(group, zarr.Group):
        raise DatasetError(f"{where}: has no group {name}/; expected a converted dataset with data/ and meta/")
    return group
