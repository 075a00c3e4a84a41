"""Evaluation during training: which metrics are computed before the first update and after each epoch."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from diffusion_policy.dataset.content_hash import content_sha256
from diffusion_policy.dataset.joined_datasets import JoinedDatasets, dataset_paths
from diffusion_policy.dataset.replay_buffer import TIMESTAMP_KEY
from diffusion_policy.evaluate.recorded_inference import RecordedEpisodes
from diffusion_policy.gripper_events import control_period
from diffusion_policy.gripper_scale import CONFIG_KEY
from diffusion_policy.policy.contract import PolicyModule
from diffusion_policy.spec import find_layout, with_units
from diffusion_policy.workspace.data import Data, instantiate
from diffusion_policy.workspace.metrics import TOLERANCE, MetricsLog, is_defined
from diffusion_policy.workspace.pictures import draw_episode
from diffusion_policy.workspace.processes import Processes
from diffusion_policy.workspace.progress import TrainingBar
from diffusion_policy.workspace.run_state import TrainingProgress
from diffusion_policy.workspace.sampler_settings import read_sampler
from diffusion_policy.workspace.validation import (
    EpisodePrediction,
    FixedNoise,
    count_active_features,
    deployed_sampler,
    early_warning,
    evaluating,
    fixed_noise_loss,
    gripper_scores,
    inactive_features_warning,
    motion_errors,
    predict_episodes,
    undefined_scores,
)

logger = logging.getLogger(__name__)

Policy = PolicyModule
# Batches of training windows over which the loss before the first update is computed.
INITIAL_LOSS_BATCHES = 4
# Held-out windows on whose images active features are counted.
FEATURE_WINDOWS = 32
# Validation episodes of which plots are logged.
PLOTS = 2


class ScheduledEvaluator:
    """What the evaluation of both kinds of training shares: what is evaluated, when, and what a checkpoint keeps of it.

    Args:
        cfg: config of the run.
        folder: run folder.
        data: training and held-out data.
        model: the live policy.
        ema_model: its average, or None.
        processes: the processes that share the work.
    """

    def __init__(
        self,
        cfg: DictConfig,
        folder: Path,
        data: Data,
        model: Policy,
        ema_model: Policy | None,
        processes: Processes,
    ):
        self._cfg, self._data, self._processes = cfg, data, processes
        self._model, self._deployed = model, ema_model if ema_model is not None else model
        self._has_average = ema_model is not None
        self._episodes: list[int] = np.flatnonzero(data.dataset.validation_episodes).tolist()  # that are measured
        self._runner: Any = None
        if cfg.training.rollout_every and processes.writes:
            self._runner = instantiate(cfg.task.env_runner, "task.env_runner", output_dir=str(folder))

    def measured_with(self) -> dict[str, Any]:
        """Evaluation settings that must be equal for metrics of two evaluations to be comparable."""
        weights = "ema_model" if self._has_average else "model"
        keys = [self._data.identities[episode].key for episode in self._episodes]
        digest = content_sha256(keys)
        found = {"weights": weights, **self._sampling(), "episodes": len(keys), "episodes_sha256": digest}
        describe = getattr(self._runner, "describe", None)  # custom runners may lack it
        return found if describe is None else {**found, "closed_loop": describe()}

    def record(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Entries of a checkpoint: the evaluation settings, and the metrics of these weights, or None."""
        figures = {
            key: value for key, value in metrics.items() if key.startswith(("val_", "test_")) and is_defined(value)
        }
        return {"with": self.measured_with(), "figures": figures or None}

    def _sampling(self) -> dict[str, Any]:
        """How actions are sampled; nothing of policies that give probabilities."""
        return {}

    def _due(self, epoch: int, setting: str) -> bool:
        return is_due(epoch, self._cfg.training[setting], self._cfg.training.num_epochs)


