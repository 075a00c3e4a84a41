"""Makes one dataset of staged episodes, renamed into place when complete (`publication` sends it to an object store).

Frames are already packed: their files are linked into the dataset, not read again, so this takes seconds. The
staged files, and an existing dataset to which episodes are added, stay untouched until the end; a process killed
here assembles again when it is resumed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from diffusion_policy import __version__
from diffusion_policy.convert.existing import HEMISPHERE, ExistingDataset
from diffusion_policy.convert.frames import look_again
from diffusion_policy.convert.ledger import ConversionReport, EpisodeEntry
from diffusion_policy.convert.placement import leave_frames, move_frames, move_into_place
from diffusion_policy.convert.publication import publish
from diffusion_policy.convert.quaternions import majority_hemisphere, turn_toward
from diffusion_policy.convert.settings import ConversionSettings
from diffusion_policy.convert.staging import StagedEpisode
from diffusion_policy.dataset.content_hash import (
    ARRAY_HASHES,
    CONTENT_HASH,
    CONVERSION,
    EPISODE_HASH,
    EPISODES,
    array_sha256,
    content_sha256,
    episode_sha256,
)
from diffusion_policy.dataset.episode_metadata import EpisodeMetadata
from diffusion_policy.dataset.image_codecs import DECODER
from diffusion_policy.dataset.replay_buffer import (
    ACTION_KEY,
    SEMANTICS,
    TIMESTAMP_KEY,
    ArrayLayout,
    ReplayBuffer,
    image_layout,
    low_dim_layout,
)
from diffusion_policy.paths import as_path, is_remote
from diffusion_policy.progress import Progress, no_progress
from diffusion_policy.recording import ArrayNames
from diffusion_policy.spec import ActionLayout, action_semantics
from diffusion_policy.storage import write_json

TOOL = {"name": "diffusion-policy", "version": __version__, "decoder": DECODER}
Rows = Mapping[str, NDArray[Any]]
# (4,) for one arm, otherwise (R, 4), a row for each rotation in the action.
Hemisphere = NDArray[np.float64]


def assemble(
    staged: Sequence[StagedEpisode],
    left_out: Sequence[EpisodeEntry],
    settings: ConversionSettings,
    existing: ExistingDataset | None = None,
    on_progress: Progress = no_progress,
) -> ConversionReport:
    """Makes a dataset of all staged episodes, after those of an existing one, and moves it into place with its ledger.

    Raises:
        PathError: its path is a URL whose store cannot be reached; the dataset can be sent there later.
    """
    shutil.rmtree(settings.partial / "dataset", ignore_errors=True)
    writer = _Writer(_create(staged, settings, existing), staged[0].cameras)
    episodes: list[Mapping[str, Any]] = []
    entries: list[EpisodeEntry] = []
    if existing is not None:
        writer.add_existing(existing.buffer)
        episodes += existing.episodes
        entries += existing.report.episodes
    names = staged[0].names
    layouts = _layouts(names)
    hemisphere = _hemisphere(staged, layouts, settings, existing)
    added: list[EpisodeEntry] = []
    for episode in staged:
        rows, flipped = _turn(episode.rows(), layouts, hemisphere)
        lengths = [end - start for start, end in episode.entry.kept]
        first = writer.n_rows
        writer.add(rows, {camera: episode.frames(camera) for camera in episode.cameras}, lengths)
        digests, psnr_db = _stored_frames(episode, writer.buffer, first, settings)
        episodes += _describe(episode, rows, digests)
        added.append(replace(episode.entry, flipped=flipped, psnr_db=psnr_db))
    writer.finish()
    report = ConversionReport(
        output=settings.output,
        episodes=(*entries, *sorted([*added, *left_out], key=lambda entry: (entry.number, entry.name))),
        settings=settings.as_json(),
        tool=TOOL,
        content_sha256=content_sha256([episode[EPISODE_HASH] for episode in episodes]),
        account=settings.recordings.account,
    )
    writer.buffer.root.attrs.update(
        {
            SEMANTICS: action_semantics(names.action, names.units),
            CONTENT_HASH: report.content_sha256,
            EPISODES: [dict(episode) for episode in episodes],
            HEMISPHERE: None if hemisphere is None else hemisphere.tolist(),
            CONVERSION: json.loads(json.dumps(report.as_json())),
        }
    )
    _give_name(report, settings, on_progress)
    return report


def _give_name(report: ConversionReport, settings: ConversionSettings, on_progress: Progress) -> None:
    """Moves the complete dataset and its ledger into place."""
    if is_remote(settings.output):
        publish(settings, report.as_json(), on_progress)
    else:
        write_json(settings.ledger_file, report.as_json())
        move_into_place(settings.partial / "dataset", settings)


def _layouts(names: ArrayNames) -> dict[str, ActionLayout]:
    """Returns the layout of each array with a rotation."""
    layouts = {key: ActionLayout.of(of, names.units) for key, of in {**names.states, ACTION_KEY: names.action}.items()}
    return {key: layout for key, layout in layouts.items() if layout.labels("rotation")}


def arrays_of(cameras: Sequence[str], names: ArrayNames, settings: ConversionSettings) -> dict[str, ArrayLayout]:
    """Returns the arrays of a dataset with these cameras and names."""
    width, height = settings.resolution
    return {
        **{camera: image_layout(width, height, settings.codec, settings.shard) for camera in cameras},
        **{key: low_dim_layout(of) for key, of in names.states.items()},
        ACTION_KEY: low_dim_layout(names.action),
        TIMESTAMP_KEY: ArrayLayout((), np.float64),
    }


def _create(
    staged: Sequence[StagedEpisode], settings: ConversionSettings, existing: ExistingDataset | None
) -> ReplayBuffer:
    """Creates the empty dataset, with its arrays allocated."""
    n_steps = sum(episode.entry.n_kept for episode in staged) + (existing.buffer.n_steps if existing else 0)
    arrays = arrays_of(staged[0].cameras, staged[0].names, settings)
    target = settings.partial / "dataset"
    return ReplayBuffer.create(target, arrays, zarr_format=settings.zarr_format, n_steps=n_steps)


def _hemisphere(
    staged: Sequence[StagedEpisode],
    layouts: Mapping[str, ActionLayout],
    settings: ConversionSettings,
    existing: ExistingDataset | None,
) -> Hemisphere | None:
    """Returns the hemisphere to turn quaternions to: the existing dataset's, otherwise the one with most of them."""
    if settings.quaternion_sign == "keep" or not layouts:
        return None
    if existing is not None:
        return existing.hemisphere
    arms = {arm: None for layout in (layouts.get(ACTION_KEY), *layouts.values()) if layout for arm in _arms(layout)}
    rotations = [
        majority_hemisphere(
            layout.rotations(rows[key])[:, _arms(layout).index(arm)]
            for rows in _all_rows(staged)
            for key, layout in layouts.items()
            if arm in _arms(layout)
        )
        for arm in arms
    ]
    return rotations[0] if len(rotations) == 1 else np.stack(rotations)


