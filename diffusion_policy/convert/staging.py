"""Finished episodes, staged next to the output, from which an interrupted conversion resumes.

    <output>.partial/          (in the local scratch folder, if the output is in an object store)
      settings.json          the settings that decide an episode's content
      episode_0007/
        frames.zarr/<camera>   the kept frames, packed as in the dataset
        rows.npz               the kept rows of the other arrays, and a digest per frame
        entry.json             written last: the episode is finished
      dataset/               see assembly

Nothing here is needed once the dataset is in place.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from diffusion_policy.convert.frames import FRAMES_IN_BLOCK, Block, BlockReport
from diffusion_policy.convert.ledger import EpisodeEntry, entry_as_json, entry_from_json
from diffusion_policy.convert.placement import LOCK, SETTINGS, clear_work
from diffusion_policy.convert.publication import announce
from diffusion_policy.convert.settings import ConversionError, ConversionSettings
from diffusion_policy.convert.survey import ACCEPT_MIXED, Plan, name_of
from diffusion_policy.dataset.image_codecs import ImageCodec, image_codec
from diffusion_policy.dataset.replay_buffer import ACTION_KEY, TIMESTAMP_KEY, create_array, image_layout
from diffusion_policy.images import FrameKind, kinds_of, mixture
from diffusion_policy.paths import is_remote
from diffusion_policy.recording import ArrayNames, Recording
from diffusion_policy.storage import write_json
from diffusion_policy.trajectory import TrajectoryError

logger = logging.getLogger(__name__)

Rows = Mapping[str, NDArray[Any]]
_DIGESTS = "digests of "


@dataclass(frozen=True)
class StagedEpisode:
    """A finished episode in its staging folder."""

    folder: Path
    entry: EpisodeEntry
    cameras: tuple[str, ...]
    names: ArrayNames

    def rows(self) -> dict[str, NDArray[Any]]:
        """Returns the kept rows of each array except the images."""
        with np.load(self.folder / "rows.npz") as rows:
            return {key: rows[key] for key in rows.files if not key.startswith(_DIGESTS)}

    def digests(self, camera: str) -> NDArray[np.uint8]:
        """Returns (n, 32) SHA-256 of each kept frame."""
        with np.load(self.folder / "rows.npz") as rows:
            return np.asarray(rows[_DIGESTS + camera])

    def frames(self, camera: str) -> Path:
        """Returns the path of the zarr array of a camera's kept frames."""
        return self.folder / "frames.zarr" / camera


def finished_episodes(settings: ConversionSettings) -> int | None:
    """Returns how many finished episodes a conversion with these settings would resume from; None without any.

    Episodes whose recordings have changed since are counted as well.
    """
    file = settings.partial / SETTINGS
    if not file.is_file() or _differing(file, settings):
        return None
    return len(list(settings.partial.glob("*/entry.json")))


def _differing(file: Path, settings: ConversionSettings) -> list[str]:
    """Returns the names of the settings in which unfinished work and a conversion differ."""
    stored, content = json.loads(file.read_text(encoding="utf-8")), settings.content()
    return [key for key in {**stored, **content} if stored.get(key) != content.get(key)]


