"""Outcomes over the positions of the block, as pictures draw them: kinds, their colors, and cells of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.env_runner.results import SceneResult, reasons_of

FloatArray = NDArray[np.float64]

SUCCESS = "success"
# Of both axes, in the robot's frame.
ACROSS = "y of the block, m (left of the robot is left)"
AHEAD = "x of the block, m (away from the robot)"
# Okabe and Ito's palette, safe for the color-blind; success first.
_COLORS = ("#009E73", "#D55E00", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442", "#999999")
_CELLS = 5


@dataclass(frozen=True)
class Outcome:
    """Scenes that ended alike.

    Attributes:
        kind: "success", or why they failed.
        color: as "#rrggbb".
        scenes: (N,) their numbers.
        points: (N, 2) positions, x and y in meters.
    """

    kind: str
    color: str
    scenes: tuple[int, ...]
    points: FloatArray


@dataclass(frozen=True)
class Cells:
    """Scenes by position.

    Attributes:
        x, y: (5 + 1,) edges, in meters.
        total, done: (5, 5) scenes in each, by x then y, and how many were successes.
    """

    x: FloatArray
    y: FloatArray
    total: FloatArray
    done: FloatArray

    @property
    def share(self) -> FloatArray:
        """(5, 5) of successes; NaN without a scene."""
        return np.divide(self.done, self.total, out=np.full_like(self.done, np.nan), where=self.total > 0)


def placed(results: Sequence[SceneResult]) -> list[SceneResult]:
    """The scenes whose position the simulator told."""
    return [result for result in results if result.position is not None]


def outcomes(results: Sequence[SceneResult]) -> list[Outcome]:
    """By kind, success first, then the reasons by how frequent they are; without kinds that no scene has."""
    found = []
    for kind, color in zip([SUCCESS, *reasons_of(results)], cycle(_COLORS), strict=False):
        chosen = [result for result in placed(results) if (SUCCESS if result.success else result.reason) == kind]
        if chosen:
            points = np.array([result.position for result in chosen], dtype=np.float64)
            found.append(Outcome(kind, color, tuple(result.scene for result in chosen), points))
    return found


def cells(results: Sequence[SceneResult]) -> Cells:
    """Count successes by position; at least one scene must have one."""
    points = np.array([result.position for result in placed(results)], dtype=np.float64)
    success = np.array([result.success for result in placed(results)])
    low, high = points.min(axis=0), points.max(axis=0)
    margin = np.maximum(0.04 * (high - low), 0.004)
    x, y = (np.linspace(*ends, _CELLS + 1) for ends in zip(low - margin, high + margin, strict=True))
    total, done = (np.histogram2d(part[:, 0], part[:, 1], bins=[x, y])[0] for part in (points, points[success]))
    return Cells(x, y, total, done)
