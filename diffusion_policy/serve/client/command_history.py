"""What the arm was commanded in the last seconds: a request that continues a chunk says what was executed of it.

Legend of shapes: D numbers of an action.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.serve.client.interpolation import interpolate
from diffusion_policy.spec import ActionLayout

FloatArray = NDArray[np.float64]
_SECONDS = 5.0  # that are kept: longer than any observation may be old
# Rounding of times, in control periods.
_ROUNDING = 1e-6


class CommandHistory:
    """The last commands, each for the end of its control period.

    Args:
        layout: of actions.
        period_s: control period.
    """

    def __init__(self, layout: ActionLayout, period_s: float) -> None:
        self._layout, self._period = layout, period_s
        length = math.ceil(_SECONDS / period_s)
        self._reached: deque[float] = deque(maxlen=length)
        self._actions: deque[FloatArray] = deque(maxlen=length)

    def add(self, now: float, action: FloatArray) -> None:
        """Takes a command (D,) of the control period that begins at ``now``."""
        self._reached.append(now + self._period)
        self._actions.append(action)

    def clear(self) -> None:
        """Forgets everything: the clock went back."""
        self._reached.clear()
        self._actions.clear()

    def step(self, starts_at: float, period_s: float) -> FloatArray | None:
        """Returns the action (D,) that was executed as a policy's step.

        Args:
            starts_at: when the step began; its gripper was commanded then.
            period_s: of the policy; its pose was reached so much later.

        Returns:
            None where the arm was not commanded at the end of the step, or that is no longer known.
        """
        found = self._at(starts_at + period_s)
        last = bisect_right(self._reached, starts_at + (1 + _ROUNDING) * self._period) - 1
        if found is not None and last >= 0:
            columns = list(self._layout.gripper_columns)
            found[columns] = self._actions[last][columns]
        return found

    def _at(self, moment: float) -> FloatArray | None:
        """Where the arm was commanded to be at a time."""
        index = bisect_left(self._reached, moment - _ROUNDING * self._period)
        if index == len(self._reached):
            return None
        missing = (self._reached[index] - moment) / self._period  # of the way to it
        if missing <= _ROUNDING:
            return self._actions[index].copy()
        if index == 0:
            return None
        between = self._reached[index] - self._reached[index - 1]
        if between > 1.5 * self._period:  # it was held
            return None
        fraction = 1 - missing * self._period / between
        return interpolate(self._layout, self._actions[index - 1], self._actions[index], fraction)
