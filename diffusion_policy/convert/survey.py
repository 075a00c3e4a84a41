"""The first look at the source: which episodes take part, whether each can be trusted, which of its steps are kept.

Only the first frame of each episode is decoded here, so that a bad episode is known within seconds and not after half
an hour of decoding. An opened episode is forgotten at once; what stays is a `Plan` of a few hundred bytes for each.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffusion_policy.convert.decoding import read_recorded
from diffusion_policy.convert.ledger import Dropped, EpisodeEntry, runs
from diffusion_policy.convert.settings import ConversionError, ConversionSettings
from diffusion_policy.dataset.replay_buffer import ACTION_KEY, GRIPPER_KEY, POSE_KEY, TIMESTAMP_KEY
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.images import FrameKind, mixture
from diffusion_policy.places import PlaceError, reaching, read_bytes
from diffusion_policy.spec import episode_number
from diffusion_policy.trajectory import NO_IMAGE, Trajectory, find_trajectories

logger = logging.getLogger(__name__)

ALREADY_THERE = "already in the dataset"
NOT_SELECTED = "not selected"
ACCEPT_MIXED = (
    "convert each kind by itself, or stretch all of them to one size with --mixed-frames accept (EXIF is applied)"
)
# A frame is decoded so small, pixels, where only its kind is asked for.
_THUMBNAIL = (80, 45)
# Arrays of the dataset that a camera cannot be called.
_RESERVED = {POSE_KEY, GRIPPER_KEY, ACTION_KEY, TIMESTAMP_KEY}


@dataclass(frozen=True)
class Plan:
    """An episode that takes part.

    Attributes:
        path: its folder.
        entry: its line in the ledger, with the steps that are kept.
        cameras: names of its cameras.
        fingerprint: of names, sizes and times of the files it consists of.
        first_frames: per camera, the kind of the first frame that it shows.
    """

    path: Path
    entry: EpisodeEntry
    cameras: tuple[str, ...]
    fingerprint: str
    first_frames: Mapping[str, FrameKind]


@dataclass(frozen=True)
class Survey:
    """What the source holds: episodes that take part, and entries of those that do not."""

    plans: tuple[Plan, ...]
    left_out: tuple[EpisodeEntry, ...]


def name_of(file: Path, plan: Plan) -> str:
    """A file of an episode as the ledger names it, beginning with the episode's folder."""
    return str(file.relative_to(plan.path.parent))


def survey(settings: ConversionSettings, existing: Sequence[EpisodeEntry] = ()) -> Survey:
    """Open and check every episode that takes part.

    Args:
        settings: of the conversion.
        existing: episodes that are in the dataset already.

    Raises:
        TrajectoryError: a bad episode, unless they are to be skipped.
        ConversionError: two episodes with one number, cameras or frames that differ, or nothing left to convert.
        PlaceError: the source lies in a store that cannot be reached.
    """
    known = frozenset(entry.recording for entry in existing if entry.recording)
    folders = find_trajectories(settings.source)
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
            plan = plan_episode(settings.open(folder), settings)
        except PlaceError:  # says nothing of the episode
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


