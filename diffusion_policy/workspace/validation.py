"""Metrics on held-out episodes during training.

`val_loss` uses the same noise and diffusion times for every window at every epoch and in every run, so it changes only
with the weights. The sampled figures run the deployed sampler at every recorded step where the robot would request a
new chunk.

Legend: W windows, N steps, T horizon, Ta executed steps, Da action width.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_policy.evaluate.open_loop import JOINT_ERRORS, score_chunks
from diffusion_policy.evaluate.recorded_inference import RecordedEpisodes, Sampling, predict_chunks
from diffusion_policy.gripper_events import TOLERANCE_SECONDS, gripper_events, score_gripper_events
from diffusion_policy.intervals import wilson_interval
from diffusion_policy.policy.contract import DenoisingPolicy, PolicyModule
from diffusion_policy.policy.sampler import set_sampler
from diffusion_policy.spec import ActionLayout
from diffusion_policy.workspace.batches import Batches
from diffusion_policy.workspace.losses import GRIPPER_THRESHOLD
from diffusion_policy.workspace.processes import Processes
from diffusion_policy.workspace.sampler_settings import SamplerSettings

Policy = PolicyModule
# Metrics by the names of their errors.
MOTION_ERRORS = {
    "position_mm": "val_position_error_mm",
    "rotation_deg": "val_rotation_error_deg",
    **{name: f"val_joint_error_{unit}" for unit, name in JOINT_ERRORS.items()},
    "joint": "val_joint_error",
}
# Not the run's seed, so that validation losses of runs with different seeds are comparable.
VALIDATION_SEED = 0


@contextlib.contextmanager
def evaluating(policy: Policy) -> Iterator[None]:
    """The policy in eval mode, without gradients; restored afterwards."""
    training = policy.training
    policy.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        policy.train(training)


class FixedNoise:
    """Random numbers of the loss (noise and diffusion times) for each window, the same at every call.

    Args:
        policy: draws the random numbers of its own loss.
        n_windows: W.
    """

    def __init__(self, policy: Policy, n_windows: int):
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        self.sampled = policy.draw(n_windows, generator)

    def of(self, rows: Tensor, device: torch.device) -> dict[str, Tensor]:
        """The random numbers of these windows."""
        return {name: numbers[rows].to(device) for name, numbers in self.sampled.items()}


def fixed_noise_loss(
    policy: Policy, batches: Batches, noise: FixedNoise, processes: Processes, max_batches: int | None = None
) -> float:
    """Mean loss over all windows of the first epoch of `batches` (of its first `max_batches`), with fixed noise."""
    total = torch.zeros(2, device=processes.device, dtype=torch.float64)
    with evaluating(policy):
        for batch in batches.epoch(0, end=max_batches):
            if batch.is_filler:
                continue
            rows = torch.tensor([batch.indices[i] for i in batch.share])
            loss = policy.loss(batch.data, noise.of(rows, processes.device))
            total += torch.stack([loss.double() * len(rows), loss.new_tensor(len(rows), dtype=torch.float64)])
    loss_sum, windows = processes.sum(total).tolist()
    return loss_sum / windows if windows else math.nan


@dataclass(frozen=True)
class EpisodePrediction:
    """Actions that the deployed sampler predicts in one recorded episode.

    Attributes:
        episode: its number in the dataset.
        predicted: (N, Da) commands, chunk after chunk as the robot executes them.
        recorded: (N, Da).
        chunks: (C, Ta, Da) the predicted chunks.
        targets: (C, Ta, Da) the recorded actions there.
        inside: (C, Ta) which of them are inside the episode.
        step_seconds: between two steps, None without a clock.
    """

    episode: int
    predicted: NDArray[np.float64]
    recorded: NDArray[np.float64]
    chunks: NDArray[np.float64]
    targets: NDArray[np.float64]
    inside: NDArray[np.bool_]
    step_seconds: float | None = None

    @property
    def finite(self) -> bool:
        """Whether every command is a number."""
        return bool(np.isfinite(self.predicted).all())


@contextlib.contextmanager
def deployed_sampler(policy: Policy, settings: SamplerSettings) -> Iterator[None]:
    """The policy with the sampler that serving uses; restored afterwards."""
    if not isinstance(policy, DenoisingPolicy):
        yield
        return
    scheduler, steps = policy.noise_scheduler, policy.num_inference_steps
    set_sampler(policy, settings.scheduler, settings.steps)
    try:
        yield
    finally:
        policy.noise_scheduler, policy.num_inference_steps = scheduler, steps


def predict_episodes(
    recorded: RecordedEpisodes, episodes: list[int], settings: SamplerSettings
) -> list[EpisodePrediction]:
    """Run a policy over recorded episodes, one chunk every Ta steps, with noise that is fixed per step."""
    predictions, policy = [], recorded.policy
    with evaluating(policy), deployed_sampler(policy, settings):
        sampling = Sampling(settings.scheduler, settings.steps, VALIDATION_SEED)
        for episode in episodes:
            steps = recorded.steps(episode, policy.n_action_steps)
            chunks, _ = predict_chunks(recorded, steps, sampling)
            targets, inside = recorded.recorded_chunks(steps)
            predictions.append(
                EpisodePrediction(
                    episode=episode,
                    predicted=chunks[inside],
                    recorded=targets[inside].astype(np.float64),
                    chunks=chunks,
                    targets=targets,
                    inside=inside,
                    step_seconds=recorded.step_seconds(episode),
                )
            )
    return predictions


def motion_errors(predictions: list[EpisodePrediction], layout: ActionLayout | None) -> dict[str, float]:
    """Mean error of position (mm), rotation (degrees, geodesic) and joints, overall and per step of the chunk.

    Undefined values are left out: poses in a layout of joints, and everything if there is no episode or the policy
    predicts NaN. With several arms it is the mean.
    """
    if layout is None or not layout.motion_columns or not predictions or not all(p.finite for p in predictions):
        return {}
    chunks, targets, inside = (
        np.concatenate([getattr(p, x) for p in predictions]) for x in ("chunks", "targets", "inside")
    )
    errors = score_chunks(chunks, targets, inside, layout)
    means, by_step = errors.means(), errors.per_horizon_step()
    metrics = {metric: means.get(name) for name, metric in MOTION_ERRORS.items()}
    for name, metric in MOTION_ERRORS.items():
        metrics |= {f"{metric}_step_{i}": error for i, error in enumerate(by_step.get(name, ()), start=1)}
    return {key: error for key, error in metrics.items() if error is not None}


def gripper_scores(
    predictions: list[EpisodePrediction], layout: ActionLayout | None, tolerance_s: float = TOLERANCE_SECONDS
) -> dict[str, float]:
    """Events found and missed, how early or late, and how many frames are right; empty without a gripper command.

    Several grippers are scored together.

    Undefined values are left out: F1 and recall if no event is recorded, precision if none is predicted, their
    intervals, and everything if the policy predicts NaN. `val_gripper_tolerance_s` is the tolerance of F1.
    """
    if layout is None or not layout.has_gripper or not predictions or not all(p.finite for p in predictions):
        return {}
    pairs = [
        (p.step_seconds, *both)
        for p in predictions
        for both in zip(layout.grippers(p.predicted).T, layout.grippers(p.recorded).T, strict=True)
    ]
    total = functools.reduce(
        operator.add,
        (
            score_gripper_events(predicted, recorded, step_seconds=seconds, tolerance_s=tolerance_s)
            for seconds, predicted, recorded in pairs
        ),
    )
    right = sum(int(((p > GRIPPER_THRESHOLD) == (r > GRIPPER_THRESHOLD)).sum()) for _, p, r in pairs)
    matched, false = len(total.matched), len(total.false)
    metrics = {
        "val_gripper_f1": total.f1,
        "val_gripper_recall": total.recall,
        "val_gripper_precision": total.precision,
        "val_gripper_tolerance_s": tolerance_s,
        "val_gripper_events_recorded": total.recorded,
        "val_gripper_events_found": matched,
        "val_gripper_false_flips": false,
        "val_gripper_frame_accuracy": right / sum(len(r) for *_, r in pairs),
    }
    for name, successes, trials in (("recall", matched, total.recorded), ("precision", matched, matched + false)):
        if trials:
            low, high = wilson_interval(successes, trials)
            metrics |= {f"val_gripper_{name}_low": low, f"val_gripper_{name}_high": high}
    if matched:
        lag = float(total.offsets.mean())
        metrics["val_gripper_lag_steps"] = lag
        if total.step_seconds is not None:
            metrics["val_gripper_lag_ms"] = lag * total.step_seconds * 1000
    return {key: value for key, value in metrics.items() if math.isfinite(value)}


def undefined_scores(predictions: list[EpisodePrediction], layout: ActionLayout | None) -> str | None:
    """A sentence about what these held-out episodes cannot measure; None if they can measure everything."""
    if not all(p.finite for p in predictions):
        return "the policy predicts NaN or infinity in held-out episodes: its errors and its gripper F1 are undefined"
    if layout is None or not layout.has_gripper:
        return None
    if any(gripper_events(gripper) for p in predictions for gripper in layout.grippers(p.recorded).T):
        return None
    return (
        f"no gripper event is recorded in the {len(predictions)} held-out episodes that are measured: gripper F1 "
        "and recall are undefined, and choose no checkpoint; hold out episodes that grasp (task.dataset.seed, "
        "task.dataset.val_ratio, sampler.max_episodes)"
    )


def count_active_features(policy: Policy, obs: Mapping[str, Tensor]) -> int | None:
    """How many of a camera's 64 features change at all between observations (B, To, ...); None without a camera.

    With several cameras, the one with the fewest counts. Features are taken after the ReLU, at the first observed step.
    If none changes, the policy sees nothing: units that are zero for every image get no gradient and stay at zero.
    """
    with evaluating(policy):
        found = policy.camera_features(obs, torch.Generator(policy.device).manual_seed(VALIDATION_SEED))
    return min((int((of.amax(0) > of.amin(0)).sum()) for of in found.values()), default=None)


def inactive_features_warning(metrics: Mapping[str, float]) -> str | None:
    """A sentence if no image feature changes between the held-out frames; None if some do."""
    if metrics.get("val_image_features", 1) > 0:
        return None
    return (
        "the policy sees nothing: none of its image features changes between held-out frames, and training "
        "cannot revive them; start again with learning_rates.obs_encoder=0.1, or a lower learning rate"
    )


def early_warning(first_loss: float | None, loss: float, metrics: dict[str, float]) -> str | None:
    """A sentence if the training loss falls while no recorded gripper event is predicted; None if all is well."""
    recorded, found = metrics.get("val_gripper_events_recorded"), metrics.get("val_gripper_events_found")
    if not recorded or found or first_loss is None or loss > 0.5 * first_loss:
        return None
    return (
        f"the training loss fell from {first_loss:.4f} to {loss:.4f}, but none of {recorded:.0f} recorded gripper "
        "events is predicted yet; if that stays, try loss=gripper_events or observation_dropout=gripper"
    )