class Evaluator(ScheduledEvaluator):
    """Evaluates the live policy and its average; arguments as of `ScheduledEvaluator`."""

    def __init__(
        self,
        cfg: DictConfig,
        folder: Path,
        data: Data,
        model: Policy,
        ema_model: Policy | None,
        processes: Processes,
    ):
        super().__init__(cfg, folder, data, model, ema_model, processes)
        found = find_layout(model.spec.robot.action_names, model.spec.robot.units)
        self._layout = None if found is None else with_units(found, data.dataset.semantics)
        self._noise = FixedNoise(model, len(data.held_out)) if len(data.held_out) else None
        self._dataset: list[str] = dataset_paths(cfg.task.dataset.zarr_path)
        self.sampler = read_sampler(OmegaConf.select(cfg, "sampler"), self._step_seconds(self._episodes))
        # Action differences are not a motion whose error could be measured; for them there is only the loss.
        self._episodes = [] if data.dataset.action_differences else self._episodes[: self.sampler.max_episodes]
        self._recorded: dict[Policy, RecordedEpisodes] = {}
        self._undefined_reason: str | None = None

    def _step_seconds(self, episodes: Sequence[int]) -> float | None:
        """Median over these episodes of the time between their steps, in seconds; None without timestamps."""
        recorded = JoinedDatasets(self._dataset)
        if TIMESTAMP_KEY not in recorded:
            return None
        parts = np.split(recorded.rows(TIMESTAMP_KEY), recorded.episode_ends[:-1])
        known = [period for period in (control_period(parts[episode]) for episode in episodes) if period is not None]
        return statistics.median(known) if known else None

    def before_first_update(self) -> dict[str, Any]:
        """The first line of metrics: losses of the initial weights, with fixed noise and without dropout."""
        noise = FixedNoise(self._model, len(self._data.dataset))
        train = fixed_noise_loss(self._model, self._data.train, noise, self._processes, INITIAL_LOSS_BATCHES)
        line: dict[str, Any] = {"global_step": 0, "epoch": 0, "train_loss_before_first_update": train}
        validation = self._validation_loss(self._model)
        if validation is not None:
            line["val_loss_before_first_update"] = validation
        if validation is not None and self._processes.writes:
            active = self._active_features(self._model)
            line |= {f"{key}_before_first_update": value for key, value in active.items()}
            _warn(inactive_features_warning(active))
        logger.info(
            "loss before the first update: training windows %.4f, held-out windows %s",
            train, "none" if validation is None else f"{validation:.4f}",
        )  # fmt: skip
        return line

    def _validation_loss(self, policy: Policy) -> float | None:
        if self._data.validation is None or self._noise is None:
            return None
        return fixed_noise_loss(policy, self._data.validation, self._noise, self._processes)

    def after_epoch(
        self, progress: TrainingProgress, train_loss: float, log: MetricsLog | None, bar: TrainingBar
    ) -> dict[str, Any]:
        """The metrics that are due after this epoch: validation loss, errors of sampled actions, rollouts.

        Args:
            progress: position of the run, at the end of the epoch.
            train_loss: mean training loss of the epoch.
            log: receives plots; None in processes that do not write.
            bar: shows the latest metrics.

        Names without suffix are metrics of the deployed weights (the average); those with `_model` of the live ones.
        """
        epoch, metrics = progress.epoch, dict[str, Any]()
        if self._due(epoch, "val_every"):
            metrics |= self._losses()
        if self._processes.writes and self._episodes and self._due(epoch, "sample_every"):
            metrics |= self._sampled(progress, train_loss, log)
        if self._runner is not None and self._due(epoch, "rollout_every"):
            with evaluating(self._deployed), deployed_sampler(self._deployed, self.sampler):
                metrics |= self._runner.run(self._deployed)
        bar.validated(metrics)
        return metrics

    def _sampling(self) -> dict[str, Any]:
        return self.sampler.to_plain()

    def _losses(self) -> dict[str, Any]:
        deployed = self._validation_loss(self._deployed)
        if deployed is None:
            return {}
        if not self._has_average:
            return {"val_loss": deployed}
        return {"val_loss": deployed, "val_loss_model": self._validation_loss(self._model)}

    def _sampled(self, progress: TrainingProgress, train_loss: float, log: MetricsLog | None) -> dict[str, Any]:
        names = self._model.spec.robot.action_names
        predictions = self._predict(self._deployed)
        metrics: dict[str, Any] = self._figures(predictions) | self._active_features(self._deployed)
        if self._has_average:
            live = self._figures(self._predict(self._model)) | self._active_features(self._model)
            metrics |= {f"{key}_model": value for key, value in live.items() if not _is_deployed_only(key)}
        reason = undefined_scores(predictions, self._layout)
        if reason != self._undefined_reason:  # warn once, not at every evaluation
            _warn(reason)
        self._undefined_reason = reason
        _warn(early_warning(progress.first_epoch_loss, train_loss, metrics))
        _warn(inactive_features_warning(metrics))
        if log is not None:
            for prediction in predictions[:PLOTS]:
                log.image(f"episode_{prediction.episode}", draw_episode(prediction, names), progress.global_step)
        return metrics

    def _predict(self, policy: Policy) -> list[EpisodePrediction]:
        if policy not in self._recorded:  # opening it again for every evaluation would take as long as a small one
            latency = int(self._cfg.n_latency_steps)
            scale = OmegaConf.select(self._cfg, CONFIG_KEY, default=None)
            self._recorded[policy] = RecordedEpisodes(policy, self._dataset, latency, scale)
        return predict_episodes(self._recorded[policy], self._episodes, self.sampler)

    def _active_features(self, policy: Policy) -> dict[str, int]:
        if not len(self._data.held_out):  # held-out episodes too short for a window
            return {}
        windows = np.unique(np.linspace(0, len(self._data.held_out) - 1, FEATURE_WINDOWS).astype(int))
        active = count_active_features(policy, self._data.held_out.get_batch(windows)["obs"])
        return {} if active is None else {"val_image_features": active}

    def _figures(self, predictions: list[EpisodePrediction]) -> dict[str, float]:
        grippers = gripper_scores(predictions, self._layout, self.sampler.tolerance_s)
        return motion_errors(predictions, self._layout) | grippers


def is_due(epoch: int, every: int | None, num_epochs: int) -> bool:
    """Whether this epoch is the last one or a multiple of `every`; never due if `every` is 0 or None."""
    return every is not None and every > 0 and (epoch % every == 0 or epoch + 1 == num_epochs)


def _is_deployed_only(key: str) -> bool:
    """Whether a metric is reported of the deployed weights only, not of the live ones, too."""
    return "_step_" in key or key == TOLERANCE


def _warn(message: str | None) -> None:
    if message is not None:
        logger.warning(message)
