"""Losses of policies with memory, which answer with classes; shared by training, validation and PPO.

Legend of shapes: B episodes, T frames, n classes of a factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffusion_policy.policy.contract import PolicyMemory, RecurrentPolicy


def surprise(found: Mapping[str, Tensor], classes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """-log p by factor, (...) each.

    Args:
        found: log-probabilities (..., n) by factor.
        classes: (...) int64 by factor.
    """
    return {name: -found[name].gather(-1, classes[name][..., None])[..., 0] for name in found}


def total_surprise(found: Mapping[str, Tensor], classes: Mapping[str, Tensor]) -> Tensor:
    """(...) -log p of the action, the sum over its factors; see :func:`surprise`."""
    return torch.stack(list(surprise(found, classes).values())).sum(dim=0)


def draw_classes(found: Mapping[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Class of each factor, (...) of log-probabilities (..., n): drawn, or the most probable without a generator.

    Drawn with the Gumbel-max trick: the class with the largest sum of log-probability and noise.
    """
    drawn = {}
    for name, part in found.items():
        if generator is not None:
            uniform = torch.rand(part.shape, generator=generator, device=part.device)
            part = part - torch.log(-torch.log(uniform.clamp(min=torch.finfo(part.dtype).tiny)))
        drawn[name] = part.argmax(dim=-1)
    return drawn


def divergence(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """(...) KL divergence of ``one`` from ``other``, log-probabilities (..., n) by factor: the sum over factors."""
    return torch.stack([(one[name].exp() * (one[name] - other[name])).sum(dim=-1) for name in one]).sum(dim=0)


def mean_of_valid(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of the (B, T) numbers where ``valid`` (B, T) bool is true; of all if it is None."""
    return values.mean() if valid is None else values[valid].mean()


def sequence_loss(
    policy: RecurrentPolicy, batch: Mapping[str, Any], memory: PolicyMemory
) -> tuple[Tensor, PolicyMemory]:
    """The behavior cloning loss of a chunk, and the memory after it.

    The mean over frames of -log p, summed over the factors of the action. Gradients flow through the chunk and, unless
    the memory is detached, through the frames behind it.

    Args:
        policy: whose loss is computed.
        batch: "obs" (B, T, ...), "action" (B, T, Da), "first" (B, T) bool, true where an episode starts, and "valid"
            (B, T) bool, which frames count; all if missing.
        memory: of these B episodes before the chunk.
    """
    found, memory = policy.log_probabilities(batch["obs"], batch["first"], memory)
    classes, memory = policy.classes_of(batch["action"], batch["first"], memory)
    return mean_of_valid(total_surprise(found, classes), batch.get("valid")), memory
