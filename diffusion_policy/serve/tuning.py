"""Tuning of sampler and chunk strategy: error on recorded data against inference time on this machine.

Every candidate answers the same recorded observations in order, as requests of a client: at every ``stride``-th step of
an episode, each with its preceding frames. So jumps between chunks are those that the arm would make, and a warm start
has a remainder. An answer takes over ``delay_steps`` after its observation; until then the chunk before is executed,
also where the requests carry none of it. The proposal is the fastest candidate whose error is within a budget of the
best one, and whose slow answers (p95) still fit the time between two requests.

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
from diffusion_policy.evaluate.recorded_inference import open_recorded
from diffusion_policy.gripper_events import TOLERANCE_SECONDS, EventScore
from diffusion_policy.intervals import defined
from diffusion_policy.policy.contract import PolicyModule
from diffusion_policy.policy.default_sampler import Sampler, sampler_of_training
from diffusion_policy.progress import Progress, ProgressCounter, no_progress
from diffusion_policy.serve.candidates import DEFAULT_CANDIDATES, Candidate, parse_candidate
from diffusion_policy.serve.checks.cameras import joint_units_in_a_radian
from diffusion_policy.serve.checks.seams import Seam, ServedChunk
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.recorded_requests import RecordedRequests
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.stages import Stages
from diffusion_policy.serve.transport.continuation import Continuation
from diffusion_policy.serve.transport.protocol import Observation
from diffusion_policy.spec import ActionLayout
from diffusion_policy.tables import Column, Table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """The allowed loss of accuracy, and the available time.

    Attributes:
        position_mm: allowed mean position error beyond that of the best candidate.
        rotation_deg: the same for mean rotation error, and for angles of joints.
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
        seam_mm, seam_deg: median jump from a chunk to the next where that takes over; None if the former one has
            ended by then.
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
        """Returns plain JSON; joint entries only where there are joints."""
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
        delay_steps: steps from an observation to its answer's taking over.
        left_out: default candidates that the policy does not have, with the reason.
    """

    measured: tuple[Measured, ...]
    budget: Budget
    proposed: Candidate | None
    tolerance_s: float = TOLERANCE_SECONDS
    choice: EpisodeChoice | None = None
    trained_with: Sampler | None = None
    delay_steps: int = 0
    left_out: tuple[str, ...] = ()

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
            caption += "; no gripper event is recorded in these episodes, so events did not affect the choice"
        caption += f"\nanswers take over {self.delay_steps} step(s) after their observation"
        caption += "".join(f"\nleft out: {reason}" for reason in self.left_out)
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


def measure(
    engine: PolicyEngine,
    requests: RecordedRequests,
    candidate: Candidate,
    hz: float,
    seed: int = 0,
    tolerance_s: float = TOLERANCE_SECONDS,
    on_requests: Callable[[int], None] = lambda n_requests: None,
    delay_steps: int = 0,
) -> Measured:
    """Answers every request with an engine that uses the candidate's sampler, and measures what is executed."""
    ours, theirs, inside, scores, times = [], [], [], [], []
    seams: list[Seam] = []
    for number, steps in zip(requests.numbers, requests.episodes, strict=True):
        chunks: list[NDArray[np.float64]] = []
        served: ServedChunk | None = None
        for step, observation in zip(steps.tolist(), requests.observations(steps), strict=True):
            now = float(observation.timestamps[-1])
            rest = chunks[-1][requests.stride :] if chunks else None
            asked = observation if rest is None else _continuing(observation, candidate, rest, delay_steps)
            start = time.perf_counter()
            remainder = None if served is None else served.remainder(now, hz)
            answer = engine.infer(asked, seed * 1_000_003 + step, remainder, Stages())
            times.append((time.perf_counter() - start) * 1000)
            seam = None if served is None else served.seam(answer.sequence, now, hz, delay_steps)
            seams += [] if seam is None else [seam]
            served = ServedChunk(answer.sequence, answer.first, now, requests.wire.layout)
            chunks.append(answer.actions if rest is None else _executed(answer.actions, rest, delay_steps))
            on_requests(1)
        recorded, within = requests.recorded(steps)
        ours.append(np.stack(chunks))
        theirs.append(recorded)
        inside.append(within)
        scores.append(requests.score_events(number, ours[-1], tolerance_s))
    truth = (np.concatenate(theirs), np.concatenate(inside))
    score = functools.reduce(operator.add, scores)
    return _measured(candidate, np.concatenate(ours), truth, score, times, seams, requests.wire.layout)


def _continuing(
    observation: Observation, candidate: Candidate, rest: NDArray[np.float64], delay_steps: int
) -> Observation:
    """The request as the candidate's client sends it, with what remains (n, D) of the chunk before."""
    if candidate.continues is None:
        return observation
    continuation = Continuation(candidate.continues, rest, min(delay_steps, len(rest)))
    return replace(observation, continuation=continuation)


def _executed(actions: NDArray[np.float64], rest: NDArray[np.float64], delay_steps: int) -> NDArray[np.float64]:
    """(Ta, D) what is executed from an observation on: its answer, but until that takes over the chunk before."""
    return np.concatenate([rest[:delay_steps], actions[min(delay_steps, len(rest)) :]])[: len(actions)]


