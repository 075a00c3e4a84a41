"""At which steps of an episode the expert takes over: where the policy failed, or hesitated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diffusion_policy.dagger.watching import Trace

CLOSING_BESIDE = "about to close beside"
SHUT_ON_NOTHING = "shut on nothing"
LOST = "lost the block"
PUSHED = "pushed the block"
STOOD_STILL = "stood still"
OUT_OF_TIME = "out of time"

_LEAD = 4  # steps before fingers close on nothing: the hand is where it should not close, and still open
_SHUT_WITHIN = 8  # steps after the command in which fingers shut, and hold if there is something to hold
_PUSHED_BY = 0.02  # meters sideways
_FLICKER = 2  # steps for which contact may be interrupted
_STILL_STEPS = 15  # longer than any pause of the expert at the demonstrations' variation
_STILL_WITHIN, _STILL_OPENING = 0.008, 0.05  # meters; share of the fingers' span
_APART = 10  # steps between two takeovers of one episode


@dataclass(frozen=True)
class Moment:
    """After how many steps of the policy the expert takes over, and why."""

    step: int
    why: str


def takeovers(trace: Trace, *, succeeded: bool, at_most: int) -> list[Moment]:
    """Choose the moments of one episode: its first ones, ``_APART`` steps from each other.

    An episode that succeeded has moments too where it erred or stood still on the way. The first ones are taken, since
    what follows an error is no state that a corrected policy will often reach.
    """
    found = sorted(_all(trace, succeeded=succeeded), key=lambda moment: moment.step)
    if not found and not succeeded and trace.actions:
        found = [Moment(len(trace.actions), OUT_OF_TIME)]
    chosen: list[Moment] = []
    for moment in found:
        if len(chosen) < at_most and (not chosen or moment.step - chosen[-1].step >= _APART):
            chosen.append(moment)
    return chosen


def _all(trace: Trace, *, succeeded: bool) -> Iterator[Moment]:
    yield from _closings_on_nothing(trace)
    yield from _losses(trace, succeeded=succeeded)
    yield from _pushes(trace)
    yield from _stillness(trace)


def _closings_on_nothing(trace: Trace) -> Iterator[Moment]:
    wanted = [True, *trace.wants_open]
    for step in range(len(trace.actions)):
        after = trace.seen[step : step + _SHUT_WITHIN + 1]
        closes = wanted[step] and not wanted[step + 1]
        if closes and len(after) > _SHUT_WITHIN and not any(seen.holds for seen in after):
            yield Moment(max(step - _LEAD, 0), CLOSING_BESIDE)
            yield Moment(step + _SHUT_WITHIN, SHUT_ON_NOTHING)


def _losses(trace: Trace, *, succeeded: bool) -> Iterator[Moment]:
    """A block that was held and is not, and does not come to rest in the tray either."""
    for step in range(1, len(trace.seen)):
        before, after = trace.seen[step - 1], trace.seen[step : step + _SHUT_WITHIN]
        if not before.holds or any(seen.holds for seen in after[: _FLICKER + 1]):
            continue
        placed = any(seen.target != before.target for seen in after) or (succeeded and len(after) < _SHUT_WITHIN)
        if not placed:
            yield Moment(step, LOST)


def _pushes(trace: Trace) -> Iterator[Moment]:
    target, stood, touched = -1, np.zeros(2), False
    for step, seen in enumerate(trace.seen):
        if seen.target != target:
            target, stood, touched = seen.target, seen.block[:2], False
        if not touched and not seen.holds and np.linalg.norm(seen.block[:2] - stood) > _PUSHED_BY:
            yield Moment(step, PUSHED)
        touched = touched or seen.holds or bool(np.linalg.norm(seen.block[:2] - stood) > _PUSHED_BY)


def _stillness(trace: Trace) -> Iterator[Moment]:
    since = 0
    for step, seen in enumerate(trace.seen):
        start = trace.seen[since]
        moved = np.linalg.norm(seen.tips - start.tips) > _STILL_WITHIN
        if moved or abs(seen.opening - start.opening) > _STILL_OPENING:
            since = step
        elif step - since == _STILL_STEPS:
            yield Moment(step, STOOD_STILL)
