"""Writes the dataset of a plan: numbers are copied, and frames stored in one file each keep their encoded bytes.

Frames in other storage (shards, chunks of many frames, archives, object stores) are decoded and losslessly encoded
again: decoded frames are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from diffusion_policy import __version__
from diffusion_policy.commands import command
from diffusion_policy.dataset.content_hash import (
    ARRAY_HASHES,
    CONTENT_HASH,
    EPISODE_HASH,
    EPISODES,
    array_sha256,
    content_sha256,
    episode_sha256,
    frame_digest,
)
from diffusion_policy.dataset.episode_metadata import EpisodeMetadata
from diffusion_policy.dataset.frame_files import FrameFiles, chunk_file
from diffusion_policy.dataset.image_codecs import image_codec
from diffusion_policy.dataset.replay_buffer import (
    HEMISPHERE,
    IMAGE_NDIM,
    SEMANTICS,
    ArrayLayout,
    ReplayBuffer,
    create_array,
)
from diffusion_policy.edit import LEDGER, EditError
from diffusion_policy.edit.plan import EditPlan, Span
from diffusion_policy.progress import Progress, no_progress
from diffusion_policy.storage import atomic_folder, link, write_json

# Number of frames unpacked at a time.
_FRAMES = 64
# Attributes that must be equal in datasets to be joined, and that the result keeps.
_SHARED_ATTRIBUTES = (SEMANTICS, HEMISPHERE)


def write_edited(plan: EditPlan, output: Path, on_progress: Progress = no_progress) -> dict[str, Any]:
    """Writes the dataset of a plan and its ledger (also as a file next to it); returns the ledger.

    The dataset is written under a temporary name next to ``output`` and renamed when it is complete; an interrupted
    edit leaves nothing.

    Raises:
        EditError: no step is kept, ``output`` exists, or the sources cannot be joined in one dataset.
        DatasetError: a frame or number to be kept cannot be read.
    """
    if not plan.kept:
        raise EditError("no step is left: nothing is written")
    if output.exists() or ledger_file(output).exists():
        raise EditError(f"{output}: exists already; it is not overwritten")
    check_one_dataset(plan.sources)
    with atomic_folder(output) as partial:
        ledger = _write(plan, partial, output, on_progress)
    write_json(ledger_file(output), ledger)
    return ledger


def ledger_file(output: Path) -> Path:
    """Returns the path of an edited dataset's ledger."""
    return output.with_name(f"{output.name}.{LEDGER}.json")


def check_one_dataset(sources: Sequence[ReplayBuffer]) -> None:
    """Refuses to join datasets whose arrays differ in type, shape or meaning.

    Raises:
        EditError: they differ; the message names the array or attribute, and both datasets.
    """
    first, *others = sources
    for other in others:
        pair = f"{first.where} and {other.where}"
        if first.keys != other.keys:
            odd = sorted(set(first.keys) ^ set(other.keys))
            raise EditError(f"{pair} differ in their arrays: only one of them has {', '.join(odd)}")
        for key in first.keys:
            kinds = [_kind(buffer, key) for buffer in (first, other)]
            if kinds[0] != kinds[1]:
                raise EditError(f"{pair} differ in data/{key}: {' and '.join(kinds)}; convert one as the other was")
        for attribute in _SHARED_ATTRIBUTES:
            one, two = (buffer.root.attrs.get(attribute) for buffer in (first, other))
            if one != two:
                raise EditError(f"{pair} differ in {attribute}: {one} and {two}; convert one as the other was")


def _kind(buffer: ReplayBuffer, key: str) -> str:
    array = buffer[key]
    names = f" {' '.join(buffer.names(key))}" if array.ndim == 2 else ""
    return f"{array.dtype} {list(array.shape[1:])}{names}"


def _write(plan: EditPlan, partial: Path, output: Path, on_progress: Progress) -> dict[str, Any]:
    first = plan.sources[0]
    zarr_format = int(first.root.metadata.zarr_format)
    buffer = ReplayBuffer.create(partial, {}, zarr_format=zarr_format)
    data = buffer.root["data"]
    assert isinstance(data, zarr.Group)
    numbers: dict[str, list[NDArray[Any]]] = {}  # rows of each source, read once
    frames = {}
    for key in first.keys:
        arrays = [source[key] for source in plan.sources]
        if arrays[0].ndim == IMAGE_NDIM:
            frames[key] = _Frames(data, key, arrays, plan.n_steps)
        else:
            numbers[key] = [source.read(key) for source in plan.sources]
            _write_numbers(data, key, plan, numbers[key])
    described, row = [], 0
    for span in plan.kept:
        digests = {camera: writer.write_span(span, row) for camera, writer in frames.items()}
        rows = {key: values[span.episode.source][span.rows] for key, values in numbers.items()}
        described.append(_describe(span, rows, digests))
        row += span.steps[1] - span.steps[0]
        on_progress(row, plan.n_steps)
    buffer.set_episode_ends(np.cumsum([span.steps[1] - span.steps[0] for span in plan.kept]))
    ledger = _ledger(plan, output, described, {camera: writer.packed for camera, writer in frames.items()})
    shared = {key: first.root.attrs[key] for key in _SHARED_ATTRIBUTES if key in first.root.attrs}
    hashes = {CONTENT_HASH: ledger[CONTENT_HASH], EPISODES: described, LEDGER: ledger}
    buffer.root.attrs.update({**shared, **hashes})
    return ledger


