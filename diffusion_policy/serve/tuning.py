"""Tuning of the sampler: error on recorded data against inference time on this machine.

Every setting answers the same recorded observations in order, as requests of a client: at every ``stride``-th step of
an episode, each with its preceding frames. So jumps between chunks are those that the arm would make, and a warm start
has a remainder. The proposal is the fastest setting whose error is within a budget of the best one, and whose slow
answers (p95) still fit the time between two requests.

Legend of shapes: N requests, Ta executed actions, D action dimensions, in the layout of messages.
"""

from __future__ import annotations

import functools
import logging
import math
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.evaluate.episode_choice import EpisodeChoice, choose_episodes
from diffusion_policy.evaluate.open_loop import joint_error, score_chunks
from diffusion_policy.evaluate.recorded_inference import RecordedEpisodes, open_recorded
from diffusion_policy.gripper_events import TOLERANCE_SECONDS, EventScore, score_gripper_events
from diffusion_policy.intervals import defined
from diffusion_policy.policy.default_sampler import Sampler, sampler_of_training
from diffusion_policy.progress import Progress, ProgressCounter, no_progress
from diffusion_policy.serve.checks.cameras import joint_units_in_a_radian
from diffusion_policy.serve.checks.seams import Seam, ServedChunk
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.engine.wire import Wire
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.stages import Stages
from diffusion_policy.serve.transport.protocol import MessageForm, Observation
from diffusion_policy.tables import Column, Table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A setting of the sampler."""

    scheduler: str
    steps: int
    warm_start: float = 0.0

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"{self.scheduler}-{self.steps}" + (f", warm {self.warm_start:g}" if self.warm_start else "")

    def serve_words(self, settings: EngineSettings) -> tuple[str, ...]:
        """Returns the settings of a server, ``engine.key=value``, that answers as the candidate was measured."""
        values = {**asdict(self), "device": settings.device, "precision": settings.precision}
        return tuple(f"engine.{key}={value}" for key, value in values.items())


def parse_candidate(word: str) -> Candidate:
    """Parses "ddim:8" or "ddim:8:0.5"; WorkspaceError for anything else."""
    scheduler, *numbers = word.split(":")
    try:
        steps, warm = int(numbers[0]), float(numbers[1]) if len(numbers) > 1 else 0.0
    except (IndexError, ValueError) as error:
        raise WorkspaceError(f"candidate {word!r}; expected SCHEDULER:STEPS or SCHEDULER:STEPS:WARM") from error
    return Candidate(scheduler, steps, warm)


@dataclass(frozen=True)
class Budget:
    """The allowed loss of accuracy, and the available time.

    Attributes:
        position_mm: allowed mean position error beyond that of the best candidate.
        rotation_deg: allowed mean rotation error beyond that of the best candidate; of joints, too.
        period_s: time between two requests: executed steps over the control rate.
    """

    position_mm: float = 1.0
    rotation_deg: float = 0.5
    period_s: float = 0.6


@dataclass(frozen=True)
class Measured:
    """Accuracy and inference time of a candidate; None if a value is not defined.

    Attributes:
        position_mm, rotation_deg: mean error of executed actions; None without a pose.
        event_f1: of gripper events in the commands that a client executes, against the recorded ones; None if no
            event is recorded.
        false_events: events without a recorded one nearby.
        p50_ms, p95_ms: percentiles of inference time, decoding included.
        seam_mm, seam_deg: median jump between chunks; None if requests are further apart than chunks are long.
        joint, seam_joint: the same for joints, in ``joint_unit``; None without joints.
    """

    candidate: Candidate
    position_mm: float | None
    rotation_deg: float | None
    event_f1: float | None
    p50_ms: float
    p95_ms: float
    seam_mm: float | None
    seam_deg: float | None
    false_events: int = 0
    joint: float | None = None
    seam_joint: float | None = None
    joint_unit: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON; entries of joints only where there are joints."""
        content = asdict(self)
        return {name: value for name, value in content.items() if self.joint_unit is not None or "joint" not in name}


