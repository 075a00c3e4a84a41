"""The steps of an episode at which the expert takes over: where the policy failed, or hesitated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diffusion_policy.dagger.watching import Trace

CLOSING_NEXT_TO_BLOCK = "about to close beside"
SHUT_ON_NOTHING = "shut on nothing"
LOST = "lost the block"
PUSHED = "pushed the block"
STOOD_STILL = "stood still"
OUT_OF_TIME = "out of time"

_LEAD = 4  # steps before fingers close on nothing: the hand is at the wrong position, and still open
_SHUT_WITHIN = 8  # steps after the command within which fingers close, and hold a block between them
_PUSHED_BY = 0.02  # meters sideways
_FLICKER = 2  # steps for which contact may be interrupted
_STILL_STEPS = 15  # longer than any pause of the expert at the demonstrations' variation
_STILL_WITHIN, _STILL_OPENING = 0.008, 0.05  # meters; share of the fingers' span
_APART = 10  # steps between two takeovers of one episode


@dataclass(frozen=True)
class Takeover:
    """A takeover: after how many steps of the policy the expert takes over, and why."""

    step: int
    why: str


def takeovers(trace: Trace, *, succeeded: bool, at_most: int) -> list[Takeover]:
    """Chooses the takeovers of one episode: the first ones, at least ``_APART`` steps apart.

    An episode that succeeded may have takeovers, too, where it erred or stood still. The first ones are chosen, since a
    corrected policy will rarely reach the states that follow an error.
    """
    found = sorted(_candidates(trace, succeeded=succeeded), key=lambda takeover: takeover.step)
    if not found and not succeeded and trace.actions:
        found = [Takeover(len(trace.actions), OUT_OF_TIME)]
    chosen: list[Takeover] = []
    for takeover in found:
        if len(chosen) < at_most and (not chosen or takeover.step - chosen[-1].step >= _APART):
            chosen.append(takeover)
    return chosen


def _candidates(trace: Trace, *, succeeded: bool) -> Iterator[Takeover]:
    yield from _closings_on_nothing(trace)
    yield from _losses(trace, succeeded=succeeded)
    yield from _pushes(trace)
    yield from _stillness(trace)


def _closings_on_nothing(trace: Trace) -> Iterator[Takeover]:
    wanted = [True, *trace.wants_open]
    for step in range(len(trace.actions)):
        after = trace.states[step : step + _SHUT_WITHIN + 1]
        closes = wanted[step] and not wanted[step + 1]
        if closes and len(after) > _SHUT_WITHIN and not any(state.holds for state in after):
            yield Takeover(max(step - _LEAD, 0), CLOSING_NEXT_TO_BLOCK)
            yield Takeover(step + _SHUT_WITHIN, SHUT_ON_NOTHING)


def _losses(trace: Trace, *, succeeded: bool) -> Iterator[Takeover]:
    """Yields takeovers where a block that was held is lost, and does not come to rest in the tray."""
    for step in range(1, len(trace.states)):
        before, after = trace.states[step - 1], trace.states[step : step + _SHUT_WITHIN]
        if not before.holds or any(state.holds for state in after[: _FLICKER + 1]):
            continue
        placed = any(state.target != before.target for state in after) or (succeeded and len(after) < _SHUT_WITHIN)
        if not placed:
            yield Takeover(step, LOST)


def _pushes(trace: Trace) -> Iterator[Takeover]:
    target, stood, touched = -1, np.zeros(2), False
    for step, state in enumerate(trace.states):
        if state.target != target:
            target, stood, touched = state.target, state.block[:2], False
        if not touched and not state.holds and np.linalg.norm(state.block[:2] - stood) > _PUSHED_BY:
            yield Takeover(step, PUSHED)
        touched = touched or state.holds or bool(np.linalg.norm(state.block[:2] - stood) > _PUSHED_BY)


def _stillness(trace: Trace) -> Iterator[Takeover]:
    since = 0
    for step, state in enumerate(trace.states):
        start = trace.states[since]
        moved = np.linalg.norm(state.tips - start.tips) > _STILL_WITHIN
        if moved or abs(state.opening - start.opening) > _STILL_OPENING:
            since = step
        elif step - since == _STILL_STEPS:
            yield Takeover(step, STOOD_STILL)
