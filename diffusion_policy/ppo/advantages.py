"""Generalized advantage estimation (Schulman et al. 2016).

Legend of shapes: B environments, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor


def generalized_advantages(
    rewards: Tensor, values: Tensor, next_values: Tensor, ended: Tensor, discount: float, gae_lambda: float
) -> Tensor:
    """(B, T) advantages: the sum over k of (discount * lambda)^k times the error of the value at frame t + k.

    The sum stops where an episode ends. How it ended follows from ``next_values``: 0 if it terminated, the value of the
    last observation if it was only truncated, since more would have followed.

    Args:
        rewards: (B, T), of the action at each frame.
        values: (B, T), of each frame.
        next_values: (B, T), of what was observed after the action.
        ended: (B, T) bool, whether the episode ended with the action, in either way.
        discount: of rewards, per frame.
        gae_lambda: 0: one-step errors; 1: Monte Carlo returns less the value.
    """
    errors = rewards + discount * next_values - values
    found = torch.zeros_like(errors)
    later = torch.zeros_like(errors[:, 0])
    for frame in reversed(range(errors.shape[1])):
        later = errors[:, frame] + discount * gae_lambda * later * ~ended[:, frame]
        found[:, frame] = later
    return found


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """Share of the variance of returns that values explain: 1 all, 0 none; negative if they are worse than a constant.

    NaN if all returns are equal.
    """
    variance = returns.var(correction=0)
    unexplained = (returns - values).var(correction=0)
    return float("nan") if float(variance) == 0 else float(1 - unexplained / variance)
