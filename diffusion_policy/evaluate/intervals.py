"""The former import path of `diffusion_policy.intervals`, kept for programs that name it."""

from diffusion_policy.intervals import (
    Interval,
    difference_interval,
    paired_bootstrap,
    probability_improved,
    wilson_interval,
)

__all__ = ["Interval", "difference_interval", "paired_bootstrap", "probability_improved", "wilson_interval"]