def _measured(
    candidate: Candidate,
    executed: NDArray[np.float64],
    truth: tuple[NDArray[np.float64], NDArray[np.bool_]],
    score: EventScore,
    times: Sequence[float],
    seams: Sequence[Seam],
    layout: ActionLayout,
) -> Measured:
    """The row of a candidate; what answers NaN has no error and no score, at any step."""
    finite = bool(np.isfinite(executed).all())
    errors = score_chunks(executed, *truth, layout=layout).means() if finite else {}
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
    candidates: Sequence[Candidate] | None,
    budget: Budget,
    settings: EngineSettings,
    episodes: str | Sequence[int] | None = None,
    stride: int = 6,
    hz: float = 10.0,
    tolerance_s: float = TOLERANCE_SECONDS,
    gripper_scale: str | None = None,
    on_progress: Progress = no_progress,
    delay_steps: int = 0,
) -> Tuning:
    """Measures all candidates and proposes one.

    Args:
        checkpoint: the checkpoint to serve.
        zarr_path: recorded data.
        candidates: at least one; None: ``DEFAULT_CANDIDATES`` without those that the policy does not have.
        budget: what is good enough.
        settings: device, precision and threads; sampler and warm start are the candidates'.
        episodes: "held-out" (default), "all", or numbers; see `episode_choice.choose_episodes`.
        stride: steps that a client executes between requests.
        hz: control rate.
        tolerance_s: seconds that a predicted gripper event may be away from a recorded one.
        gripper_scale: that the dataset's gripper is stored in, see `open_recorded`.
        on_progress: called with the requests answered, and those of all candidates.
        delay_steps: steps that the arm executes of the chunk before, from an observation to its answer.

    Raises:
        WorkspaceError: the checkpoint, the dataset, the choice of episodes or a candidate does not fit.
    """
    for what, found, least in (
        ("number of candidates", 1 if candidates is None else len(candidates), 1),
        ("stride", stride, 1),
        ("delay", delay_steps, 0),
    ):
        if found < least:
            raise WorkspaceError(f"the {what} is {found}; expected {least} or more")
    if delay_steps > stride:
        raise WorkspaceError(f"the delay is {delay_steps} steps; expected at most the {stride} between two requests")
    if not 0 < tolerance_s < math.inf:
        raise WorkspaceError(f"the tolerance of gripper events is {tolerance_s} s; expected a positive number")
    recorded, opened = open_recorded(checkpoint, zarr_path, settings.device, settings.weights, gripper_scale)
    if stride > (longest := recorded.policy.sequence_length - recorded.policy.first_executed):
        raise WorkspaceError(f"the stride is {stride}; the policy predicts {longest} steps from now on")
    choice = choose_episodes(recorded.buffer, opened, episodes)
    chosen, left_out = _possible(candidates, recorded.policy, settings, stride)
    requests = RecordedRequests(recorded, choice.numbers, recorded.policy.n_obs_steps, stride, hz)
    counted = ProgressCounter(on_progress, len(chosen) * len(requests))
    measured = []
    for candidate in chosen:
        engine = PolicyEngine(recorded.policy, replace(settings, **candidate.engine))
        engine.warm_up()
        measured.append(measure(engine, requests, candidate, hz, 0, tolerance_s, counted.add, delay_steps))
        logger.info("%s: %s mm, %.0f ms", candidate.name, _number(measured[-1].position_mm), measured[-1].p50_ms)
    trained = sampler_of_training(opened.provenance, opened.cfg)
    proposed = propose(measured, budget)
    return Tuning(tuple(measured), budget, proposed, tolerance_s, choice, trained, delay_steps, left_out)


def _possible(
    candidates: Sequence[Candidate] | None, policy: PolicyModule, settings: EngineSettings, stride: int
) -> tuple[list[Candidate], tuple[str, ...]]:
    """What is measured, and why not the other defaults; WorkspaceError for a named candidate that cannot be."""
    asked = [parse_candidate(word) for word in DEFAULT_CANDIDATES] if candidates is None else candidates
    reasons = {one: why for one in asked if (why := one.why_not(policy, settings, stride)) is not None}
    if candidates is not None:
        for candidate, reason in reasons.items():
            raise WorkspaceError(f"candidate {candidate.name}: {reason}")
    return [one for one in asked if one not in reasons], tuple(f"{one.name}: {why}" for one, why in reasons.items())


def propose(measured: Sequence[Measured], budget: Budget) -> Candidate | None:
    """Returns the fastest candidate (p50) of those ``within`` the budget; None if there is none."""
    return fastest(within(measured, budget))


def fastest(rows: Sequence[Measured]) -> Candidate | None:
    """Returns the candidate with the smallest median time; None if there are no rows."""
    return min(rows, key=lambda row: row.p50_ms).candidate if rows else None


def within(measured: Sequence[Measured], budget: Budget) -> list[Measured]:
    """Returns the candidates within the budget.

    Gripper events count first: a candidate is out if it loses events that the best one finds, or, where no event is
    recorded, if it invents more than the best one does. Undefined values are not ranked: a candidate without errors (it
    answers NaN) is out.
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
    """Returns how much a mean error may exceed the best one."""
    if name != "joint":
        return float(getattr(budget, name))
    return math.radians(budget.rotation_deg) * joint_units_in_a_radian(row.joint_unit or "unknown")


def _known(value: float | None) -> float:
    """Returns a value that must be defined; F1 is defined for all candidates or for none."""
    assert value is not None
    return value