def _arms(layout: ActionLayout) -> tuple[str, ...]:
    return layout.labels("rotation")


def _all_rows(staged: Sequence[StagedEpisode]) -> Iterator[Rows]:
    return (episode.rows() for episode in staged)


def _turn(
    rows: Rows, layouts: Mapping[str, ActionLayout], hemisphere: Hemisphere | None
) -> tuple[Rows, dict[str, int]]:
    """Returns the rows with the dataset's quaternion signs, and how many were flipped in each array."""
    if hemisphere is None:
        return rows, {}
    turned = {key: turn_toward(rows[key], layout, hemisphere) for key, layout in layouts.items()}
    return {**rows, **{key: poses for key, (poses, _) in turned.items()}}, {key: n for key, (_, n) in turned.items()}


def _stored_frames(
    episode: StagedEpisode, buffer: ReplayBuffer, first: int, settings: ConversionSettings
) -> tuple[dict[str, NDArray[np.uint8]], dict[str, float]]:
    """Returns digests (n, 32) of an episode's frames as a reader gets them, and their lowest PSNR, per camera.

    Staged frames are as they will be read, unless a lossy codec packs them only now, in shards.
    """
    digests = {camera: episode.digests(camera) for camera in episode.cameras}
    psnr_db = dict(episode.entry.psnr_db)
    if settings.shard is None or settings.codec.lossless:
        return digests, psnr_db
    for camera in episode.cameras:
        staged = zarr.open_array(str(episode.frames(camera)), mode="r")
        digests[camera], lowest = look_again(buffer[camera], staged, first)
        psnr_db[camera] = round(min(lowest, psnr_db.get(camera, lowest)), 2)
    return digests, psnr_db


