"""Evidence from all steps of a dataset or of recordings, by dimension and by episode.

`dataset_evidence` summarizes a dataset; this is the detail to check before training on a day of recordings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.replay_buffer import ACTION_KEY, TIMESTAMP_KEY, ReplayBuffer
from diffusion_policy.diagnose import ReportError
from diffusion_policy.diagnose.camera_evidence import CameraEvidence, StepRange, look_at_cameras
from diffusion_policy.diagnose.copied_gripper import Copying, copying_of
from diffusion_policy.diagnose.dataset_evidence import STILL_METERS, STILL_RADIANS
from diffusion_policy.diagnose.steps import FloatArray, Steps, arm_steps, finite, steps_of_dataset
from diffusion_policy.gripper_events import OPEN, Event, gripper_events, gripper_states
from diffusion_policy.model.normalizer import SingleFieldLinearNormalizer
from diffusion_policy.progress import Progress, no_progress
from diffusion_policy.recording.contract import true_runs
from diffusion_policy.spec import is_game
from diffusion_policy.timestamps import timestamp_fault

# An arm that moves this much faster between two steps has jumped: a cut recording, or a tracker that slipped.
JUMP_METERS_PER_SECOND, JUMP_DEGREES_PER_SECOND = 1.5, 180.0
# The robot's control period, assumed without time stamps.
DEFAULT_SECONDS = 0.1
# A stretch without motion counts as idle from this length on.
IDLE_SECONDS = 1.0
# A step this many times as long as the median one is a gap in the recording.
GAP = 3.0
# A dimension that the normalizer stretches this much has hardly any range, and may be mere noise.
STRETCHED = 100.0


@dataclass(frozen=True)
class Dimension:
    """One number of a vector, over all steps.

    Attributes:
        key, name: names of the array, and of the number in it.
        low, high, mean, deviation: in its unit.
        is_constant: whether the normalizer does not stretch it, because its range is negligible.
        scale: factor by which the normalizer multiplies it.
    """

    key: str
    name: str
    low: float
    high: float
    mean: float
    deviation: float
    is_constant: bool
    scale: float

    @property
    def is_nearly_constant(self) -> bool:
        """Whether a tiny range is stretched to [-1, 1]."""
        return not self.is_constant and self.scale > STRETCHED


@dataclass(frozen=True)
class Jump:
    """A jump from one step of an episode to the next: in which array, how far, and in what time."""

    episode: str
    step: int
    key: str
    metres: float
    degrees: float
    seconds: float


@dataclass(frozen=True)
class EpisodeEvidence:
    """One episode.

    Attributes:
        name: as recorded.
        steps: number of steps.
        seconds: from the first step to the last; None without times.
        events: events of the commanded gripper, (step in the episode, "open" | "close").
        open_share: share of the steps that command an open gripper; None without a gripper.
        idle: stretches of its steps in which the arm stands still and the gripper keeps its state.
    """

    name: str
    steps: int
    seconds: float | None
    events: tuple[Event, ...]
    open_share: float | None
    idle: tuple[StepRange, ...]


@dataclass(frozen=True)
class Times:
    """Times from step to step within episodes.

    Attributes:
        median_s: median, seconds.
        jitter_ms: standard deviation, without the gaps.
        longest_s: longest, seconds.
        backwards: number of steps at which time does not advance.
        gaps: (episode, step in it, seconds) of steps longer than GAP medians.
        are_seconds: whether the time stamps can be seconds (`timestamps`).
    """

    median_s: float
    jitter_ms: float
    longest_s: float
    backwards: int
    gaps: tuple[tuple[str, int, float], ...]
    are_seconds: bool = True


@dataclass(frozen=True)
class StepEvidence:
    """The evidence from all steps.

    Attributes:
        where: the dataset or folder.
        dimensions: of action and low-dimensional observations.
        episodes: in order.
        refused: recordings that cannot be opened, with the reason.
        notes: notes on odd recordings.
        times: times between steps; None without time stamps, or where no episode has two steps.
        largest_step: (meters, degrees) between two measured poses; None without poses.
        jumps: of measured and commanded poses.
        copying: None without a measured or a commanded gripper.
        cameras: what their frames show.
    """

    where: str
    dimensions: tuple[Dimension, ...]
    episodes: tuple[EpisodeEvidence, ...]
    refused: dict[str, str]
    notes: dict[str, str]
    times: Times | None
    largest_step: tuple[float, float] | None
    jumps: tuple[Jump, ...]
    copying: Copying | None
    cameras: tuple[CameraEvidence, ...]

    @property
    def action_names(self) -> tuple[str, ...]:
        """Of the numbers of an action."""
        return tuple(one.name for one in self.dimensions if one.key == ACTION_KEY)


def look_at_steps(steps: Steps, on_progress: Progress = no_progress) -> StepEvidence:
    """Gathers the evidence; decodes every frame, at reduced size."""
    seconds = _seconds(steps)
    moves = _moves(steps)
    meters, radians = _motion(steps, moves)
    inside = steps.within
    return StepEvidence(
        where=steps.where,
        dimensions=tuple(_dimensions(steps)),
        episodes=_episodes(steps, (meters < STILL_METERS) & (radians < STILL_RADIANS) & bool(moves), seconds),
        refused=dict(steps.refused),
        notes=dict(steps.notes),
        times=_times(steps),
        largest_step=_largest(meters[inside], radians[inside]) if moves and inside.any() else None,
        jumps=tuple(jump for key, move in moves.items() for jump in _jumps(steps, key, *move, seconds)),
        copying=copying_of(steps),
        cameras=look_at_cameras(steps, np.concatenate([[0.0], np.cumsum(meters)]), on_progress),
    )


def idle_ranges(buffer: ReplayBuffer) -> list[tuple[StepRange, ...]]:
    """Returns, by episode, the stretches of at least IDLE_SECONDS in which arm and gripper stand still.

    Raises:
        ReportError: it has no action, or no step, or nothing in it moves an arm.
    """
    steps = steps_of_dataset(buffer)
    moves = _moves(steps)
    if not moves:
        drop = "; convert with --null-actions drop to leave out ticks in which nothing is done"
        names = steps.names[ACTION_KEY]
        raise ReportError(
            f"{steps.where}: a step is {' '.join(names)}, in which no arm moves or stands still; expected poses or "
            f"joints{drop if is_game(names) else ''}"
        )
    meters, radians = _motion(steps, moves)
    still = (meters < STILL_METERS) & (radians < STILL_RADIANS)
    return [episode.idle for episode in _episodes(steps, still, _seconds(steps))]


def _moves(steps: Steps) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Returns, for each array of poses or joints, (N - 1,) meters and radians from step to step."""
    layouts = {key: layout for key in (*steps.measured_keys, ACTION_KEY) if (layout := steps.layout(key)) is not None}
    moves = {key: arm_steps(layout, finite(steps, key)) for key, layout in layouts.items()}
    return {key: move for key, move in moves.items() if move is not None}


