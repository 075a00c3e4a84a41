"""Where the expert takes over: each kind of error is found at its step, and nothing else is taken for one."""

from dataclasses import replace

import numpy as np
import pytest

from diffusion_policy.dagger.moments import (
    CLOSING_NEXT_TO_BLOCK,
    LOST,
    OUT_OF_TIME,
    PUSHED,
    SHUT_ON_NOTHING,
    STOOD_STILL,
    Takeover,
    takeovers,
)
from diffusion_policy.dagger.watching import TabletopState, Trace

LENGTH = 60


def trace(
    *, shut: range = range(0), held: range = range(0), still: range = range(0), pushed_at: int = LENGTH, target: int = 0
) -> Trace:
    """A hand that moves 2 cm per step except in ``still``; fingers are commanded shut, and hold, in the given steps."""
    found, x = Trace(), 0.0
    for step in range(LENGTH):
        x += 0.0 if step in still else 0.02
        action = np.zeros(8, dtype=np.float32)
        action[7] = 0.0 if step in shut else 1.0
        found.actions.append(action)
        block = np.array([0.5, 0.1 if step < pushed_at else 0.15, 0.02])
        found.states.append(TabletopState(np.array([x, 0.0, 0.1]), 1.0, target, step in held, block))
    return found


def test_closing_on_nothing_is_seen_before_and_after() -> None:
    found = takeovers(trace(shut=range(20, 40)), succeeded=False, at_most=2)
    assert found == [Takeover(16, CLOSING_NEXT_TO_BLOCK), Takeover(28, SHUT_ON_NOTHING)]


def test_a_closing_that_lasts_is_not_chatter() -> None:
    assert takeovers(trace(shut=range(20, LENGTH), held=range(24, LENGTH)), succeeded=True, at_most=2) == []


def test_a_block_that_is_lost() -> None:
    found = takeovers(trace(shut=range(20, 40), held=range(24, 35)), succeeded=False, at_most=2)
    assert found == [Takeover(35, LOST)]


def test_flickering_contact_is_not_a_loss() -> None:
    flickers = trace(shut=range(20, LENGTH), held=range(24, LENGTH))
    flickers.states[30] = replace(flickers.states[30], holds=False)
    assert takeovers(flickers, succeeded=True, at_most=2) == []


@pytest.mark.parametrize(("succeeded", "expected"), [(True, []), (False, [Takeover(55, LOST)])])
def test_a_block_that_is_let_go_at_the_end(succeeded: bool, expected: list[Takeover]) -> None:
    released = trace(shut=range(20, 55), held=range(24, 55))
    assert takeovers(released, succeeded=succeeded, at_most=2) == expected


def test_a_pushed_block() -> None:
    assert takeovers(trace(pushed_at=18), succeeded=True, at_most=2) == [Takeover(18, PUSHED)]


def test_hesitation_counts_also_where_the_task_was_done() -> None:
    assert takeovers(trace(still=range(10, 40)), succeeded=True, at_most=2) == [Takeover(24, STOOD_STILL)]


def test_the_experts_own_pauses_are_not_hesitation() -> None:
    assert takeovers(trace(still=range(10, 24)), succeeded=True, at_most=2) == []


def test_a_failure_without_a_known_error_is_taken_over_at_its_end() -> None:
    assert takeovers(trace(), succeeded=False, at_most=2) == [Takeover(LENGTH, OUT_OF_TIME)]
    assert takeovers(trace(), succeeded=True, at_most=2) == []


def test_the_first_ones_are_taken_and_they_are_apart() -> None:
    erring = trace(shut=range(20, 40), pushed_at=18)
    assert takeovers(erring, succeeded=False, at_most=3) == [
        Takeover(16, CLOSING_NEXT_TO_BLOCK),
        Takeover(28, SHUT_ON_NOTHING),
    ]
    assert takeovers(erring, succeeded=False, at_most=1) == [Takeover(16, CLOSING_NEXT_TO_BLOCK)]
