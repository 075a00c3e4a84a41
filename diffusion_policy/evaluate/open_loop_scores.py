"""Scores of one predictor over whole episodes: errors of its chunks, by phase and arm, and events of its grippers.

Legend of shapes: N steps, S samples, T actions in a chunk, D action dimensions, M numbers in a measured state.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.evaluate.open_loop import (
    PHASES,
    POLICY,
    ChunkErrors,
    FloatArray,
    joint_error,
    layout_of_width,
    measured_as_action,
    phases,
    score_chunks,
    transition_error,
)
from diffusion_policy.gripper_events import TOLERANCE_SECONDS, EventScore, score_gripper_events, tolerance_steps
from diffusion_policy.intervals import defined
from diffusion_policy.spec import ActionLayout

COLUMNS = {
    "position_mm": "position mm",
    "rotation_deg": "rotation deg",
    "joint_rad": "joints rad",
    "joint_deg": "joints deg",
    "joint": "joints",
    "gripper_at_transitions": "wrong at transitions",
    "gripper_f1": "events F1",
}
"""Names of a predictor's numbers, with headings; `columns_of` selects those of a layout."""


def columns_of(layout: ActionLayout) -> list[str]:
    """Returns the names from COLUMNS that apply to a layout: poses and joints only if it has them."""
    lacking = [name for name in ("joint_rad", "joint_deg", "joint") if name != joint_error(layout)]
    if not layout.has_joints:
        lacking.append(joint_error(layout))
    lacking += [] if layout.labels("position") else ["position_mm"]
    lacking += [] if layout.labels("rotation") else ["rotation_deg"]
    return [name for name in COLUMNS if name not in lacking]


@dataclass(frozen=True)
class EpisodeOpenLoop:
    """One episode, as arrays: N steps, S samples, T actions in a chunk, D dimensions.

    Attributes:
        episode: its number in the dataset.
        samples: (S, N, T, D) predicted chunks.
        recorded: (N, T, D) recorded chunks.
        inside: (N, T) whether each recorded action is inside the episode.
        measured: (N, M) state, usually pose and gripper.
        baselines: chunks (N, T, D) by name.
        step_seconds: time between two steps; None if the dataset has no times.
        tolerance_s: allowed time between a predicted gripper event and a recorded one, seconds.
        action, state: layouts of the D and M numbers; inferred from D and M if not given.
    """

    episode: int
    samples: FloatArray
    recorded: FloatArray
    inside: NDArray[np.bool_]
    measured: FloatArray
    baselines: Mapping[str, FloatArray]
    step_seconds: float | None
    tolerance_s: float = TOLERANCE_SECONDS
    action: ActionLayout | None = None
    state: ActionLayout | None = None

    @property
    def layout(self) -> ActionLayout:
        """The layout of the D numbers of an action."""
        return self.action or layout_of_width(self.recorded.shape[-1])

    @property
    def state_layout(self) -> ActionLayout:
        """The layout of the M numbers of a state."""
        return self.state or layout_of_width(self.measured.shape[-1])

    def predictors(self) -> dict[str, list[FloatArray]]:
        """Returns chunks by predictor: the policy's samples, and each baseline as one sample."""
        return {POLICY: list(self.samples), **{name: [chunks] for name, chunks in self.baselines.items()}}


