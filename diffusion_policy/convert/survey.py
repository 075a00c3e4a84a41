"""The survey of the source: which episodes are converted, whether each is valid, and which of its steps are kept.

Only the first frame of each episode is decoded here, so a bad episode is found within seconds, not after half
an hour of decoding. An opened episode is released at once; only a `Plan` of a few hundred bytes is kept.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffusion_policy.convert.decoding import decode_picture
from diffusion_policy.convert.ledger import Dropped, EpisodeEntry, runs
from diffusion_policy.convert.settings import ConversionError, ConversionSettings
from diffusion_policy.dataset.replay_buffer import ACTION_KEY, TIMESTAMP_KEY
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.images import FrameKind, mixture
from diffusion_policy.paths import PathError
from diffusion_policy.recording import FRAME_SIZE_KEY, ArrayNames, Recording, image_runs
from diffusion_policy.spec import episode_number
from diffusion_policy.trajectory import NO_IMAGE

logger = logging.getLogger(__name__)

ALREADY_THERE = "already in the dataset"
NOT_SELECTED = "not selected"
ACCEPT_MIXED = (
    "convert each kind separately, or stretch all of them to one size with --mixed-frames accept (EXIF is applied)"
)
# Size in pixels at which a frame is decoded if only its kind is needed.
_THUMBNAIL = (80, 45)


@dataclass(frozen=True)
class Plan:
    """An episode to convert.

    Attributes:
        path: its folder, or the equivalent of one.
        entry: its entry in the ledger, with the kept steps.
        cameras: names of its cameras.
        names: its other arrays, and the names of their numbers.
        fingerprint: fingerprint of the names, sizes and times of its files.
        first_frames: per camera, the kind of its first frame.
    """

    path: Path
    entry: EpisodeEntry
    cameras: tuple[str, ...]
    names: ArrayNames
    fingerprint: str
    first_frames: Mapping[str, FrameKind]


@dataclass(frozen=True)
class Survey:
    """The content of the source: plans of episodes to convert, and entries of the others."""

    plans: tuple[Plan, ...]
    left_out: tuple[EpisodeEntry, ...]


def name_of(file: Path, plan: Plan) -> str:
    """Returns the name of an episode's file in the ledger, beginning with the episode's folder."""
    return str(file.relative_to(plan.path.parent))


def survey(settings: ConversionSettings, existing: Sequence[EpisodeEntry] = ()) -> Survey:
    """Opens and checks every episode to convert.

    Args:
        settings: settings of the conversion.
        existing: episodes that are already in the dataset.

    Raises:
        TrajectoryError: an episode is bad, unless bad ones are to be skipped.
        ConversionError: two episodes have the same number, cameras or frames differ, or nothing is left to convert.
        PathError: the source is in a store that cannot be reached.
    """
    _check_size(settings)
    known = frozenset(entry.recording for entry in existing if entry.recording)
    folders = settings.recordings.find()
    _check_numbers(folders)
    chosen = [folder for folder in folders if (episode_number(folder.name) or 0) >= settings.start_episode]
    chosen = chosen[: settings.max_episodes]
    taking_part = set(chosen)
    plans: list[Plan] = []
    left_out: list[EpisodeEntry] = []
    for folder in folders:
        number = episode_number(folder.name) or 0
        if folder not in taking_part:
            early = number < settings.start_episode
            reason = f"before episode {settings.start_episode}" if early else f"beyond {settings.max_episodes} episodes"
            left_out.append(_left_out(folder, f"{NOT_SELECTED}: {reason}"))
            continue
        try:
            plan = plan_episode(settings.recordings.open(folder), settings)
        except PathError:  # not a fault of the episode
            raise
        except WorkspaceError as error:
            if settings.on_error == "stop":
                raise
            logger.warning("left out %s: %s", folder.name, error)
            left_out.append(_left_out(folder, str(error)))
            continue
        if plan.entry.recording in known:
            left_out.append(plan.entry.left_out(ALREADY_THERE))
        else:
            plans.append(plan)
    if not any(entry.reason == ALREADY_THERE for entry in left_out):
        _check_plans(plans, left_out, settings)
    _check_frames(plans, existing, settings)
    return Survey(tuple(plans), tuple(left_out))


def _left_out(folder: Path, reason: str) -> EpisodeEntry:
    return EpisodeEntry(folder.name, episode_number(folder.name) or 0, source=folder.parent.name, reason=reason)


def plan_episode(recording: Recording, settings: ConversionSettings) -> Plan:
    """Decides which steps of an episode the dataset will hold.

    Raises:
        ConversionError: steps in the middle have no image, a camera has the name of another array, no
            step is left, or the gripper is to be commanded as measured but is not measured.
        TrajectoryError: the first frame of a camera does not decode.
    """
    _check_names(recording, settings)
    spans = image_runs(recording.image_index)
    if len(spans) > 1 and settings.gaps == "refuse":
        raise ConversionError(
            f"{recording.path}: steps {spans[0][1]} to {spans[1][0] - 1} have no image, but steps before and after do; "
            "--gaps split makes it two episodes"
        )
    # A step's command may be recorded some steps later, so the last steps have none.
    ahead = settings.gripper_lead + (settings.gripper_command == "next-measured")
    gaps = _gaps(recording, settings.split_at_gap)
    edges = [0, *(step + 1 for step, _ in gaps), recording.n_steps]
    parts = [
        (max(start, first), min(end, last - ahead)) for start, end in spans for first, last in itertools.pairwise(edges)
    ]
    kept = tuple((start, end) for start, end in parts if end > start)
    if not kept:
        raise ConversionError(f"{recording.path}: none of its {recording.n_steps} steps is left")
    entry = EpisodeEntry(
        name=recording.path.name,
        number=recording.number,
        source=recording.path.parent.name,
        recording=recording.content_sha256(),
        kept=kept,
        steps=recording.n_recorded,
        dropped_steps=_dropped_steps(recording, kept),
        frames={camera: len(numbers) for camera, numbers in recording.frame_numbers.items()},
        dropped_frames=_dropped_frames(recording, kept),
        split_at=gaps,
        metadata=recording.metadata.as_json(),
        notes=(*recording.notes, *(f"split after step {step}: {seconds:.3g} s to the next" for step, seconds in gaps)),
    )
    cameras = tuple(recording.frame_numbers)
    first = {camera: _kind(recording, kept[0][0], camera) for camera in cameras}
    return Plan(recording.path, entry, cameras, recording.names, recording.fingerprint(), first)


def _check_names(recording: Recording, settings: ConversionSettings) -> None:
    """Refuses cameras named like another array, and an unmeasured gripper if it is to be commanded as measured."""
    names = recording.names
    clashing = {*names.states, ACTION_KEY, TIMESTAMP_KEY}.intersection(recording.frame_numbers)
    if clashing:
        raise ConversionError(f"{recording.path}: camera {clashing.pop()!r} has the name of another array; rename it")
    if settings.gripper_command != "next-measured":
        return
    grippers = [names.action[column] for column in names.action_layout.gripper_columns]
    unmeasured = [name for name in grippers if names.state_column(name) is None]
    if unmeasured or not grippers:
        problem = f"{', '.join(unmeasured)} is not measured" if unmeasured else "its action has no gripper"
        raise ConversionError(f"{recording.path}: {problem}; convert with --gripper-command recorded")


def _gaps(recording: Recording, limit: float | None) -> tuple[tuple[int, float], ...]:
    """Returns each step that is followed by a gap of more than `limit` seconds, and the gap's seconds."""
    if limit is None:
        return ()
    seconds = np.diff(recording.timestamp)
    return tuple((int(step), float(seconds[step])) for step in np.flatnonzero(seconds > limit))


