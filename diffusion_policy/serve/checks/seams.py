"""Where one chunk ends and the next begins.

A client executes part of a chunk and asks again; what the old chunk would have commanded next and what the new one
commands first need not agree. The difference is the seam: the jump that the arm feels.

Legend of shapes: T steps of a denoised sequence, Da = 8 action dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.geometry import geodesic_distance

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Seam:
    """The jump at the start of a chunk: millimetres, degrees, and whether the gripper's command differs."""

    millimetres: float
    degrees: float
    gripper: float


@dataclass(frozen=True)
class ServedChunk:
    """A sequence of which a part was served.

    Attributes:
        sequence: (T, Da), before the guard.
        first: row of ``sequence`` that belongs to ``timestamp``.
        timestamp: of the newest observation, seconds on the client's clock.
    """

    sequence: FloatArray
    first: int
    timestamp: float

    def elapsed(self, timestamp: float, hz: float) -> int:
        """Steps of the client's control rate between two of its own times."""
        return max(0, round(min((timestamp - self.timestamp) * hz, len(self.sequence))))  # beyond its end: its end

    def remainder(self, timestamp: float, hz: float) -> FloatArray:
        """(n, Da) what is left, aligned with a sequence that starts as this one did, at a later observation."""
        return self.sequence[self.elapsed(timestamp, hz) :]

    def seam(self, sequence: FloatArray, timestamp: float, hz: float) -> Seam | None:
        """The jump to the first action of a new sequence; None where this one had ended before."""
        index = self.first + self.elapsed(timestamp, hz)
        return measure_seam(self.sequence[index], sequence[self.first]) if index < len(self.sequence) else None


def measure_seam(before: FloatArray, after: FloatArray) -> Seam:
    """Between two actions (8,)."""
    return Seam(
        millimetres=float(np.linalg.norm(after[:3] - before[:3]) * 1000),
        degrees=float(np.degrees(geodesic_distance(before[3:7], after[3:7]))),
        gripper=float(abs(after[7] - before[7])),
    )
