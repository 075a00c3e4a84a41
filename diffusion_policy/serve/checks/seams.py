"""Seams: the jumps between consecutive action chunks.

A client executes part of a chunk and requests the next one. The next command of the old chunk and the first one of the
new chunk may differ. This difference, the seam, is the jump that the arm makes.

Legend of shapes: T steps of a denoised sequence, Da action dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.geometry import geodesic_distance
from diffusion_policy.spec import POSE_GRIPPER, ActionLayout

FloatArray = NDArray[np.float64]
_POSE_AND_GRIPPER = ActionLayout.of(POSE_GRIPPER)


@dataclass(frozen=True)
class Seam:
    """The jump at the start of a chunk, the largest over arms, grippers or joints; None for what the action lacks.

    Attributes:
        millimetres: distance between positions.
        degrees: geodesic angle between rotations.
        gripper: difference of the gripper commands.
        joints: difference of the joints, in their unit.
    """

    millimetres: float | None
    degrees: float | None
    gripper: float | None
    joints: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON; "joints" only where the action has some."""
        content = asdict(self)
        return content if self.joints is not None else {name: content[name] for name in content if name != "joints"}


@dataclass(frozen=True)
class ServedChunk:
    """A denoised sequence of which a part was served.

    Attributes:
        sequence: (T, Da) the denoised sequence, before the guard.
        first: row of ``sequence`` that belongs to ``timestamp``.
        timestamp: time of the newest observation, seconds on the client's clock.
        layout: layout of its actions, rotations as quaternions.
    """

    sequence: FloatArray
    first: int
    timestamp: float
    layout: ActionLayout = _POSE_AND_GRIPPER

    def elapsed(self, timestamp: float, hz: float) -> int:
        """Returns the number of the client's control steps between two times on its clock."""
        return max(0, round(min((timestamp - self.timestamp) * hz, len(self.sequence))))  # at most to its end

    def remainder(self, timestamp: float, hz: float) -> FloatArray:
        """Returns the remaining actions (n, Da), aligned with a sequence that starts at a later observation."""
        return self.sequence[self.elapsed(timestamp, hz) :]

    def seam(self, sequence: FloatArray, timestamp: float, hz: float, committed: int = 0) -> Seam | None:
        """Returns the jump to a new sequence at its first uncommitted step; None if this one had ended by then.

        The first ``committed`` steps of the new sequence repeat this one's.
        """
        index, own = self.first + self.elapsed(timestamp, hz) + committed, self.first + committed
        if index >= len(self.sequence) or own >= len(sequence):
            return None
        return measure_seam(self.sequence[index], sequence[own], self.layout)


def measure_seam(before: FloatArray, after: FloatArray, layout: ActionLayout = _POSE_AND_GRIPPER) -> Seam:
    """Measures the jump between two actions (Da,)."""
    moves = zip(layout.positions(before), layout.positions(after), strict=True)
    turns = geodesic_distance(layout.rotations(before), layout.rotations(after))
    return Seam(
        millimetres=_largest(float(np.linalg.norm(new - old) * 1000) for old, new in moves),
        degrees=_largest(float(np.degrees(turn)) for turn in turns),
        gripper=_largest(np.abs(layout.grippers(after) - layout.grippers(before)).tolist()),
        joints=_largest(np.abs(layout.joints(after) - layout.joints(before)).tolist()),
    )


def _largest(values: Iterable[float]) -> float | None:
    return max(values, default=None)
