"""What the arm is to do, by absolute time: the steps of one chunk, or of several that were combined.

Step i of a chunk is commanded at its time and reached one period later, as in the recordings that the policy learned
from. Between two steps the target is interpolated, so that a robot that is commanded at 50 Hz moves evenly, and one
that is commanded at the policy's own rate gets the policy's own actions.

Legend of shapes: n steps, D numbers of an action.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.serve.client.interpolation import interpolate
from diffusion_policy.spec import ActionLayout

FloatArray = NDArray[np.float64]
# Tells the action (D,) that was executed as the step of a time and a duration; None: the arm was not commanded then.
Executed = Callable[[float, float], FloatArray | None]
# Rounding of times, in periods.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class TimedChunk:
    """The chunk of one answer.

    Attributes:
        starts_at: when its first step is commanded, seconds on the loop's clock; its steps are ``period_s`` apart.
        actions: (n, D).
        period_s: of the policy.
        observed_at: when that which it answers was captured.
        request_id: of its request.
    """

    starts_at: float
    actions: FloatArray
    period_s: float
    observed_at: float
    request_id: str

    @property
    def ends_at(self) -> float:
        """When its last step is reached."""
        return self.starts_at + len(self.actions) * self.period_s


@dataclass(frozen=True)
class Target:
    """What is commanded in one control period.

    Attributes:
        action: (D,) to be reached at the end of the control period.
        step: index of the step that it leads to.
        observed_at: when that which the step answers was captured; of several observations the oldest.
        request_id: of the newest chunk that the step is from.
    """

    action: FloatArray
    step: int
    observed_at: float
    request_id: str


@dataclass(frozen=True)
class Plan:
    """Steps that are being executed.

    Attributes:
        chunk: the steps, from ``chunk.starts_at`` on.
        layout: of its actions.
        begun_at: when its execution began; steps that were over by then are left out.
        start: (D,) where the arm was commanded to be, or was measured, at that time.
        observed_ats: (n,) when the oldest observation that a step depends on was captured.
        sources: the chunks of other answers that it was made from, oldest first, the newest one last.
    """

    chunk: TimedChunk
    layout: ActionLayout
    begun_at: float
    start: FloatArray
    observed_ats: tuple[float, ...]
    sources: tuple[TimedChunk, ...]

    @classmethod
    def of(cls, chunk: TimedChunk, layout: ActionLayout, begun_at: float, start: FloatArray) -> Plan:
        """The plan that executes one chunk."""
        return cls(chunk, layout, begun_at, start, (chunk.observed_at,) * len(chunk.actions), (chunk,))

    @property
    def ends_at(self) -> float:
        """When its last step is reached."""
        return self.chunk.ends_at

    @property
    def first(self) -> int:
        """Index of the first step that is executed: its time is over by less than half a period."""
        return max(0, math.ceil((self.begun_at - self.chunk.starts_at) / self.chunk.period_s - 0.5 - _ROUNDING))

    def is_over(self, now: float) -> bool:
        """Whether the last step has been reached."""
        return now >= self.ends_at - _ROUNDING * self.chunk.period_s

    def target(self, now: float, control_period_s: float) -> Target | None:
        """Returns what is to be commanded at ``now`` for the end of the control period; None: nothing is left."""
        if self.is_over(now) or self.first >= len(self.chunk.actions):
            return None
        step, action = self._reached(now + control_period_s)
        return Target(self._with_grippers(action, now), step, self.observed_ats[step], self.chunk.request_id)

    def action_at(self, moment: float) -> FloatArray | None:
        """Returns its action (D,) for a time; None before the first or after the last."""
        return value_at(self.chunk, self.layout, (moment - self.chunk.starts_at) / self.chunk.period_s)

    def remainder(self, since: float, executed: Executed) -> FloatArray:
        """Returns what was and will be executed (m, D) as the steps of times ``since``, one period later, and so on.

        Args:
            since: may be before the plan's execution began.
            executed: tells the steps that ended before it began. Where it knows of none the arm stood at ``start``.

        Returns:
            Actions up to the last whole step; none where the plan is over. A time between two steps has the action
            between them.
        """
        period, rows = self.chunk.period_s, []
        if self.first >= len(self.chunk.actions):
            return np.empty((0, len(self.layout.names)))
        for index in range(math.floor((self.ends_at - since) / period + _ROUNDING)):
            starts = since + index * period
            if starts + period > self.begun_at + _ROUNDING * period:
                rows.append(self._with_grippers(self._reached(starts + period)[1], starts))
            else:
                known = executed(starts, period)
                rows.append(self.start if known is None else known)
        return np.array(rows).reshape(-1, len(self.layout.names))

    def _reached(self, moment: float) -> tuple[int, FloatArray]:
        """The step on the way to which the arm is at a time after the beginning, and the action (D,) until there."""
        first = self.first
        step = min(max(self._step_at(moment, -_ROUNDING), first), len(self.chunk.actions) - 1)
        origin, before = (
            (self.begun_at, self.start)
            if step == first
            else (self.chunk.starts_at + step * self.chunk.period_s, self.chunk.actions[step - 1])
        )
        ends = self.chunk.starts_at + (step + 1) * self.chunk.period_s
        fraction = min(1.0, (moment - origin) / (ends - origin))
        return step, interpolate(self.layout, before, self.chunk.actions[step], fraction)

    def _with_grippers(self, action: FloatArray, now: float) -> FloatArray:
        """The same action with the grippers that are commanded at a time: those of the step that has begun."""
        current = min(max(self._step_at(now, _ROUNDING), self.first), len(self.chunk.actions) - 1)
        for column in self.layout.gripper_columns:
            action[column] = self.chunk.actions[current, column]
        return action

    def _step_at(self, moment: float, rounding: float) -> int:
        return math.floor((moment - self.chunk.starts_at) / self.chunk.period_s + rounding)


def value_at(chunk: TimedChunk, layout: ActionLayout, offset: float) -> FloatArray | None:
    """Returns the action (D,) of a chunk at ``offset`` steps from its first one; None outside of the chunk.

    Between two steps it is interpolated, with the grippers of the earlier one.
    """
    index = math.floor(offset + _ROUNDING)
    if index < 0 or offset > len(chunk.actions) - 1 + _ROUNDING:
        return None
    fraction = max(0.0, offset - index)
    before = chunk.actions[index]
    if fraction <= _ROUNDING:
        return before
    between = interpolate(layout, before, chunk.actions[index + 1], fraction)
    columns = list(layout.gripper_columns)
    between[columns] = before[columns]
    return between
