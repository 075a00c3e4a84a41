"""The uncertainty of a number: intervals of shares, of differences of shares, and of paired means.

Few episodes invite bold claims, so every share in a report carries its interval. All are 95 % by default.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Interval = tuple[float, float]


def _special() -> Any:
    """SciPy's functions, which help needs not; scipy.stats takes longer to import than a hundred logs to judge."""
    from scipy import special

    return special


def defined(value: float) -> float | None:
    """A number for JSON and tables; None for NaN, a share or a mean of nothing."""
    return None if math.isnan(value) else value


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Interval of a share (Wilson 1927); (0, 1) without a trial."""
    if trials == 0:
        return 0.0, 1.0
    z = float(_special().ndtri((1 + confidence) / 2))
    center = successes + z**2 / 2
    reach = z * (successes * (trials - successes) / trials + z**2 / 4) ** 0.5
    low, high = (center - reach) / (trials + z**2), (center + reach) / (trials + z**2)
    return (low if successes else 0.0), (high if successes < trials else 1.0)


def difference_interval(before: tuple[int, int], after: tuple[int, int], confidence: float = 0.95) -> Interval:
    """Interval of share(after) - share(before), each (successes, trials), by Newcombe's hybrid score method (1998)."""
    (s0, n0), (s1, n1) = before, after
    if not n0 or not n1:
        return -1.0, 1.0
    p0, p1 = s0 / n0, s1 / n1
    (low0, high0), (low1, high1) = wilson_interval(s0, n0, confidence), wilson_interval(s1, n1, confidence)
    return p1 - p0 - float(np.hypot(p1 - low1, high0 - p0)), p1 - p0 + float(np.hypot(high1 - p1, p0 - low0))


def probability_improved(before: tuple[int, int], after: tuple[int, int]) -> float:
    """Posterior probability that share(after) > share(before), each (successes, trials), under Jeffreys' prior.

    The area under the density of one share times the distribution function of the other, on a grid of quantiles.
    """
    (s0, n0), (s1, n1) = before, after
    quantiles = (np.arange(20_000) + 0.5) / 20_000
    special = _special()
    shares_after = special.betaincinv(s1 + 0.5, n1 - s1 + 0.5, quantiles)
    return float(special.betainc(s0 + 0.5, n0 - s0 + 0.5, shares_after).mean())


def paired_bootstrap(
    first: ArrayLike, second: ArrayLike, *, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, Interval]:
    """Mean of second - first over paired units (N,), and its percentile bootstrap interval.

    Pair by what is independent: episodes, not steps. One unit gives an interval without bounds.
    """
    difference = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    if difference.ndim != 1 or difference.size == 0:
        raise ValueError(f"paired units have shape {difference.shape}; expected (N,) with N >= 1")
    if difference.size == 1:
        return float(difference[0]), (float("-inf"), float("inf"))
    draws = np.random.default_rng(seed).integers(0, difference.size, (resamples, difference.size))
    tail = (1 - confidence) / 2
    low, high = np.quantile(difference[draws].mean(axis=1), [tail, 1 - tail])
    return float(difference.mean()), (float(low), float(high))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the exact test of McNemar (1947): units in which one of two paired results holds alone."""
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    return min(1.0, 2 * float(_special().bdtr(min(only_first, only_second), discordant, 0.5)))
