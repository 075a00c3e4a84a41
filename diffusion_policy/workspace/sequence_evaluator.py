"""Evaluation during training of policies with memory: held-out episodes from their first frame to their last.

Names without suffix are metrics of the deployed weights (the average, if there is one); `_majority` and `_previous`
belong to two blind policies: the most frequent training action, and the previous recorded action.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_policy.minecraft.actions import VPT_ACTION
from diffusion_policy.minecraft.scores import most_frequent, previous, score_actions
from diffusion_policy.policy.contract import PolicyModule
from diffusion_policy.policy.sequences import surprise
from diffusion_policy.workspace.batches import Batches
from diffusion_policy.workspace.evaluator import INITIAL_LOSS_BATCHES, ScheduledEvaluator
from diffusion_policy.workspace.metrics import MetricsLog
from diffusion_policy.workspace.progress import TrainingBar
from diffusion_policy.workspace.run_state import TrainingProgress
from diffusion_policy.workspace.sequence_loss import recurrent
from diffusion_policy.workspace.validation import evaluating

logger = logging.getLogger(__name__)

_SHOWN = ("accuracy_buttons", "accuracy_camera", "f1")


@dataclass(frozen=True)
class Run:
    """What a policy did with a set of episodes.

    Attributes:
        losses: mean of -log p by factor of the action.
        accuracy: share of correct classes, by factor.
        steps: (N,) recorded steps, in the order in which they were seen.
        predicted: (N, Da) the most probable actions.
    """

    losses: dict[str, float]
    accuracy: dict[str, float]
    steps: NDArray[np.int64]
    predicted: NDArray[np.float32]

    @property
    def loss(self) -> float:
        """The sum over the factors."""
        return sum(self.losses.values()) if self.losses else math.nan


def run_through(policy: PolicyModule, batches: Batches, max_batches: int | None = None) -> Run:
    """Run a policy over the first epoch of `batches` (at most `max_batches`), with a fresh memory."""
    model, memory = recurrent(policy), recurrent(policy).initial_memory(batches.order.batch_size)
    losses: dict[str, list[torch.Tensor]] = {}
    right: dict[str, list[torch.Tensor]] = {}
    steps: list[int] = []
    predicted = []
    with evaluating(policy):
        for batch in batches.epoch(0, end=max_batches):
            data, valid = batch.data, batch.data["valid"]
            found, memory = model.log_probabilities(data["obs"], data["first"], memory)
            classes, memory = model.classes_of(data["action"], data["first"], memory)
            best = {name: part.argmax(dim=-1) for name, part in found.items()}
            for name, values in surprise(found, classes).items():
                losses.setdefault(name, []).append(values[valid].double())
                right.setdefault(name, []).append((best[name] == classes[name])[valid].double())
            predicted.append(model.action_of(best)[valid].cpu())
            steps += batch.indices
    means = [{name: float(torch.cat(parts).mean()) for name, parts in some.items()} for some in (losses, right)]
    return Run(means[0], means[1], np.array(steps, dtype=np.int64), torch.cat(predicted).numpy())


class SequenceEvaluator(ScheduledEvaluator):
    """Evaluates the live policy and its average on held-out episodes; arguments as of `ScheduledEvaluator`."""

    def before_first_update(self) -> dict[str, Any]:
        """The first line of metrics: losses of the initial weights."""
        train = run_through(self._model, self._data.train, INITIAL_LOSS_BATCHES).loss
        line: dict[str, Any] = {"global_step": 0, "epoch": 0, "train_loss_before_first_update": train}
        if self._data.validation is not None:
            line["val_loss_before_first_update"] = run_through(self._model, self._data.validation).loss
        held_out = line.get("val_loss_before_first_update")
        logger.info(
            "loss before the first update: training episodes %.4f, held-out episodes %s",
            train, "none" if held_out is None else f"{held_out:.4f}",
        )  # fmt: skip
        return line

    def after_epoch(
        self, progress: TrainingProgress, train_loss: float, log: MetricsLog | None, bar: TrainingBar
    ) -> dict[str, Any]:
        """The metrics that are due after this epoch; see `Evaluator.after_epoch`."""
        epoch, metrics = progress.epoch, dict[str, Any]()
        if self._data.validation is not None and self._due(epoch, "val_every"):
            metrics |= self._measured(run_through(self._deployed, self._data.validation))
            if self._has_average:
                metrics["val_loss_model"] = run_through(self._model, self._data.validation).loss
            logger.info("%s", _line(metrics))
        if self._runner is not None and self._due(epoch, "rollout_every"):
            with evaluating(self._deployed):
                metrics |= self._runner.run(self._deployed)
        bar.validated(metrics)
        return metrics

    def _measured(self, run: Run) -> dict[str, float]:
        metrics = {"val_loss": run.loss, **{f"val_loss_{name}": value for name, value in run.losses.items()}}
        metrics |= {f"val_accuracy_{name}": value for name, value in run.accuracy.items()}
        if self._model.spec.action_names != VPT_ACTION:
            return metrics
        dataset = self._data.dataset
        starts = np.concatenate([[0], dataset.episode_ends[:-1]])
        order = np.argsort(run.steps)  # episode by episode
        steps = run.steps[order]
        recorded = dataset.actions_at(steps[:, None]).squeeze(1).cpu().numpy()
        guesses = {
            "": run.predicted[order],
            "_majority": np.broadcast_to(self._majority, recorded.shape),
            "_previous": previous(recorded, np.isin(steps, starts)),
        }
        for policy, actions in guesses.items():
            scores = score_actions(actions, recorded)
            metrics |= {f"val_{name}{policy}": value for name, value in scores.items()}
        return metrics

    @cached_property
    def _majority(self) -> NDArray[np.floating]:
        """The most frequent action of the training episodes."""
        dataset = self._data.dataset
        steps = np.flatnonzero(np.repeat(dataset.train_episodes, np.diff(dataset.episode_ends, prepend=0)))
        return most_frequent(dataset.actions_at(steps[:, None]).squeeze(1).cpu().numpy())


def _line(metrics: Mapping[str, float]) -> str:
    """Held-out metrics for people, each with those of the two blind policies."""
    parts = [f"{name} {metrics[f'val_{name}']:.3f} (majority {metrics.get(f'val_{name}_majority', math.nan):.3f}, "
             f"previous {metrics.get(f'val_{name}_previous', math.nan):.3f})"
             for name in _SHOWN if f"val_{name}" in metrics]  # fmt: skip
    return f"held-out episodes: loss {metrics['val_loss']:.4f}" + "".join(f", {part}" for part in parts)
