"""Statistics of features in LeRobot's form: of each episode, and of the whole dataset from all of its numbers.

LeRobot itself averages quantiles over episodes; here they are those of all numbers. Pictures are in 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_LEVELS = 256


def number_statistics(values: NDArray[Any]) -> dict[str, list[Any]]:
    """Returns statistics of numbers (N, D) as plain JSON: lists of D values, and `count` with one."""
    numbers = values.astype(np.float64)
    quantiles = np.quantile(numbers, list(QUANTILES.values()), axis=0)
    return {
        "min": numbers.min(axis=0).tolist(),
        "max": numbers.max(axis=0).tolist(),
        "mean": numbers.mean(axis=0).tolist(),
        "std": numbers.std(axis=0).tolist(),
        "count": [len(numbers)],
        **{name: row.tolist() for name, row in zip(QUANTILES, quantiles, strict=True)},
    }


@dataclass(frozen=True)
class PixelCounts:
    """How often each level of each channel occurs.

    Attributes:
        levels: (3, 256).
        n_frames: number of frames counted.
    """

    levels: NDArray[np.int64]
    n_frames: int

    @classmethod
    def of(cls, frame: NDArray[np.uint8]) -> PixelCounts:
        """Of a frame (H, W, 3)."""
        return cls(np.stack([np.bincount(frame[..., i].reshape(-1), minlength=_LEVELS) for i in range(3)]), 1)

    @classmethod
    def sum(cls, counts: Sequence[PixelCounts]) -> PixelCounts:
        """Returns the counts over all frames together."""
        return cls(np.sum([one.levels for one in counts], axis=0), sum(one.n_frames for one in counts))

    def statistics(self) -> dict[str, list[Any]]:
        """Returns plain JSON, exact from the counts: [[[r]], [[g]], [[b]]] in 0..1."""
        values = np.arange(_LEVELS) / (_LEVELS - 1)
        shares = self.levels / self.levels.sum(axis=1, keepdims=True)
        mean = shares @ values
        present = [values[row > 0] for row in self.levels]
        below = np.cumsum(shares, axis=1)
        channels_of: Mapping[str, Any] = {
            "min": [row.min() for row in present],
            "max": [row.max() for row in present],
            "mean": mean,
            "std": np.sqrt(np.maximum(shares @ values**2 - mean**2, 0)),
            **{name: [values[np.searchsorted(row, q)] for row in below - 1e-12] for name, q in QUANTILES.items()},
        }
        nested = {name: [[[float(value)]] for value in channels] for name, channels in channels_of.items()}
        return {**nested, "count": [self.n_frames]}