@dataclass(frozen=True)
class Tuning:
    """The measurements of all candidates, and the proposal (None: no candidate is within the budget).

    Attributes:
        measured: one row per candidate.
        budget: the allowed loss of accuracy, and the available time.
        proposed: the fastest candidate within the budget.
        tolerance_s: tolerance of F1 in seconds.
        choice: the episodes, and whether the policy was trained on them.
        trained_with: sampler with which training measured and chose the checkpoint; None if that is not recorded.
    """

    measured: tuple[Measured, ...]
    budget: Budget
    proposed: Candidate | None
    tolerance_s: float = TOLERANCE_SECONDS
    choice: EpisodeChoice | None = None
    trained_with: Sampler | None = None

    @property
    def passed(self) -> bool:
        """Whether a candidate is within the budget."""
        return self.proposed is not None

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON."""
        plain = {**asdict(self), "measured": tuple(row.to_json() for row in self.measured)}
        del plain["choice"]
        return {**plain, "split": None if self.choice is None else self.choice.to_json()}

    def table(self) -> Table:
        """Returns a table for the terminal."""
        caption = "nothing fits the budget" if self.proposed is None else f"proposed: {self.proposed.name}"
        if all(row.event_f1 is None for row in self.measured):
            caption += "; no gripper event is recorded in these episodes, so events chose nothing"
        if self.trained_with is not None:
            caption += f"\ntraining measured the checkpoint with {self.trained_with}"
        if self.choice is not None:
            caption += f"\n{self.choice.note}"
        head: tuple[str, ...] = ("mm", "deg", f"F1 ({self.tolerance_s:.3g} s)")
        head += ("p50 ms", "p95 ms", "seam mm", "seam deg")
        unit = next((row.joint_unit for row in self.measured if row.joint_unit is not None), None)
        head += () if unit is None else (f"joint {unit}", f"seam {unit}")
        table = Table(Column(no_wrap=True), *head, framed=True, caption=caption)
        for row in self.measured:
            numbers = (row.position_mm, row.rotation_deg, row.event_f1)
            errors, seams = ([_number(value) for value in values] for values in (numbers, (row.seam_mm, row.seam_deg)))
            joints = [] if unit is None else [_number(row.joint), _number(row.seam_joint)]
            table.add(row.candidate.name, *errors, f"{row.p50_ms:.0f}", f"{row.p95_ms:.0f}", *seams, *joints)
        return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


class RecordedRequests:
    """Recorded episodes as requests of a client, with the recorded actions.

    Attributes:
        wire: conversion between the policy's numbers and those of messages.
    """

    def __init__(self, recorded: RecordedEpisodes, numbers: Sequence[int], n_obs_steps: int, stride: int, hz: float):
        self._recorded, self._n_obs, self._hz = recorded, n_obs_steps, hz
        self.wire = Wire(recorded.policy.spec.robot, recorded.buffer.semantics)
        self._form = MessageForm(n_obs_steps, self.wire.layout)
        self.stride, self.numbers = stride, tuple(numbers)
        self.episodes = [recorded.steps(episode, stride) for episode in self.numbers]

    def __len__(self) -> int:
        return sum(len(steps) for steps in self.episodes)

    def observations(self, steps: NDArray[np.int64]) -> list[Observation]:
        """Returns the requests at these steps of one episode, with timestamps at the control rate."""
        low = int(steps[0])
        observed = self._recorded.observations(steps)
        cameras = [observed[camera.key].numpy() for camera in self._recorded.policy.spec.rgb]  # (N, To, 3, H, W) each
        result = []
        for row, step in enumerate(steps.tolist()):
            window = np.maximum(np.arange(step - self._n_obs + 1, step + 1), low)
            states = self.wire.recorded(self._recorded.logged_states(window), self._recorded.state_layout)
            frames = [np.ascontiguousarray(np.moveaxis(image, 0, -1)) for images in cameras for image in images[row]]
            times = (step - low + np.arange(1 - self._n_obs, 1)) / self._hz
            result.append(self._form.observation(frames, states, times))
        return result

    def score_events(self, number: int, chunks: NDArray[np.float64], tolerance_s: float) -> EventScore:
        """Scores gripper events of executed actions: ``stride`` actions of each chunk (N, Ta, D), then the next one.

        Where a chunk is shorter than the stride its last command is held. Events of several grippers are combined;
        without a gripper there are none.
        """
        recorded, _ = self.recorded(self._recorded.steps(number))
        within = np.minimum(np.arange(self.stride), chunks.shape[1] - 1)
        layout = self.wire.layout
        wanted = layout.grippers(recorded[:, 0]).T
        commands = layout.grippers(chunks[:, within].reshape(-1, chunks.shape[-1])[: len(recorded)]).T
        seconds = self._recorded.step_seconds(number)
        scores = [
            score_gripper_events(*pair, step_seconds=seconds, tolerance_s=tolerance_s)
            for pair in zip(commands, wanted, strict=True)
        ]
        return functools.reduce(operator.add, scores) if scores else EventScore((), (), (), 0, seconds)

    def recorded(self, steps: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Returns recorded actions (N, Ta, D), and (N, Ta) which of them are inside the episode."""
        chunks, inside = self._recorded.recorded_chunks(steps)
        return self.wire.actions(chunks), inside


