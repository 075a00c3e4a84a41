"""Moves packed frames without unpacking them, and finished datasets into place."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import zarr

from diffusion_policy.convert.settings import ConversionSettings
from diffusion_policy.dataset.frame_files import chunk_file
from diffusion_policy.paths import read_bytes
from diffusion_policy.storage import link, rename

Frames = zarr.Array[Any]

# Files in the folder of unfinished work.
LOCK = "lock"
SENT = "sent"
PUBLICATION = "publication.json"
SETTINGS = "settings.json"
# In order of removal: without SENT everything is sent again, without PUBLICATION nothing is.
MARKS = (SENT, PUBLICATION, SETTINGS)


def move_frames(source: Frames, target: Frames, first: int) -> None:
    """Puts all frames of one array into another from row `first` on, by hard links to their files if possible.

    A shard is a file of many frames. Where the shards of both arrays coincide they are linked, except for a last one
    that
    is not full: more frames will be added to it, so it is copied. Frames with one file each are packed into shards.
    """
    per_file = target.chunks[0] if target.shards is None else target.shards[0]
    if source.shards == target.shards and first % per_file == 0:
        for i in range(math.ceil(source.shape[0] / per_file)):
            is_full = (i + 1) * per_file <= source.shape[0]
            (link if is_full else _copy)(chunk_file(source, i), chunk_file(target, first // per_file + i))
        return
    for row in range(0, source.shape[0], per_file):
        end = min(row + per_file, source.shape[0])
        target[first + row : first + end] = source[row:end]


def leave_frames(home: Path, source: Frames, target: Frames) -> None:
    """Leaves the frames of a dataset in an object store in place when episodes are added to it.

    Only a last shard that is not full is fetched from `home`, the array's location, since frames are added to it.
    """
    per_file = target.chunks[0] if target.shards is None else target.shards[0]
    if source.shape[0] % per_file:
        last = target.metadata.encode_chunk_key((source.shape[0] // per_file, *(0 for _ in target.shape[1:])))
        file = chunk_file(target, source.shape[0] // per_file)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(read_bytes(home / last))


def move_into_place(finished: Path, settings: ConversionSettings) -> None:
    """Renames the finished dataset to its name; a dataset to be replaced is set aside until then."""
    replaced = settings.partial / "replaced"
    if settings.output.exists():
        rename(settings.output, replaced)
    rename(finished, settings.output)
    remove_work(settings.partial)


def remove_work(partial: Path) -> None:
    """Removes the folder of unfinished work."""
    clear_work(partial)
    shutil.rmtree(partial)


def clear_work(partial: Path) -> None:
    """Empties the folder of unfinished work except for its lock.

    The files that mark resumable work are removed first, so that leftovers of a killed process are not mistaken
    for finished episodes, or for a dataset that is to be sent.
    """
    for mark in MARKS:
        (partial / mark).unlink(missing_ok=True)
    for leftover in partial.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover)
        elif leftover.name != LOCK:
            leftover.unlink()


def restore_replaced(settings: ConversionSettings) -> None:
    """Restores a dataset set aside by a conversion that was killed before the new one was in place."""
    replaced = settings.partial / "replaced"
    if replaced.exists() and not settings.output.exists():
        rename(replaced, settings.output)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