def _motion(steps: Steps, moves: Mapping[str, tuple[FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    """Returns the measured motion, or the commanded one, or none; with several arms, of the one that moves most."""
    looked_at = [move for key, move in moves.items() if key != ACTION_KEY] or list(moves.values())
    if not looked_at:
        return np.zeros(steps.n_steps - 1), np.zeros(steps.n_steps - 1)
    meters, radians = zip(*looked_at, strict=True)
    return np.max(meters, axis=0), np.max(radians, axis=0)


def _seconds(steps: Steps) -> FloatArray:
    """Returns (N - 1,) seconds from step to step."""
    times = steps.numbers.get(TIMESTAMP_KEY)
    return np.full(steps.n_steps - 1, DEFAULT_SECONDS) if times is None else np.diff(np.nan_to_num(times))


def _largest(meters: FloatArray, radians: FloatArray) -> tuple[float, float]:
    return float(meters.max()), float(np.degrees(radians.max()))


def _dimensions(steps: Steps) -> list[Dimension]:
    result = []
    for key, names in sorted(steps.names.items()):
        values = np.nan_to_num(steps.numbers[key])
        fitted = SingleFieldLinearNormalizer.create_fit(values)
        scales = fitted.params_dict["scale"].tolist()
        low, high, mean, deviation = (part(values, axis=0) for part in (np.min, np.max, np.mean, np.std))
        for i, name in enumerate(names):
            # A negligible range is the only case in which the normalizer keeps scale 1.
            is_constant = bool(scales[i] == 1 and high[i] - low[i] < 1)
            numbers = (float(low[i]), float(high[i]), float(mean[i]), float(deviation[i]))
            result.append(Dimension(key, name, *numbers, is_constant, scales[i]))
    return result


def _episodes(steps: Steps, still: NDArray[np.bool_], seconds: FloatArray) -> tuple[EpisodeEvidence, ...]:
    stored = steps.commanded_grippers()
    command = None if stored is None else np.nan_to_num(stored).T
    times = steps.numbers.get(TIMESTAMP_KEY)
    states = None if command is None else np.stack([gripper_states(values) for values in command])
    episodes = []
    for name, part in zip(steps.episode_names, steps.slices, strict=True):
        between = slice(part.start, part.stop - 1)
        quiet = still[between].copy()
        if states is not None:
            quiet &= (np.diff(states[:, part]) == 0).all(axis=0)
        elapsed = np.concatenate([[0.0], np.cumsum(seconds[between])])
        events = [] if command is None else [event for values in command for event in gripper_events(values[part])]
        episodes.append(
            EpisodeEvidence(
                name=name,
                steps=part.stop - part.start,
                seconds=None if times is None else float(elapsed[-1]),
                events=tuple(sorted(events)),
                open_share=None if states is None else float((states[:, part] == OPEN).mean()),
                idle=tuple((a, b + 1) for a, b in true_runs(quiet) if elapsed[b] - elapsed[a] >= IDLE_SECONDS),
            )
        )
    return tuple(episodes)


def _times(steps: Steps) -> Times | None:
    inside = steps.within
    if TIMESTAMP_KEY not in steps.numbers or not inside.any():
        return None
    seconds = _seconds(steps)
    median = float(np.median(seconds[inside]))
    gaps = np.flatnonzero(inside & (seconds > GAP * abs(median)))
    usual = seconds[inside & (seconds <= GAP * abs(median))]
    return Times(
        median_s=median,
        jitter_ms=float(usual.std() * 1000),
        longest_s=float(seconds[inside].max()),
        backwards=int((seconds[inside] <= 0).sum()),
        gaps=tuple((*_named(steps, int(at)), float(seconds[at])) for at in gaps),
        are_seconds=timestamp_fault(np.nan_to_num(steps.numbers[TIMESTAMP_KEY]), "", steps.episode_ends) is None,
    )


def _named(steps: Steps, step: int) -> tuple[str, int]:
    episode, at = steps.position_in_episode(step)
    return steps.episode_names[episode], at


def _jumps(steps: Steps, key: str, meters: FloatArray, radians: FloatArray, seconds: FloatArray) -> list[Jump]:
    usual = float(np.median(seconds)) if len(seconds) else DEFAULT_SECONDS
    # Commands are issued at an even pace even if the clock hiccups.
    elapsed = np.where(seconds > 0, seconds, max(usual, 1e-3))
    degrees = np.degrees(radians)
    fast = (meters > JUMP_METERS_PER_SECOND * elapsed) | (degrees > JUMP_DEGREES_PER_SECOND * elapsed)
    return [
        Jump(*_named(steps, int(at)), key, float(meters[at]), float(degrees[at]), float(elapsed[at]))
        for at in np.flatnonzero(fast & steps.within)
    ]
