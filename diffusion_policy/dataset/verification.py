"""Whether a dataset still holds what its conversion wrote: every number and every pixel, hashed as a reader gets them.

A flipped bit that still unpacks shows nowhere else. The converter records a hash of each array of each episode; its
earlier versions recorded only one per episode, and other programs record none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.cpu import usable_cores
from diffusion_policy.dataset.chunk_files import ChunkFault
from diffusion_policy.dataset.content_hash import (
    ARRAY_HASHES,
    CONTENT_HASH,
    CONVERSION,
    EPISODE_HASH,
    EPISODES,
    array_sha256,
    content_sha256,
    episode_sha256,
    frame_digest,
)
from diffusion_policy.dataset.errors import DatasetError
from diffusion_policy.dataset.frame_files import FrameFiles
from diffusion_policy.dataset.image_codecs import DECODER, is_lossless
from diffusion_policy.dataset.replay_buffer import ACTION_KEY, GRIPPER_KEY, POSE_KEY, TIMESTAMP_KEY, ReplayBuffer
from diffusion_policy.progress import Progress, no_progress, part_of

# Frames read at a time if each has its own file.
_TOGETHER = 32
NO_HASHES = "it carries no hashes of what was written (another program made it, or they were lost)"
DIFFERS = "is not what was written"
BEFORE_THE_CODEC = (
    "their hashes were taken before a lossy codec packed their frames in shards, as an earlier version of the "
    "converter did"
)


@dataclass(frozen=True)
class ContentFault:
    """Something that differs from what the conversion wrote.

    Attributes:
        episode: name of the episode; empty if it concerns all of them.
        array: within the dataset, such as "data/image"; empty if only a hash of all arrays was recorded.
        what: what is wrong with it.
        rows: of the episode in the dataset, (first, exclusive end); None if it concerns all of them.
    """

    episode: str
    array: str
    what: str
    rows: tuple[int, int] | None = None

    def __str__(self) -> str:
        where = " of ".join(part for part in (self.array, self.episode) if part)
        return f"{where} {self.what}".strip()


@dataclass(frozen=True)
class Verification:
    """The result of comparing a dataset with its recorded hashes.

    Attributes:
        n_episodes: of the dataset.
        compared: how many of them could be compared.
        n_frames: frames read, of all cameras.
        arrays: arrays compared, such as "data/action".
        cameras: those of them that hold frames.
        faults: in order of episodes.
        not_compared: why the other episodes were not; empty if all were.
        other_decoder: the decoder that unpacked lossy frames for their hashes, if it differs from the present one.
    """

    n_episodes: int
    compared: int = 0
    n_frames: int = 0
    arrays: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    faults: tuple[ContentFault, ...] = ()
    not_compared: str = ""
    other_decoder: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether every episode was compared, and is what was written."""
        return self.compared == self.n_episodes and not self.faults

    @property
    def may_be_the_decoder(self) -> bool:
        """Whether exactly all cameras of all episodes differ, and their hashes come from another decoder."""
        cameras = {fault.array for fault in self.faults}
        return bool(
            self.other_decoder
            and self.compared == self.n_episodes
            and cameras <= set(self.cameras)
            and len(self.faults) == len(cameras) * self.n_episodes
            and all(fault.what == DIFFERS for fault in self.faults)
        )


@dataclass(frozen=True)
class _Record:
    """What the conversion recorded about an episode: its rows and its hashes."""

    name: str
    rows: slice
    sha256: str
    arrays: Mapping[str, str] | None

    @property
    def span(self) -> tuple[int, int]:
        """The rows, (first, exclusive end)."""
        return self.rows.start, self.rows.stop


@dataclass(frozen=True)
class _Frames:
    """Digests (N, 32) of a camera's frames as read, and what is wrong with those that cannot be read."""

    digests: NDArray[np.uint8]
    unread: Mapping[int, str]