def _kind(recording: Recording, step: int, camera: str) -> FrameKind:
    picture = next(next(recording.frames([step], camera, 1)).pictures())
    decoded = decode_picture(picture, *_THUMBNAIL, "fast")
    return FrameKind(*decoded.size, decoded.orientation, first=str(picture.name.relative_to(recording.path.parent)))


def _dropped_steps(recording: Recording, kept: tuple[tuple[int, int], ...]) -> tuple[Dropped, ...]:
    keeps = {step for start, end in kept for step in range(start, end)}
    dropped = [step for step in range(recording.n_steps) if step not in keeps]
    blind = [step for step in dropped if recording.image_index[step] == NO_IMAGE]
    late = [step for step in dropped if recording.image_index[step] != NO_IMAGE]
    without = list(range(recording.n_steps, recording.n_recorded))
    return (
        *runs(blind, "no image"),
        *runs(late, "its gripper command would be beyond the end"),
        *runs(without, "it has no command"),
    )


def _dropped_frames(recording: Recording, kept: tuple[tuple[int, int], ...]) -> dict[str, tuple[Dropped, ...]]:
    shown = {int(index) for start, end in kept for index in recording.image_index[start:end]}
    late = set(recording.image_index.tolist()) - shown
    return {
        camera: (
            *runs(sorted(set(numbers) - shown - late), "no step shows it"),
            *runs(sorted(late.intersection(numbers)), "its step was dropped"),
        )
        for camera, numbers in recording.frame_numbers.items()
    }


