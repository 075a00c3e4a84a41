"""The objective that an update of proximal policy optimization minimizes (Schulman et al. 2017, equation 7)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClippedObjective:
    """Scalars of one batch.

    Attributes:
        loss: the negative objective.
        clip_share: share of frames whose probability ratio is beyond the clip.
        kl_to_behavior: estimate of the KL divergence of the new from the acting policy, nats (Schulman 2020, "k3").
    """

    loss: Tensor
    clip_share: Tensor
    kl_to_behavior: Tensor


def clipped_objective(log_probs: Tensor, acted: Tensor, advantages: Tensor, clip: float) -> ClippedObjective:
    """The mean of min(r A, clip(r, 1 - clip, 1 + clip) A), negated, where r is the ratio of probabilities.

    Args:
        log_probs: any shape, of the actions under the learning policy.
        acted: of the actions under the policy that took them.
        advantages: of the actions.
        clip: largest deviation of r from 1 that counts.
    """
    logarithm = log_probs - acted
    ratio = logarithm.exp()
    gain = (ratio * advantages).minimum(ratio.clamp(1 - clip, 1 + clip) * advantages)
    beyond = (ratio.detach() - 1).abs() > clip
    return ClippedObjective(-gain.mean(), beyond.float().mean(), (ratio - 1 - logarithm).detach().mean())