def verify_content(
    buffer: ReplayBuffer, faults: Sequence[ChunkFault] = (), on_progress: Progress = no_progress
) -> Verification:
    """Compare every episode with the hashes that its conversion recorded.

    Args:
        buffer: the dataset.
        faults: files of frames that are known to be missing or truncated; they are not read.
        on_progress: called with the frames read and their total.

    Raises:
        DatasetError: numbers do not unpack.
    """
    records = _records(buffer)
    usable = [record for record in records if record.arrays is not None or not _hashed_before_the_codec(buffer)]
    if not usable:
        return Verification(buffer.n_episodes, not_compared=BEFORE_THE_CODEC if records else NO_HASHES)
    keys = sorted({key for record in usable for key in _keys(record, buffer)})
    cameras = [key for key in keys if key in buffer.cameras]
    numbers = {key: buffer.read(key) for key in keys if key in buffer and key not in cameras}
    frames = {}
    for number, camera in enumerate(cameras):
        frames[camera] = _read_frames(buffer, camera, faults, part_of(on_progress, number, len(cameras)))
    all_faults = [*_of_the_dataset(buffer, records)]
    for record in usable:
        all_faults += _of_an_episode(record, buffer, numbers, frames)
    return Verification(
        n_episodes=len(records),
        compared=len(usable),
        n_frames=buffer.n_steps * len(cameras),
        arrays=tuple(f"data/{key}" for key in keys),
        cameras=tuple(f"data/{key}" for key in cameras),
        faults=tuple(all_faults),
        not_compared=BEFORE_THE_CODEC if len(usable) < len(records) else "",
        other_decoder=_other_decoder(buffer),
    )


def _records(buffer: ReplayBuffer) -> list[_Record]:
    """The record of each episode; empty if nothing, or no hash, was recorded."""
    described = buffer.root.attrs.get(EPISODES)
    entries: list[Mapping[str, Any]] = []
    for entry in described if isinstance(described, list) else []:
        if not isinstance(entry, Mapping) or not isinstance(entry.get(EPISODE_HASH), str) or _length(entry) is None:
            return []
        entries.append(entry)
    ends = np.cumsum([0, *(_length(entry) or 0 for entry in entries)])
    names = Counter(str(entry.get("name")) for entry in entries)
    records = []
    for entry, start, end in zip(entries, ends[:-1], ends[1:], strict=True):
        name, steps, arrays = str(entry.get("name")), entry["steps"], entry.get(ARRAY_HASHES)
        part = f" (steps {steps[0]} to {steps[1] - 1})" if names[name] > 1 else ""
        hashes = {str(key): str(value) for key, value in arrays.items()} if isinstance(arrays, Mapping) else None
        records.append(_Record(name + part, slice(int(start), int(end)), entry[EPISODE_HASH], hashes))
    return records


def _length(entry: Mapping[str, Any]) -> int | None:
    steps = entry.get("steps")
    is_range = isinstance(steps, list) and len(steps) == 2 and all(isinstance(step, int) for step in steps)
    return steps[1] - steps[0] if is_range and isinstance(steps, list) and steps[1] > steps[0] else None


def _settings(buffer: ReplayBuffer, part: str) -> Mapping[str, Any]:
    conversion = buffer.root.attrs.get(CONVERSION)
    stored = conversion.get(part) if isinstance(conversion, Mapping) else None
    return stored if isinstance(stored, Mapping) else {}


def _hashed_before_the_codec(buffer: ReplayBuffer) -> bool:
    settings = _settings(buffer, "settings")
    return settings.get("shard") is not None and not is_lossless(str(settings.get("codec")))


def _other_decoder(buffer: ReplayBuffer) -> str:
    settings = _settings(buffer, "settings")
    if not settings or is_lossless(str(settings.get("codec"))):
        return ""
    recorded = str(_settings(buffer, "tool").get("decoder", "an unknown one"))
    return "" if recorded == DECODER else recorded


def _keys(record: _Record, buffer: ReplayBuffer) -> tuple[str, ...]:
    """Arrays that its hashes cover; for hashes that are not per array, those that every conversion writes."""
    if record.arrays is not None:
        return tuple(record.arrays)
    return (POSE_KEY, GRIPPER_KEY, ACTION_KEY, TIMESTAMP_KEY, *buffer.cameras)


