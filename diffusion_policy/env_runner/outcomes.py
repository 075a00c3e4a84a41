"""Outcomes by position of the block, for plots: kinds with their colors, and success rates in cells of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.env_runner.results import SceneResult, reasons_of

FloatArray = NDArray[np.float64]

SUCCESS = "success"
# Labels of both axes, in the robot's frame.
ACROSS = "y of the block, m (left of the robot is left)"
AHEAD = "x of the block, m (away from the robot)"
# Okabe and Ito's palette, safe for the color-blind; success first.
_COLORS = ("#009E73", "#D55E00", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442", "#999999")
_CELLS = 5


@dataclass(frozen=True)
class Outcome:
    """Scenes with the same outcome.

    Attributes:
        kind: "success", or the reason of the failure.
        color: written "#rrggbb".
        scenes: (N,) numbers of the scenes.
        points: (N, 2) positions, x and y in meters.
    """

    kind: str
    color: str
    scenes: tuple[int, ...]
    points: FloatArray


@dataclass(frozen=True)
class Cells:
    """Scenes counted in a grid of positions.

    Attributes:
        x, y: (5 + 1,) edges, in meters.
        total, done: (5, 5) number of scenes in each cell, by x then y, and of successes among them.
    """

    x: FloatArray
    y: FloatArray
    total: FloatArray
    done: FloatArray

    @property
    def share(self) -> FloatArray:
        """(5, 5) success rate of each cell; NaN without a scene."""
        return np.divide(self.done, self.total, out=np.full_like(self.done, np.nan), where=self.total > 0)


def with_position(results: Sequence[SceneResult]) -> list[SceneResult]:
    """Returns the scenes whose position the simulator reported."""
    return [result for result in results if result.position is not None]


def outcomes(results: Sequence[SceneResult]) -> list[Outcome]:
    """Groups scenes by kind: success first, then the reasons of failure, the most frequent first."""
    found = []
    for kind, color in zip([SUCCESS, *reasons_of(results)], cycle(_COLORS), strict=False):
        chosen = [result for result in with_position(results) if (SUCCESS if result.success else result.reason) == kind]
        if chosen:
            points = np.array([result.position for result in chosen], dtype=np.float64)
            found.append(Outcome(kind, color, tuple(result.scene for result in chosen), points))
    return found


def cells(results: Sequence[SceneResult]) -> Cells:
    """Counts successes by position; at least one scene must have a position."""
    points = np.array([result.position for result in with_position(results)], dtype=np.float64)
    success = np.array([result.success for result in with_position(results)])
    low, high = points.min(axis=0), points.max(axis=0)
    margin = np.maximum(0.04 * (high - low), 0.004)
    x, y = (np.linspace(*ends, _CELLS + 1) for ends in zip(low - margin, high + margin, strict=True))
    total, done = (np.histogram2d(part[:, 0], part[:, 1], bins=[x, y])[0] for part in (points, points[success]))
    return Cells(x, y, total, done)
