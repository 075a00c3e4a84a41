"""Every way to fail has its own reason, the same with both referees if both can detect it."""

from collections.abc import Callable

import numpy as np
import pytest

from diffusion_policy.sim.expert import Command, plan
from diffusion_policy.sim.failures import (
    CLOSED_EARLY,
    CLOSED_NEXT_TO_BLOCK,
    DROPPED,
    NEVER_CLOSED,
    NOT_RELEASED,
    PUSHED,
    REASONS,
    SHUT_ON_ARRIVAL,
    TIMEOUT,
    WRONG_ORDER,
    FailureMonitor,
)
from diffusion_policy.sim.referees import KINEMATIC, PHYSICS, REFEREES, make_tabletop
from diffusion_policy.sim.scene import Scene, downward_pose
from diffusion_policy.sim.tasks import TASKS, TWO_IN_ORDER

Change = Callable[[list[Command], int, int], list[Command]]


def planned(task: str = "pick_and_place", seed: int = 0) -> tuple[Scene, list[Command]]:
    rng = np.random.default_rng(seed)
    scene = TASKS[task].draw(rng)
    return scene, plan(scene, rng)


def reason(scene: Scene, commands: list[Command], referee: str) -> str:
    tabletop = make_tabletop(scene, referee)
    witness = FailureMonitor(tabletop)
    for command in commands:
        tabletop.step(command.pose, command.gripper)
        witness.update(wants_open=command.gripper > 0.5)
    assert not tabletop.placed, "a failure was asked for"
    assert witness.reason in REASONS
    return witness.reason


def with_grippers(commands: list[Command], rule: Callable[[int], int]) -> list[Command]:
    return [Command(command.pose, rule(step)) for step, command in enumerate(commands)]


def moved(commands: list[Command], x: float, y: float) -> list[Command]:
    return [Command(command.pose + np.array([x, y, 0, 0, 0, 0, 0]), command.gripper) for command in commands]


WAYS: dict[str, tuple[str, Change]] = {
    "never closes": (NEVER_CLOSED, lambda cs, close, release: with_grippers(cs, lambda s: 1)),
    "shut from the start": (SHUT_ON_ARRIVAL, lambda cs, close, release: with_grippers(cs, lambda s: 0)),
    "shut far away": (
        SHUT_ON_ARRIVAL,
        lambda cs, close, release: with_grippers(cs, lambda s: int(not 1 < s < release)),
    ),
    "closes above the block": (
        CLOSED_EARLY,
        lambda cs, close, release: with_grippers(cs, lambda s: int(not close - 9 <= s < release)),
    ),
    "closes beside it": (CLOSED_NEXT_TO_BLOCK, lambda cs, close, release: moved(cs, 0.06, 0.0)),
    "lets go in the air": (
        DROPPED,
        lambda cs, close, release: with_grippers(cs, lambda s: int(not close <= s < release - 16)),
    ),
    "lets go at once": (
        DROPPED,
        lambda cs, close, release: with_grippers(cs, lambda s: int(not close <= s < close + 7)),
    ),
    "never lets go": (NOT_RELEASED, lambda cs, close, release: with_grippers(cs, lambda s: int(s < close))),
    "shuts at home": (CLOSED_EARLY, lambda cs, close, release: [Command(downward_pose([0.4, 0, 0.24]), 0)] * 60),
    "stays at home": (TIMEOUT, lambda cs, close, release: [Command(downward_pose([0.4, 0, 0.24]), 1)] * 60),
}


@pytest.mark.parametrize("referee", REFEREES)
@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_fail_has_its_reason(way: str, referee: str) -> None:
    expected, change = WAYS[way]
    scene, commands = planned(seed=1)
    closed = [step for step, command in enumerate(commands) if command.gripper == 0]
    assert reason(scene, change(commands, closed[0], closed[-1] + 1), referee) == expected


def test_a_block_that_was_pushed_away() -> None:
    """Only physics pushes."""
    scene, commands = planned(seed=1)
    low = downward_pose([scene.block_xy[0], scene.block_xy[1] - 0.14, 0.03], scene.blocks[0].yaw)
    sweep = [Command(low, 1)] * 5 + [Command(low + np.array([0, step * 0.02, 0, 0, 0, 0, 0]), 1) for step in range(12)]
    assert reason(scene, sweep + commands, PHYSICS) == PUSHED


@pytest.mark.parametrize("referee", REFEREES)
def test_two_targets_out_of_order_and_half_done(referee: str) -> None:
    scene, commands = planned(TWO_IN_ORDER)
    opened = next(step for step in range(30, 90) if commands[step].gripper > commands[step - 1].gripper)
    second = opened + 10
    assert reason(scene, commands[second:] + commands[: second - 30], referee) == WRONG_ORDER
    assert reason(scene, commands[:second] + with_grippers(commands[second:], lambda s: 1), referee) == NEVER_CLOSED


def test_a_corrected_try_counts_by_its_last() -> None:
    scene, commands = planned(seed=1)
    closing = next(step for step, command in enumerate(commands) if command.gripper == 0)
    beside = moved(commands[: closing + 8], 0.06, 0.0)
    dropped = with_grippers(commands, lambda step: int(not closing <= step < closing + 12))
    assert reason(scene, beside, KINEMATIC) == CLOSED_NEXT_TO_BLOCK
    assert reason(scene, beside + dropped, KINEMATIC) == DROPPED