def measure(
    engine: PolicyEngine,
    requests: RecordedRequests,
    candidate: Candidate,
    hz: float,
    seed: int = 0,
    tolerance_s: float = TOLERANCE_SECONDS,
    on_requests: Callable[[int], None] = lambda n_requests: None,
) -> Measured:
    """Answers every request with an engine that uses the candidate's sampler, and measures the answers."""
    ours, theirs, inside, scores, times = [], [], [], [], []
    seams: list[Seam] = []
    for number, steps in zip(requests.numbers, requests.episodes, strict=True):
        chunks: list[NDArray[np.float64]] = []
        served: ServedChunk | None = None
        for step, observation in zip(steps.tolist(), requests.observations(steps), strict=True):
            now = float(observation.timestamps[-1])
            start = time.perf_counter()
            remainder = None if served is None else served.remainder(now, hz)
            answer = engine.infer(observation, seed * 1_000_003 + step, remainder, Stages())
            times.append((time.perf_counter() - start) * 1000)
            seam = None if served is None else served.seam(answer.sequence, now, hz)
            seams += [] if seam is None else [seam]
            served = ServedChunk(answer.sequence, answer.first, now, requests.wire.layout)
            chunks.append(answer.actions)
            on_requests(1)
        recorded, within = requests.recorded(steps)
        ours.append(np.stack(chunks))
        theirs.append(recorded)
        inside.append(within)
        scores.append(requests.score_events(number, ours[-1], tolerance_s))
    predicted = np.concatenate(ours)
    finite = bool(np.isfinite(predicted).all())  # what answers NaN has no error and no score, at any step
    score = functools.reduce(operator.add, scores)
    layout, truth = requests.wire.layout, (np.concatenate(theirs), np.concatenate(inside))
    errors = score_chunks(predicted, *truth, layout=layout).means() if finite else {}
    p50, p95 = np.percentile(times, (50, 95))
    return Measured(
        candidate,
        errors.get("position_mm"),
        errors.get("rotation_deg"),
        defined(score.f1) if finite else None,
        float(p50),
        float(p95),
        _median([seam.millimetres for seam in seams]) if finite else None,
        _median([seam.degrees for seam in seams]) if finite else None,
        len(score.false),
        errors.get(joint_error(layout)) if layout.has_joints else None,
        _median([seam.joints for seam in seams]) if finite else None,
        layout.joint_unit if layout.has_joints else None,
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def tune(
    checkpoint: str | Path,
    zarr_path: str | Path,
    candidates: Sequence[Candidate],
    budget: Budget,
    settings: EngineSettings,
    episodes: str | Sequence[int] | None = None,
    stride: int = 6,
    hz: float = 10.0,
    tolerance_s: float = TOLERANCE_SECONDS,
    gripper_scale: str | None = None,
    on_progress: Progress = no_progress,
) -> Tuning:
    """Measures all candidates and proposes one.

    Args:
        checkpoint: to be served.
        zarr_path: recorded data.
        candidates: at least one.
        budget: what is good enough.
        settings: device, precision and threads; sampler and warm start are the candidates'.
        episodes: "held-out" (default), "all", or numbers; see `episode_choice.choose_episodes`.
        stride: steps that a client executes before it asks again.
        hz: control rate.
        tolerance_s: seconds that a predicted gripper event may be away from a recorded one.
        gripper_scale: that the dataset's gripper is stored in, see `open_recorded`.
        on_progress: called with the requests answered, and those of all candidates.

    Raises:
        WorkspaceError: the checkpoint, the dataset, the choice of episodes or a candidate does not fit.
    """
    if not candidates or stride < 1:
        raise WorkspaceError(f"{len(candidates)} candidates and a stride of {stride}; expected at least one of both")
    if not 0 < tolerance_s < math.inf:
        raise WorkspaceError(f"the tolerance of gripper events is {tolerance_s} s; expected a positive number")
    recorded, opened = open_recorded(checkpoint, zarr_path, settings.device, settings.weights, gripper_scale)
    choice = choose_episodes(recorded.buffer, opened, episodes)
    requests = RecordedRequests(recorded, choice.numbers, recorded.policy.n_obs_steps, stride, hz)
    counted = ProgressCounter(on_progress, len(candidates) * len(requests))
    measured = []
    for candidate in candidates:
        engine = PolicyEngine(recorded.policy, replace(settings, **asdict(candidate)))
        engine.warm_up()
        measured.append(measure(engine, requests, candidate, hz, tolerance_s=tolerance_s, on_requests=counted.add))
        logger.info("%s: %s mm, %.0f ms", candidate.name, _number(measured[-1].position_mm), measured[-1].p50_ms)
    trained = sampler_of_training(opened.provenance, opened.cfg)
    return Tuning(tuple(measured), budget, propose(measured, budget), tolerance_s, choice, trained)


def propose(measured: Sequence[Measured], budget: Budget) -> Candidate | None:
    """Returns the fastest candidate (p50) of those ``within`` the budget; None if there is none."""
    return fastest(within(measured, budget))


def fastest(rows: Sequence[Measured]) -> Candidate | None:
    """Returns the candidate with the smallest median time; None of none."""
    return min(rows, key=lambda row: row.p50_ms).candidate if rows else None


def within(measured: Sequence[Measured], budget: Budget) -> list[Measured]:
    """Returns the candidates within the budget.

    Gripper events count first: a candidate that loses events which the best one finds is left out, as is one
    that makes up more than the best one does where no event is recorded. What is not defined is not ranked: a candidate
    without errors (it answers NaN) is out.
    """
    errors = _errors_that_count(measured)
    rows = [row for row in measured if all(getattr(row, name) is not None for name in errors)]
    if not rows:
        return []
    limits = {
        name: min(_known(getattr(row, name)) for row in rows) + _allowed(name, rows[0], budget) for name in errors
    }
    scores = [row.event_f1 for row in rows if row.event_f1 is not None]
    events, made_up = max(scores, default=None), min(row.false_events for row in rows)
    return [
        row
        for row in rows
        if all(_known(getattr(row, name)) <= limit for name, limit in limits.items())
        and (row.false_events <= made_up if events is None else _known(row.event_f1) >= events - 1e-9)
        and row.p95_ms <= budget.period_s * 1000
    ]


def _errors_that_count(measured: Sequence[Measured]) -> tuple[str, ...]:
    """Returns the names of the errors that are compared: those of poses, of joints, or both."""
    joints = ("joint",) if any(row.joint_unit is not None for row in measured) else ()
    poses = ("position_mm", "rotation_deg")
    return joints if joints and all(row.position_mm is None for row in measured) else (*poses, *joints)


def _allowed(name: str, row: Measured, budget: Budget) -> float:
    """Returns by how much a mean error may exceed the best one."""
    if name != "joint":
        return float(getattr(budget, name))
    return math.radians(budget.rotation_deg) * joint_units_in_a_radian(row.joint_unit or "unknown")


def _known(value: float | None) -> float:
    """Returns a value that is known to be defined; F1 is defined for all candidates or none."""
    assert value is not None
    return value