def plan_episode(trajectory: Trajectory, settings: ConversionSettings) -> Plan:
    """Decide which steps of an episode the dataset will hold.

    Raises:
        ConversionError: steps without an image lie between steps with one, a camera bears the name of another array, or
            no step is left.
        TrajectoryError: the first frame of a camera does not decode.
    """
    clashing = _RESERVED.intersection(trajectory.cameras)
    if clashing:
        raise ConversionError(
            f"{trajectory.path}: camera {clashing.pop()!r} bears the name of another array; rename it"
        )
    seen = trajectory.image_runs()
    if len(seen) > 1 and settings.gaps == "refuse":
        raise ConversionError(
            f"{trajectory.path}: steps {seen[0][1]} to {seen[1][0] - 1} have no image, steps before and after have; "
            "--gaps split makes two episodes of it"
        )
    # The command that a step is given may be recorded only steps later: the last ones have none.
    ahead = settings.gripper_lead + (settings.gripper_command == "next-measured")
    gaps = _gaps(trajectory, settings.split_at_gap)
    edges = [0, *(step + 1 for step, _ in gaps), trajectory.n_steps]
    parts = [
        (max(start, first), min(end, last - ahead)) for start, end in seen for first, last in itertools.pairwise(edges)
    ]
    kept = tuple((start, end) for start, end in parts if end > start)
    if not kept:
        raise ConversionError(f"{trajectory.path}: none of its {trajectory.n_steps} steps is left")
    entry = EpisodeEntry(
        name=trajectory.path.name,
        number=trajectory.number,
        source=trajectory.path.parent.name,
        recording=hashlib.sha256(read_bytes(trajectory.path / "data.pkl")).hexdigest(),
        kept=kept,
        steps=trajectory.n_steps,
        dropped_steps=_dropped_steps(trajectory, kept),
        frames={camera: len(files) for camera, files in trajectory.frames.items()},
        dropped_frames=_dropped_frames(trajectory, kept),
        split_at=gaps,
        notes=(*trajectory.notes, *(f"split after step {step}: {seconds:.3g} s to the next" for step, seconds in gaps)),
    )
    first = {camera: trajectory.frame_path(kept[0][0], camera) for camera in trajectory.cameras}
    return Plan(
        trajectory.path,
        entry,
        trajectory.cameras,
        fingerprint(trajectory),
        {camera: _kind(file, trajectory.path.parent) for camera, file in first.items()},
    )


def _gaps(trajectory: Trajectory, limit: float | None) -> tuple[tuple[int, float], ...]:
    """Each step that is followed by a gap of more than `limit` seconds, and its seconds."""
    if limit is None:
        return ()
    seconds = np.diff(trajectory.timestamp)
    return tuple((int(step), float(seconds[step])) for step in np.flatnonzero(seconds > limit))


def _kind(file: Path, source: Path) -> FrameKind:
    decoded = read_recorded(file, *_THUMBNAIL, "fast")
    return FrameKind(*decoded.size, decoded.orientation, first=str(file.relative_to(source)))


def fingerprint(trajectory: Trajectory) -> str:
    """Changes when a file of the episode does: hash of names, sizes and times of modification."""
    digest = hashlib.sha256()
    files = [trajectory.path / "data.pkl", *(file for files in trajectory.frames.values() for file in files.values())]
    with reaching(trajectory.path):
        for file in files:
            status = file.stat()
            digest.update(f"{file.relative_to(trajectory.path)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _dropped_steps(trajectory: Trajectory, kept: tuple[tuple[int, int], ...]) -> tuple[Dropped, ...]:
    keeps = {step for start, end in kept for step in range(start, end)}
    dropped = [step for step in range(trajectory.n_steps) if step not in keeps]
    blind = [step for step in dropped if trajectory.image_index[step] == NO_IMAGE]
    late = [step for step in dropped if trajectory.image_index[step] != NO_IMAGE]
    return (*runs(blind, "no image"), *runs(late, "its gripper command lies beyond the end"))


def _dropped_frames(trajectory: Trajectory, kept: tuple[tuple[int, int], ...]) -> dict[str, tuple[Dropped, ...]]:
    shown = {int(index) for start, end in kept for index in trajectory.image_index[start:end]}
    late = set(trajectory.image_index.tolist()) - shown
    return {
        camera: (
            *runs(trajectory.unused_frames(camera), "no step shows it"),
            *runs(sorted(late.intersection(files)), "its step was dropped"),
        )
        for camera, files in trajectory.frames.items()
    }


def _check_numbers(folders: list[Path]) -> None:
    numbers = Counter(episode_number(folder.name) for folder in folders)
    twice = [folder.name for folder in folders if numbers[episode_number(folder.name)] > 1]
    if twice:
        raise ConversionError(f"{folders[0].parent}: two episodes have one number: {', '.join(twice)}; rename one")


def _check_frames(plans: Sequence[Plan], existing: Sequence[EpisodeEntry], settings: ConversionSettings) -> None:
    """Every episode against the others by its first frame; the frames of each are compared when all are decoded."""
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