def _describe(episode: StagedEpisode, rows: Rows, digests: Mapping[str, NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """Returns name, number, recorded steps and hashes of each episode that a recording becomes (several if split)."""
    described, first, metadata = [], 0, EpisodeMetadata.from_json(episode.entry.metadata)
    for start, end in episode.entry.kept:
        part = slice(first, first + end - start)
        first = part.stop
        numbers = {key: values[part] for key, values in rows.items()}
        frames = {camera: [digest.tobytes() for digest in found[part]] for camera, found in digests.items()}
        hashes = {EPISODE_HASH: episode_sha256(numbers, frames), ARRAY_HASHES: array_sha256(numbers, frames)}
        named = {"name": episode.entry.name, "number": episode.entry.number, "recording": episode.entry.recording}
        described.append({**named, "steps": [start, end], **metadata.within(start, end).as_json(), **hashes})
    return described


class _Writer:
    """Fills a dataset episode by episode; low-dimensional rows are written one chunk at a time."""

    def __init__(self, buffer: ReplayBuffer, cameras: Sequence[str]) -> None:
        self.buffer = buffer
        self._images = {camera: buffer[camera] for camera in cameras}
        self._arrays = {key: buffer[key] for key in buffer.keys if key not in cameras}
        self._waiting: dict[str, list[NDArray[Any]]] = {key: [] for key in self._arrays}
        self._written = 0
        self.n_rows = 0
        self._ends: list[int] = []

    def add_existing(self, existing: ReplayBuffer) -> None:
        """Adds all episodes of another dataset."""
        home = as_path(existing.where)
        for camera, array in self._images.items():
            if is_remote(home):
                leave_frames(home / "data" / camera, existing[camera], array)
            else:
                move_frames(existing[camera], array, 0)
        rows = self._arrays[TIMESTAMP_KEY].chunks[0]
        for start in range(0, existing.n_steps, rows):
            self._add_rows({key: np.asarray(existing[key][start : start + rows]) for key in self._arrays})
        self._ends += existing.episode_ends.tolist()

    def add(self, rows: Rows, frames: Mapping[str, Any], lengths: Sequence[int]) -> None:
        """Adds a staged recording as episodes of these lengths; `frames` has the path of an array per camera."""
        for camera, path in frames.items():
            move_frames(zarr.open_array(str(path), mode="r"), self._images[camera], self.n_rows)
        self._ends += [self.n_rows + int(end) for end in np.cumsum(lengths)]
        self._add_rows(rows)

    def finish(self) -> None:
        """Writes what is still buffered, and where the episodes end."""
        self._flush()
        self.buffer.set_episode_ends(np.asarray(self._ends, dtype=np.int64))

    def _add_rows(self, rows: Rows) -> None:
        for key, waiting in self._waiting.items():
            waiting.append(rows[key])
        self.n_rows += len(rows[TIMESTAMP_KEY])
        if self.n_rows - self._written >= self._arrays[TIMESTAMP_KEY].chunks[0]:
            self._flush()

    def _flush(self) -> None:
        for key, waiting in self._waiting.items():
            if waiting:
                self._arrays[key][self._written : self.n_rows] = np.concatenate(waiting)
                waiting.clear()
        self._written = self.n_rows