def _check_size(settings: ConversionSettings) -> None:
    """Refuses a resolution that differs from the one that the format's policies are trained on."""
    size = settings.recordings.account.get(FRAME_SIZE_KEY)
    if size and tuple(size) != settings.resolution:
        width, height = settings.resolution
        raise ConversionError(
            f"{settings.source}: resolution {width} {height}; policies of these recordings see {size[0]} x {size[1]} "
            f"pixels: add --resolution {size[0]} {size[1]}"
        )


def _check_numbers(folders: list[Path]) -> None:
    numbers = Counter(episode_number(folder.name) for folder in folders)
    twice = [folder.name for folder in folders if numbers[episode_number(folder.name)] > 1]
    if twice:
        raise ConversionError(f"{folders[0].parent}: two episodes have the same number: {', '.join(twice)}; rename one")


def _check_frames(plans: Sequence[Plan], existing: Sequence[EpisodeEntry], settings: ConversionSettings) -> None:
    """Compares episodes by their first frames; the frames within each are compared when all are decoded."""
    cameras: dict[str, list[FrameKind]] = defaultdict(list)
    for entry in existing:
        for camera, (width, height) in entry.frame_size.items():
            first = f"{entry.name} in the dataset"
            cameras[camera] += entry.frame_kinds.get(camera, (FrameKind(width, height, first=first),))
    for plan in plans:
        for camera, kind in plan.first_frames.items():
            cameras[camera].append(replace(kind, count=plan.entry.n_kept))
    mixed = mixture(cameras)
    if mixed is not None and settings.mixed_frames == "refuse":
        raise ConversionError(f"{settings.source}: {mixed}; {ACCEPT_MIXED}")


def _check_plans(plans: list[Plan], left_out: list[EpisodeEntry], settings: ConversionSettings) -> None:
    bad = [entry for entry in left_out if not (entry.reason or "").startswith(NOT_SELECTED)]
    if not plans and bad:
        raise ConversionError(
            f"{settings.source}: no episode is left to convert: {len(bad)} were left out, the first: {bad[0].reason}"
        )
    if not plans:
        raise ConversionError(
            f"{settings.source}: no episode is left to convert (from number {settings.start_episode} on, "
            f"at most {settings.max_episodes or 'all'})"
        )
    for plan in plans[1:]:
        if plan.cameras != plans[0].cameras:
            raise ConversionError(
                f"{plan.path} has cameras {', '.join(plan.cameras)}; {plans[0].path.name} has "
                f"{', '.join(plans[0].cameras)}: a dataset holds the same cameras throughout"
            )
