"""Exponential moving average of a model's weights: the copy that is deployed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from diffusion_policy.model import ModelError


class EMAModel:
    """Averages weights with a decay that warms up: 1 - (1 + s / inv_gamma) ** -power.

    s counts the updates after ``update_after_step``; at s <= 0 the decay is 0, so the average starts from the live
    weights. The counter is part of the run's state (:meth:`state_dict`): restarting it at 0 would overwrite the
    average.

    Args:
        model: the copy that holds the average; set to eval mode, without gradients.
        update_after_step: updates that only copy.
        inv_gamma, power: shape of the warm-up; 1 and 2/3 suit a million steps, 1 and 3/4 shorter runs.
        min_value, max_value: limits of the decay.
    """

    def __init__(
        self,
        model: nn.Module,
        update_after_step: int = 0,
        inv_gamma: float = 1.0,
        power: float = 2 / 3,
        min_value: float = 0.0,
        max_value: float = 0.9999,
    ) -> None:
        self.averaged_model = model.eval().requires_grad_(requires_grad=False)
        self.update_after_step = update_after_step
        self.inv_gamma = inv_gamma
        self.power = power
        self.min_value = min_value
        self.max_value = max_value
        self.decay = 0.0
        self.optimization_step = 0

    def get_decay(self, optimization_step: int) -> float:
        """The share of the old average that the update with this number (from 0) keeps."""
        step = max(0, optimization_step - self.update_after_step - 1)
        if step == 0:
            return 0.0
        value = 1 - (1 + step / self.inv_gamma) ** -self.power
        return max(self.min_value, min(value, self.max_value))

    @torch.no_grad()
    def step(self, new_model: nn.Module) -> None:
        """Update the average with the live weights.

        Parameters without gradient and all of BatchNorm, running statistics included, are copied.

        Raises:
            ModelError: the two models do not have the same parameters.
        """
        self.decay = self.get_decay(self.optimization_step)
        live, averaged = dict(new_model.named_parameters()), dict(self.averaged_model.named_parameters())
        if live.keys() != averaged.keys():
            raise ModelError(f"model and EMA copy differ in {sorted(live.keys() ^ averaged.keys())[:5]}")
        copied = _batch_norm_tensors(new_model)
        kept = [name for name, parameter in live.items() if parameter.requires_grad and name not in copied]
        average: list[Tensor] = [averaged[name] for name in kept]
        torch._foreach_mul_(average, self.decay)
        torch._foreach_add_(average, [live[name].to(averaged[name].dtype) for name in kept], alpha=1 - self.decay)
        for name in live.keys() - set(kept) - copied.keys():
            averaged[name].copy_(live[name])
        for name, target in _batch_norm_tensors(self.averaged_model).items():
            target.copy_(copied[name])
        self.optimization_step += 1

    def state_dict(self) -> dict[str, Any]:
        """The counter; checkpoints hold the averaged weights as a separate state_dict."""
        return {"optimization_step": self.optimization_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved counter."""
        self.optimization_step = int(state["optimization_step"])
        self.decay = self.get_decay(self.optimization_step - 1)


def _batch_norm_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and running statistics of all BatchNorm layers, by their first name in the model."""
    return {
        f"{prefix}.{name}" if prefix else name: tensor
        for prefix, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
