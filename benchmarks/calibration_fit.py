"""How well a figure from recordings predicts success in closed loop: thresholds, and their errors on runs left out.

Checkpoints of one run are alike, so a threshold is fitted without the run that it is tested on. A policy succeeds here
if it does the task in at least half of its scenes.

Legend: P policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.intervals import wilson_interval

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
SUCCEEDS = 0.5


@dataclass(frozen=True)
class Figure:
    """A figure that separates good policies from bad ones.

    Attributes:
        name: name in the results.
        title: title for display.
        larger: whether a larger value is better.
    """

    name: str
    title: str
    larger: bool

    def says_yes(self, values: FloatArray, threshold: float) -> BoolArray:
        """(P,) whether each value is as good as the threshold."""
        return np.asarray(values >= threshold if self.larger else values <= threshold)


def ranks(values: FloatArray) -> FloatArray:
    """Returns (P,) ranks from 0, equal values sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[inverse], dtype=np.float64)


def rank_correlation(first: FloatArray, second: FloatArray) -> float | None:
    """Returns Spearman's rank correlation; None if one of them does not vary."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def area(values: FloatArray, good: BoolArray, *, larger: bool) -> float | None:
    """Returns the chance that a policy that succeeds has a better figure than one that fails (0.5: no information)."""
    n_good, n_bad = int(good.sum()), int((~good).sum())
    if not n_good or not n_bad:
        return None
    placed = ranks(values if larger else -values)[good].sum() - n_good * (n_good - 1) / 2
    return float(placed / (n_good * n_bad))


def fit_threshold(values: FloatArray, good: BoolArray, figure: Figure) -> float | None:
    """Returns the threshold with the fewest wrong answers, midway between values; None if there is nothing to separate.

    Of equally good thresholds, the strictest: a "yes" that fails costs more than a "no" that would have succeeded.
    """
    if good.all() or not good.any():
        return None
    known = np.unique(values)
    edges = (known[1:] + known[:-1]) / 2
    if not len(edges):
        return None
    strict_first = edges[::-1] if figure.larger else edges
    wrong = [int((figure.says_yes(values, edge) != good).sum()) for edge in strict_first]
    return float(strict_first[int(np.argmin(wrong))])


def left_out(values: FloatArray, good: BoolArray, runs: Sequence[str], figure: Figure) -> BoolArray | None:
    """Returns (P,) answers of thresholds fitted to the other runs; None if one cannot be fitted."""
    said = np.zeros(len(values), dtype=bool)
    names = np.asarray(runs)
    for run in dict.fromkeys(runs):
        inside = names == run
        threshold = fit_threshold(values[~inside], good[~inside], figure)
        if threshold is None:
            return None
        said[inside] = figure.says_yes(values[inside], threshold)
    return said


def errors(said: BoolArray, good: BoolArray) -> dict[str, Any]:
    """Returns how often a "yes" fails and a "no" succeeds, with 95 % Wilson intervals over policies."""
    return {
        "yes": int(said.sum()),
        "yes_that_fail": _share(int((said & ~good).sum()), int(said.sum())),
        "no": int((~said).sum()),
        "no_that_succeed": _share(int((~said & good).sum()), int((~said).sum())),
        "right": _share(int((said == good).sum()), len(said)),
    }


def _share(count: int, of: int) -> dict[str, Any]:
    return {
        "count": count,
        "of": of,
        "share": count / of if of else None,
        "interval": list(wilson_interval(count, of)),
    }


def judge_figure(figure: Figure, values: FloatArray, success: FloatArray, runs: Sequence[str]) -> dict[str, Any]:
    """Returns correlation, area, threshold, and errors on runs left out, for one figure."""
    good = success >= SUCCEEDS
    said = left_out(values, good, runs, figure)
    return {
        "figure": figure.title,
        "better": "larger" if figure.larger else "smaller",
        "policies": len(values),
        "rank_correlation": rank_correlation(values, success),
        "area": area(values, good, larger=figure.larger),
        "threshold": fit_threshold(values, good, figure),
        "left_out": None if said is None else errors(said, good),
    }
