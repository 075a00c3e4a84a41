"""The noise that denoising starts from, drawn for each window by itself: equal for any batch and any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class DenoisingPolicy(Protocol):
    """What the noise of a policy depends on."""

    model: Any

    @property
    def sequence_length(self) -> int:
        """Steps of a sample."""


def noise_seed(seed: int, episode: int, request: int) -> int:
    """Seed of the noise of one request; another for each request of each episode."""
    return int(np.random.SeedSequence([seed, episode, request]).generate_state(1)[0])


def window_noise(policy: DenoisingPolicy, generator: torch.Generator) -> Tensor:
    """Noise (T, width of a sample) of one window, drawn where the generator is."""
    return torch.randn((policy.sequence_length, policy.model.input_emb.in_features), generator=generator)


def initial_noise(policy: DenoisingPolicy, seeds: Sequence[int]) -> Tensor:
    """Noise (B, T, width of a sample) of B windows, one seed each, drawn on the CPU whatever the device."""
    return torch.stack([window_noise(policy, torch.Generator().manual_seed(seed)) for seed in seeds])