@dataclass(frozen=True)
class PredictorScore:
    """How one predictor does over all episodes; ``per_episode`` holds the same means by episode."""

    errors: ChunkErrors
    phase: NDArray[np.str_]
    gripper_at_transitions: float | None
    events: EventScore | None
    per_episode: tuple[Mapping[str, float | None], ...]

    def per_phase(self) -> dict[str, dict[str, float | None]]:
        """Returns mean errors of the chunks that begin in each phase."""
        return {phase: self.errors.select(self.phase == phase).means() for phase in PHASES}

    def per_arm(self) -> dict[str, dict[str, float | None]]:
        """Returns mean errors of each arm; empty with a single arm."""
        return {arm: errors.means() for arm, errors in self.errors.arms.items()}

    def means(self) -> dict[str, float | None]:
        """Returns the numbers of the table, by column name; None for what is not measured."""
        errors = self.errors.means()
        del errors["gripper"]
        return {
            **errors,
            "gripper_at_transitions": self.gripper_at_transitions,
            "gripper_f1": None if self.events is None else defined(self.events.f1),
        }

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON: means (also per horizon step, phase, and arm if there are several) and gripper events."""
        arms = {"per_arm": self.per_arm()} if self.errors.arms else {}
        return {
            **self.means(),
            "per_horizon_step": self.errors.per_horizon_step(),
            "per_phase": self.per_phase(),
            **arms,
            "events": None if self.events is None else self.events.to_json(),
            "per_episode": [dict(means) for means in self.per_episode],
        }


def score_episodes(episodes: Sequence[EpisodeOpenLoop]) -> dict[str, PredictorScore]:
    """Returns scores by predictor over all episodes; each sample of a step counts as a prediction."""
    labels = [_phases(episode) for episode in episodes]
    result = {}
    for name in episodes[0].predictors():
        parts = [
            _score(episode, chunks, label)
            for episode, label in zip(episodes, labels, strict=True)
            for chunks in episode.predictors()[name]
        ]
        samples = len(parts) // len(episodes)
        joined = _join(parts, samples)
        per_episode = tuple(_join(parts[i : i + samples], samples).means() for i in range(0, len(parts), samples))
        result[name] = PredictorScore(
            joined.errors, joined.phase, joined.gripper_at_transitions, joined.events, per_episode
        )
    return result


def _phases(episode: EpisodeOpenLoop) -> NDArray[np.str_]:
    """Returns phases from the commanded grippers, or the measured ones if the action has none; else empty names."""
    layout, state = episode.layout, episode.state_layout
    if not (layout.has_gripper or state.has_gripper):
        return np.full(len(episode.recorded), "")
    gripper = layout.grippers(episode.recorded[:, 0]) if layout.has_gripper else state.grippers(episode.measured)
    return phases(gripper, margin=max(1, tolerance_steps(episode.step_seconds) // 2))


def _score(episode: EpisodeOpenLoop, chunks: FloatArray, labels: NDArray[np.str_]) -> PredictorScore:
    layout = episode.layout
    errors = score_chunks(chunks, episode.recorded, episode.inside, layout)
    predicted, wanted = layout.grippers(chunks), layout.grippers(episode.recorded)
    if not layout.has_gripper or not np.isfinite(predicted[1:]).all():
        return PredictorScore(errors, labels, None, None, ())
    measured = layout.grippers(measured_as_action(episode.measured, episode.state_layout, layout))
    commands = np.where(np.isfinite(predicted[:, 0]), predicted[:, 0], measured)
    events = [
        score_gripper_events(
            commands[:, gripper],
            wanted[:, 0, gripper],
            step_seconds=episode.step_seconds,
            tolerance_s=episode.tolerance_s,
        )
        for gripper in range(wanted.shape[-1])
    ]
    wrong = [
        transition_error(predicted[..., gripper], wanted[..., gripper], episode.inside)
        for gripper in range(wanted.shape[-1])
    ]
    return PredictorScore(errors, labels, _mean(wrong), functools.reduce(operator.add, events), ())


def _mean(values: Sequence[float | None]) -> float | None:
    """Returns the mean of the defined values."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _join(parts: Sequence[PredictorScore], samples: int) -> PredictorScore:
    events = [dataclasses.replace(part.events, samples=samples) for part in parts if part.events is not None]
    return PredictorScore(
        ChunkErrors.joined([part.errors for part in parts]),
        np.concatenate([part.phase for part in parts]),
        _mean([part.gripper_at_transitions for part in parts]),
        functools.reduce(operator.add, events) if events else None,
        (),
    )
