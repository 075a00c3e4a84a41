"""Open-loop evaluation of a checkpoint on held-out episodes, compared with baselines and with another checkpoint.

The policy is sampled with the scheduler that will be deployed, several times at each step; the spread of the samples is
its own uncertainty, the error is that of a single sample. Two checkpoints are compared by paired bootstrap over
episodes, since steps of one episode are not independent.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy.evaluate.episode_choice import EpisodeChoice, choose_episodes
from diffusion_policy.evaluate.open_loop import (
    COPYCAT,
    POLICY,
    FloatArray,
    baselines,
    sample_spread,
)
from diffusion_policy.evaluate.open_loop_scores import (
    COLUMNS,
    EpisodeOpenLoop,
    PredictorScore,
    columns_of,
    score_episodes,
)
from diffusion_policy.evaluate.recorded_inference import (
    RecordedEpisodes,
    Sampling,
    check_finite,
    open_recorded,
    predict_chunks,
)
from diffusion_policy.evaluate.writing import EvaluateError
from diffusion_policy.gripper_events import TOLERANCE_SECONDS
from diffusion_policy.intervals import paired_bootstrap
from diffusion_policy.policy.default_sampler import Sampler, sampler_note, sampler_of_training
from diffusion_policy.policy.sampler import set_sampler
from diffusion_policy.progress import Progress, ProgressCounter, no_progress
from diffusion_policy.spec import ROTVEC_WIDTH, ActionLayout


@dataclass(frozen=True)
class OpenLoopReport:
    """Scores of a checkpoint and of the baselines on the same episodes.

    Attributes:
        checkpoint: its path.
        episodes: the evaluated episodes, with predictions.
        sampling: how chunks were sampled.
        scores: scores by predictor.
        choice: whether the policy was trained on these episodes; None if that was not determined.
        sampler_note: a note if training measured the policy with another sampler.
    """

    checkpoint: str
    episodes: tuple[EpisodeOpenLoop, ...]
    sampling: Sampling
    scores: Mapping[str, PredictorScore] = field(default_factory=dict)
    choice: EpisodeChoice | None = None
    sampler_note: str | None = None

    def shortcomings(self) -> list[str]:
        """Baselines that the policy does not beat, each as a sentence; the copycat first."""
        ours = self.scores[POLICY].means()
        result = []
        for name, score in sorted(self.scores.items(), key=lambda entry: entry[0] != COPYCAT):
            for column, theirs in score.means().items():
                value = ours[column]
                if name == POLICY or column == "gripper_f1" or theirs is None or value is None or value < theirs:
                    continue
                result.append(f"does not beat '{name}' in {COLUMNS[column]}: {value:.3g} against {theirs:.3g}")
        return result

    def unmeasured(self) -> list[str]:
        """What these episodes cannot show about the policy, each as a sentence."""
        events, result = self.scores[POLICY].events, []
        if not self.layout.has_pose:
            joints = f"; joint errors in {self.layout.joint_unit}" if self.layout.has_joints else ""
            result.append(f"no pose in this layout ({self.layout.describe()}){joints}")
        if events is not None and not events.recorded:
            result.append(
                f"the gripper was not measured: no event is recorded in these {len(self.episodes)} episodes, so "
                "neither F1 nor the share wrong at transitions is defined"
            )
        return result

    @property
    def layout(self) -> ActionLayout:
        """The layout of an action."""
        return self.episodes[0].layout

    @property
    def columns(self) -> list[str]:
        """Which of COLUMNS are measured."""
        return columns_of(self.layout)

    @property
    def tolerance_s(self) -> float:
        """Tolerance of gripper F1 in seconds."""
        return self.episodes[0].tolerance_s

    def against_copycat(self) -> dict[str, Any] | None:
        """Returns policy minus copycat: wrong gripper states at transitions, by episode; None without a gripper."""
        if COPYCAT not in self.scores:
            return None
        pair = (self.scores[COPYCAT].per_episode, self.scores[POLICY].per_episode)
        return _paired(*pair, "gripper_at_transitions")

    def spread(self) -> dict[str, Any]:
        """Returns the spread of the samples over all steps, see ``sample_spread``."""
        return sample_spread(np.concatenate([episode.samples for episode in self.episodes], axis=1), self.layout)

    def to_json(self) -> dict[str, Any]:
        """Returns everything but the arrays as plain JSON."""
        return {
            "checkpoint": self.checkpoint,
            "scheduler": self.sampling.scheduler,
            "steps": self.sampling.steps,
            "seed": self.sampling.seed,
            "samples": len(self.episodes[0].samples),
            "tolerance_s": self.tolerance_s,
            "episodes": [episode.episode for episode in self.episodes],
            "scores": {name: score.to_json() for name, score in self.scores.items()},
            "spread": self.spread(),
            "beside_copycat": self.against_copycat(),
            "shortcomings": self.shortcomings(),
            "unmeasured": self.unmeasured(),
            "split": None if self.choice is None else self.choice.to_json(),
            "sampler_note": self.sampler_note,
        }


def evaluate_open_loop(
    checkpoint_path: str | Path,
    zarr_path: str | Path,
    episodes: str | Sequence[int] | None = None,
    sampling: Sampling | None = None,
    samples: int = 4,
    device: str = "cpu",
    which: str = "ema_model",
    tolerance_s: float = TOLERANCE_SECONDS,
    on_progress: Progress = no_progress,
    gripper_scale: str | None = None,
) -> OpenLoopReport:
    """Evaluates a checkpoint on recorded episodes.

    Args:
        checkpoint_path: any checkpoint of the reference or of this project.
        zarr_path: a converted dataset.
        episodes: "held-out" (default), "all", or episode numbers.
        sampling: scheduler, steps and seed of deployment; `policy.default_sampler` by default.
        samples: noise samples at each step.
        device: "cpu", "cuda:0", ...
        which: "ema_model" or "model".
        tolerance_s: allowed time between a predicted gripper event and a recorded one, seconds.
        on_progress: called with the number of steps done, and the total over all samples and episodes.
        gripper_scale: scale in which the dataset's gripper is stored, see `open_recorded`; errors are in 0 closed .. 1
            open.

    Raises:
        WorkspaceError: the checkpoint, the dataset, their semantics or the choice of episodes is invalid.
    """
    if samples < 1:
        raise EvaluateError(f"samples is {samples}; expected 1 or more")
    if not 0 < tolerance_s < math.inf:
        raise EvaluateError(f"the tolerance of gripper events is {tolerance_s} s; expected a positive number")
    sampling = sampling or Sampling()
    recorded, checkpoint = open_recorded(checkpoint_path, zarr_path, device, which, gripper_scale)
    if recorded.policy.spec.action_names == ROTVEC_WIDTH:
        raise EvaluateError(
            f"{checkpoint_path}: predicts rotation vectors; open-loop errors are defined for quaternion poses"
        )
    set_sampler(recorded.policy, sampling.scheduler, sampling.steps)
    choice = choose_episodes(recorded.buffer, checkpoint, episodes)
    mean_action = _mean_action(recorded, choice.numbers)
    counted = ProgressCounter(on_progress, samples * sum(len(recorded.steps(episode)) for episode in choice.numbers))
    runs = []
    for episode in choice.numbers:
        draw = functools.partial(predict_chunks, recorded, recorded.steps(episode), sampling, on_steps=counted.add)
        drawn = np.stack([draw(sample)[0] for sample in range(samples)])
        check_finite(drawn, checkpoint_path, episode)
        runs.append(_episode(recorded, episode, drawn, mean_action, tolerance_s))
    trained = sampler_of_training(checkpoint.provenance, checkpoint.cfg)
    note = sampler_note(trained, Sampler(sampling.scheduler, sampling.steps))
    return OpenLoopReport(str(checkpoint_path), tuple(runs), sampling, score_episodes(runs), choice, note)


def _mean_action(recorded: RecordedEpisodes, left_out: Sequence[int]) -> FloatArray:
    """Returns (D,) the mean over episodes that are not evaluated; over all if none is left."""
    others = [episode for episode in range(recorded.n_episodes) if episode not in left_out]
    steps = np.concatenate([recorded.steps(episode) for episode in others or range(recorded.n_episodes)])
    return recorded.recorded_chunks(steps)[0][:, 0].mean(axis=0)


def _episode(
    recorded: RecordedEpisodes, episode: int, samples: FloatArray, mean_action: FloatArray, tolerance_s: float
) -> EpisodeOpenLoop:
    steps = recorded.steps(episode)
    chunks, inside = recorded.recorded_chunks(steps)
    measured = recorded.logged_states(steps)
    return EpisodeOpenLoop(
        episode=episode,
        samples=samples,
        recorded=chunks,
        inside=inside,
        measured=measured,
        baselines=baselines(chunks, measured, mean_action, recorded.layout, recorded.state_layout),
        step_seconds=recorded.step_seconds(episode),
        tolerance_s=tolerance_s,
        action=recorded.layout,
        state=recorded.state_layout,
    )


def compare_open_loop(first: OpenLoopReport, second: OpenLoopReport) -> dict[str, dict[str, Any]]:
    """Returns second minus first for each number of the table: mean over episodes, and 95 % paired bootstrap interval.

    An episode counts for a number only if both define it; a number defined in no episode is left out.

    Raises:
        EvaluateError: the reports cover different episodes, or their F1 tolerances differ.
    """
    ours, theirs = ([episode.episode for episode in report.episodes] for report in (first, second))
    if ours != theirs:
        raise EvaluateError(f"the episodes differ, {ours} and {theirs}; evaluate both on the same ones")
    if first.tolerance_s != second.tolerance_s:
        raise EvaluateError(
            f"gripper F1 within {first.tolerance_s:.3g} s and within {second.tolerance_s:.3g} s cannot be compared"
        )
    compared = {
        column: _paired(first.scores[POLICY].per_episode, second.scores[POLICY].per_episode, column)
        for column in COLUMNS
    }
    if compared["gripper_f1"] is not None:
        compared["gripper_f1"]["tolerance_s"] = first.tolerance_s
    return {column: entry for column, entry in compared.items() if entry is not None}


def _paired(
    first: Sequence[Mapping[str, float | None]], second: Sequence[Mapping[str, float | None]], column: str
) -> dict[str, Any] | None:
    """Returns second minus first of one number, paired by episode; None if no episode has it in both."""
    both = [(a.get(column), b.get(column)) for a, b in zip(first, second, strict=True)]
    pairs = [(a, b) for a, b in both if a is not None and b is not None]
    if not pairs:
        return None
    mean, (low, high) = paired_bootstrap(*np.array(pairs).T)
    bounded = len(pairs) > 1
    return {
        "difference": mean,
        "interval": [low, high] if bounded else None,
        "episodes": len(pairs),
        "differs": bounded and not low <= 0 <= high,
    }
