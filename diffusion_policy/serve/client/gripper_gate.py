"""Grippers that take their time: while one moves, it gets no other command."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.gripper_events import CLIENT_THRESHOLD
from diffusion_policy.spec import ActionLayout

FloatArray = NDArray[np.float64]


class GripperGate:
    """Passes gripper commands on, each no sooner than the one before has been carried out.

    A command is a change of side: open is above 0.5, as robot clients take it. What is commanded while the gripper
    moves is not lost: the policy still commands it when the time is over, or no longer wants it.

    Args:
        layout: of actions.
        blocking_s: how long a gripper takes to move.
    """

    def __init__(self, layout: ActionLayout, blocking_s: float) -> None:
        self._columns, self._blocking_s = layout.gripper_columns, blocking_s
        self._sent: dict[int, float] = {}
        self._moves_until: dict[int, float] = dict.fromkeys(self._columns, -math.inf)

    def passed(self, action: FloatArray, now: float, measured: FloatArray) -> FloatArray:
        """Returns the action (D,) with the present gripper commands; the argument is not changed.

        Args:
            action: (D,) as planned.
            now: seconds.
            measured: (D,) the newest state; before the first command a gripper is where it was measured.
        """
        found = action.copy()
        for column in self._columns:
            value, sent = float(action[column]), self._sent.get(column, float(measured[column]))
            if (value > CLIENT_THRESHOLD) != (sent > CLIENT_THRESHOLD):
                if now < self._moves_until[column]:
                    found[column] = sent
                    continue
                self._moves_until[column] = now + self._blocking_s
            self._sent[column] = value
        return found

    def held(self, state: FloatArray) -> FloatArray:
        """Returns a measured state (D,) with the grippers as last commanded."""
        found = state.copy()
        for column, value in self._sent.items():
            found[column] = value
        return found