def _write_numbers(data: zarr.Group, key: str, plan: EditPlan, values: Sequence[NDArray[Any]]) -> None:
    array = plan.sources[0][key]
    rows = np.concatenate([values[span.episode.source][span.rows] for span in plan.kept])
    names = array.attrs.get("names")
    layout = ArrayLayout(array.shape[1:], array.dtype, tuple(map(str, names)) if isinstance(names, list) else ())
    target = create_array(data, key, layout, len(rows))
    target[:] = rows
    target.attrs.update({name: value for name, value in array.attrs.asdict().items() if name != "names"})


class _Frames:
    """One camera of the new dataset."""

    def __init__(self, data: zarr.Group, key: str, arrays: Sequence[zarr.Array[Any]], n_steps: int) -> None:
        first = arrays[0]
        self._key = key
        self._readers = [FrameFiles(array) for array in arrays]
        keeps = all(_is_a_file_a_frame(array) and _packing(array) == _packing(first) for array in arrays)
        self._sources = arrays if keeps else None
        self.packed = "as in the source" if keeps else "again, without loss"
        if keeps:
            options: dict[str, Any] = {"filters": first.filters} if first.filters else {}
            if first.metadata.zarr_format != 2:
                options["serializer"] = first.serializer
            self._target = data.create_array(
                key, shape=(n_steps, *first.shape[1:]), dtype=first.dtype, chunks=first.chunks,
                compressors=first.compressors or None, attributes=first.attrs.asdict(), **options,
            )  # fmt: skip
        else:
            layout = ArrayLayout(first.shape[1:], first.dtype, codec=image_codec())
            self._target = create_array(data, key, layout, n_steps)
        self._writer = FrameFiles(self._target)

    def write_span(self, span: Span, row: int) -> list[bytes]:
        """Writes the frames of a span to the rows from ``row`` on; returns the digests of the decoded frames."""
        source = span.episode.source
        digests: list[bytes] = []
        for start in range(span.rows.start, span.rows.stop, _FRAMES):
            end = min(start + _FRAMES, span.rows.stop)
            frames = self._readers[source].read(start, end)
            digests += [frame_digest(frame) for frame in frames]
            if self._sources is None:
                self._writer.write(row + start - span.rows.start, frames)
        if self._sources is not None:
            for offset in range(span.rows.stop - span.rows.start):
                packed = chunk_file(self._sources[source], span.rows.start + offset)
                link(packed, chunk_file(self._target, row + offset))
        return digests


def _is_a_file_a_frame(array: zarr.Array[Any]) -> bool:
    whole = array.chunks == (1, *array.shape[1:])
    return isinstance(array.store, LocalStore) and array.shards is None and whole


def _packing(array: zarr.Array[Any]) -> str:
    return f"{array.metadata.zarr_format} {array.filters} {array.compressors} {array.chunks}"


def _describe(span: Span, rows: Mapping[str, NDArray[Any]], digests: Mapping[str, Sequence[bytes]]) -> dict[str, Any]:
    """Describes an episode as conversions do; steps are those of the recording, if known."""
    described = span.episode.described
    recorded = described.get("steps")
    first = int(recorded[0]) if isinstance(recorded, list) and recorded else 0
    kept = {key: described[key] for key in ("name", "number", "recording") if key in described}
    metadata = EpisodeMetadata.from_json(described).within(*span.steps)
    return {
        "name": span.episode.name,
        "number": span.episode.number,
        "recording": "",
        **kept,
        "steps": [first + span.steps[0], first + span.steps[1]],
        **metadata.as_json(),
        EPISODE_HASH: episode_sha256(rows, digests),
        ARRAY_HASHES: array_sha256(rows, digests),
    }


def _ledger(
    plan: EditPlan, output: Path, described: Sequence[Mapping[str, Any]], packed: Mapping[str, str]
) -> dict[str, Any]:
    sources = [
        {
            "path": buffer.where,
            "episodes": buffer.n_episodes,
            "steps": buffer.n_steps,
            CONTENT_HASH: buffer.root.attrs.get(CONTENT_HASH),
        }
        for buffer in plan.sources
    ]
    return {
        "output": str(output),
        "tool": {"name": "diffusion-policy", "version": __version__},
        "sources": sources,
        "operations": list(plan.operations),
        "frames": dict(packed),
        "kept": [
            {"source": span.episode.source, "episode": span.episode.number, "name": span.episode.name,
             "steps": list(span.steps), EPISODE_HASH: entry[EPISODE_HASH]}
            for span, entry in zip(plan.kept, described, strict=True)
        ],
        "left_out": [
            {"source": gone.episode.source, "episode": gone.episode.number, "name": gone.episode.name,
             "steps": list(gone.steps), "why": gone.why}
            for gone in plan.left_out
        ],
        CONTENT_HASH: content_sha256([entry[EPISODE_HASH] for entry in described]),
        "next": command("verify_converted_data", "--zarr-path", output),
    }  # fmt: skip