def _read_frames(buffer: ReplayBuffer, camera: str, faults: Sequence[ChunkFault], on_progress: Progress) -> _Frames:
    """Read every frame of a camera, on all cores."""
    array, n_steps = buffer[camera], buffer.n_steps
    files, together = FrameFiles(array), (array.shards or (_TOGETHER,))[0]
    digests = np.zeros((n_steps, 32), dtype=np.uint8)
    unread = {row: f"{f.file} {f.what}" for f in faults if f.key == camera for row in range(*f.rows)}
    lost = frozenset(unread)

    def read(start: int) -> dict[int, str]:
        rows = range(start, min(start + together, n_steps))
        return _read_rows(files, rows, lost, digests)

    done = 0
    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="verify") as pool:
        for trouble in pool.map(read, range(0, n_steps, together)):
            unread.update(trouble)
            done = min(done + together, n_steps)
            on_progress(done, n_steps)
    return _Frames(digests, unread)


def _read_rows(files: FrameFiles, rows: range, lost: frozenset[int], digests: NDArray[np.uint8]) -> dict[int, str]:
    """Fill in the digests of rows, all at once if possible; returns what is wrong with those that do not unpack."""
    if not lost.intersection(rows):
        try:
            for row, frame in zip(rows, files.read(rows.start, rows.stop), strict=True):
                digests[row] = np.frombuffer(frame_digest(frame), dtype=np.uint8)
            return {}
        except DatasetError:
            pass  # which of them is found below
    trouble = {}
    for row in rows:
        if row in lost:
            continue
        try:
            digests[row] = np.frombuffer(frame_digest(files.read(row, row + 1)[0]), dtype=np.uint8)
        except DatasetError as error:
            trouble[row] = str(error)
    return trouble


def _of_the_dataset(buffer: ReplayBuffer, records: Sequence[_Record]) -> Iterator[ContentFault]:
    """Disagreements in the record itself, and in where episodes end."""
    whole = buffer.root.attrs.get(CONTENT_HASH)
    if whole != content_sha256([record.sha256 for record in records]):
        yield ContentFault("", "", f"the attribute {CONTENT_HASH} does not follow from the hashes of the episodes")
    if len(records) != buffer.n_episodes:
        difference = f"has {buffer.n_episodes} episodes, {len(records)} were written"
        yield ContentFault("", "meta/episode_ends", difference)
    for record, end in zip(records, buffer.episode_ends.tolist(), strict=False):
        if end != record.rows.stop:
            yield ContentFault(record.name, "meta/episode_ends", f"is {end}, {record.rows.stop} was written")
            return  # those after it are shifted with it


def _of_an_episode(
    record: _Record,
    buffer: ReplayBuffer,
    numbers: Mapping[str, NDArray[Any]],
    frames: Mapping[str, _Frames],
) -> Iterator[ContentFault]:
    keys = _keys(record, buffer)
    rows = {key: numbers[key][record.rows] for key in keys if key in numbers}
    digests = {key: [digest.tobytes() for digest in frames[key].digests[record.rows]] for key in keys if key in frames}
    hashes = array_sha256(rows, digests)
    is_named = False
    for key in keys:
        what = _trouble(record, key, hashes, frames)
        if what:
            is_named = True
            yield ContentFault(record.name, f"data/{key}", what, record.span)
    if not is_named and episode_sha256(rows, digests) != record.sha256:
        what = "" if record.arrays is None else "the recorded hash"
        yield ContentFault(record.name, what, DIFFERS, record.span)


def _trouble(record: _Record, key: str, hashes: Mapping[str, str], frames: Mapping[str, _Frames]) -> str:
    """What is wrong with an episode's array; empty if it is as written, or if hashes are not per array."""
    if key not in hashes:
        return "does not exist"
    unread = frames[key].unread if key in frames else {}
    rows = [row for row in range(record.rows.start, record.rows.stop) if row in unread]
    if rows:
        others = f", and {len(rows) - 1} others" if len(rows) > 1 else ""
        return f"has frames that cannot be read: row {rows[0]}{others}"
    return DIFFERS if record.arrays is not None and record.arrays[key] != hashes[key] else ""