class Staging:
    """The folder of unfinished work of one conversion."""

    def __init__(self, settings: ConversionSettings) -> None:
        self.settings = settings
        self.path = settings.partial
        # A shard can only be packed when all its frames are known; until then its frames wait unpacked, one per file.
        self.codec: ImageCodec = settings.codec if settings.shard is None else image_codec("blosc")

    @contextmanager
    def open(self) -> Iterator[None]:
        """Locks the folder for this conversion; discards its content unless it is to be resumed.

        Raises:
            ConversionError: another conversion is writing there, or the work to resume was done with other settings.
            PathError: the output is a URL whose store cannot be reached, or refuses.
        """
        with self.locked():
            self._begin()
            if is_remote(self.settings.output):
                announce(self.settings)
            yield

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder for this conversion."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConversionError(
                    f"{self.path}: another conversion is writing there; wait for it or stop it"
                ) from error
            yield

    def _begin(self) -> None:
        file = self.path / SETTINGS
        if file.is_file() and self.settings.resume:
            differing = _differing(file, self.settings)
            if differing:
                raise ConversionError(
                    f"{self.path} was started with other settings ({', '.join(differing)}); resume with the same "
                    "ones, or start over without --resume"
                )
            return
        for leftover in self.path.iterdir():
            if leftover.is_dir():
                logger.warning("unfinished work is discarded: %s", leftover)
        clear_work(self.path)
        write_json(file, self.settings.content())

    def finished(self, plan: Plan) -> StagedEpisode | None:
        """Returns the episode, if it was finished earlier and its source has not changed since."""
        folder = self.path / plan.path.name
        file = folder / "entry.json"
        if not file.is_file():
            return None
        state = json.loads(file.read_text(encoding="utf-8"))
        if state["fingerprint"] != plan.fingerprint:
            return None
        return StagedEpisode(folder, entry_from_json(state["entry"]), plan.cameras, plan.names)

    def begin(self, plan: Plan) -> list[Block]:
        """Allocates an episode and splits it into blocks."""
        folder = self.path / plan.path.name
        (folder / "entry.json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        recording = self.settings.recordings.open(plan.path)
        steps = [step for start, end in plan.entry.kept for step in range(start, end)]
        group = zarr.open_group(str(folder / "frames.zarr"), mode="w", zarr_format=self.settings.zarr_format)  # type: ignore[arg-type]
        width, height = self.settings.resolution
        blocks = []
        for camera in plan.cameras:
            create_array(group, camera, image_layout(width, height, self.codec), len(steps))
            start = 0
            for frames in recording.frames(steps, camera, FRAMES_IN_BLOCK):
                block = Block(
                    frames=frames,
                    array=folder / "frames.zarr" / camera,
                    start=start,
                    width=width,
                    height=height,
                    decode=self.settings.decode,
                    lossless=self.codec.lossless,
                )
                blocks.append(block)
                start += len(frames)
        np.savez(folder / "rows.npz", **recorded_rows(recording, steps, self.settings))  # type: ignore[arg-type]
        return blocks

    def finish(self, plan: Plan, reports: Mapping[Block, BlockReport]) -> StagedEpisode:
        """Records that all blocks of an episode are written.

        Raises:
            TrajectoryError: its frames differ in size or orientation, and mixed ones are not accepted.
        """
        folder = self.path / plan.path.name
        by_camera = {camera: folder / "frames.zarr" / camera for camera in plan.cameras}
        digests: dict[str, NDArray[np.uint8]] = {}
        kinds: dict[str, tuple[FrameKind, ...]] = {}
        notes: dict[str, dict[str, int]] = {}
        agreement: dict[str, float] = {}
        for camera, array in by_camera.items():
            parts = [report for block, report in sorted(reports.items(), key=_first_row) if block.array == array]
            looks = list({look.file: look for part in parts for look in part.looks}.values())
            kinds[camera] = kinds_of(replace(look.kind, first=name_of(look.file, plan)) for look in looks)
            noted = Counter(str(note) for look in looks for note in look.notes)
            if noted:
                notes[camera] = dict(noted)
            joined = b"".join(digest for part in parts for digest in part.digests)
            digests[_DIGESTS + camera] = np.frombuffer(joined, dtype=np.uint8).reshape(-1, 32)
            measured = [part.psnr_db for part in parts if part.psnr_db is not None]
            if measured:
                agreement[camera] = round(min(measured), 2)
        with np.load(folder / "rows.npz") as rows:
            recorded = {key: rows[key] for key in rows.files}
        np.savez(folder / "rows.npz", **recorded, **digests)  # type: ignore[arg-type]
        mixed = mixture(kinds)
        if mixed is not None and self.settings.mixed_frames == "refuse":
            raise TrajectoryError(f"{plan.path}: {mixed}; {ACCEPT_MIXED}")
        sizes = {camera: (found[0].width, found[0].height) for camera, found in kinds.items()}
        entry = replace(
            plan.entry,
            frame_size=sizes,
            frame_kinds=kinds,
            frame_notes=notes,
            notes=(*plan.entry.notes, *([] if mixed is None else [mixed])),
            psnr_db=agreement,
        )
        write_json(folder / "entry.json", {"fingerprint": plan.fingerprint, "entry": entry_as_json(entry)})
        return StagedEpisode(folder, entry, plan.cameras, plan.names)


def _first_row(item: tuple[Block, BlockReport]) -> int:
    return item[0].start


def recorded_rows(recording: Recording, steps: list[int], settings: ConversionSettings) -> Rows:
    """Returns rows of the dataset's low-dimensional arrays at these steps, with quaternions as recorded.

    `gripper_command` and `gripper_lead` decide which command a step gets; the survey has dropped steps at the end
    that would have none, and refused recordings without a measured gripper if that is to be the command.
    """
    at = np.asarray(steps)
    states, action = recording.states, recording.action
    commands = action[at]
    ahead = settings.gripper_lead + (settings.gripper_command == "next-measured")
    for column in recording.names.action_layout.gripper_columns:
        commanded = action[:, column]
        measured = recording.names.state_column(recording.names.action[column])
        if settings.gripper_command == "next-measured" and measured is not None:
            commanded = states[measured[0]][:, measured[1]]
        commands[:, column] = commanded[at + ahead]
    return {
        **{key: values[at] for key, values in states.items()},
        ACTION_KEY: commands,
        TIMESTAMP_KEY: recording.timestamp[at],
    }
