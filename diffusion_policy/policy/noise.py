"""The noise that denoising starts from, drawn per window, so that it is the same for any batch size and device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor


@runtime_checkable
class SampledPolicy(Protocol):
    """What a policy's noise depends on; policies that do not start from noise lack it."""

    @property
    def sample_shape(self) -> tuple[int, int]:
        """(steps, width) of a sample."""


def noise_seed(seed: int, episode: int, request: int) -> int:
    """Seed of the noise of one request; different for each request of each episode."""
    return int(np.random.SeedSequence([seed, episode, request]).generate_state(1)[0])


def window_noise(policy: object, generator: torch.Generator) -> Tensor | None:
    """Noise (T, width of a sample) of one window, on the generator's device; None for policies that start from none."""
    if not isinstance(policy, SampledPolicy):
        return None
    return torch.randn(policy.sample_shape, generator=generator)


def initial_noise(policy: object, seeds: Sequence[int]) -> Tensor | None:
    """Noise (B, T, width of a sample) of B windows, one seed each, drawn on the CPU regardless of the device.

    None if the policy does not start from noise.
    """
    drawn = [window_noise(policy, torch.Generator().manual_seed(seed)) for seed in seeds]
    known = [noise for noise in drawn if noise is not None]
    return torch.stack(known) if known else None
