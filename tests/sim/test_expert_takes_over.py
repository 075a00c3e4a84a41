"""The expert completes the task from any state that another controller has left."""

from collections.abc import Callable

import numpy as np
import pytest

from diffusion_policy.sim.expert import Command, plan, plan_on
from diffusion_policy.sim.referees import KINEMATIC, PHYSICS, make_tabletop
from diffusion_policy.sim.tabletop import Tabletop
from diffusion_policy.sim.tasks import Progress, task_of

Commands = list[Command]


def shifted(commands: Commands, by: tuple[float, float, float], steps: int) -> Commands:
    """The first ``steps`` commands, all positions moved."""
    moved = []
    for command in commands[:steps]:
        pose = command.pose.copy()
        pose[:3] += by
        moved.append(Command(pose, command.gripper))
    return moved


def closing(commands: Commands) -> int:
    return next(step for step, command in enumerate(commands) if command.gripper == 0)


def opening(commands: Commands) -> int:
    return next(step for step in range(closing(commands), len(commands)) if commands[step].gripper == 1)


def with_gripper(commands: Commands, since: int, gripper: int) -> Commands:
    return [Command(c.pose, gripper if step >= since else c.gripper) for step, c in enumerate(commands)]


def pushing(commands: Commands) -> Commands:
    """Down next to the block, and sideways against it."""
    down = closing(commands)
    sweep = [shifted(commands[down - 1 : down], (0.0, float(by), 0.0), 1)[0] for by in np.linspace(0.08, 0.03, 8)]
    return [*shifted(commands, (0.0, 0.08, 0.0), down), *sweep]


# What was done before the expert takes over, from the commands of a complete episode.
STATES: dict[str, Callable[[Commands], Commands]] = {
    "nothing yet": lambda whole: [],
    "on the way": lambda whole: whole[:7],
    "open, low, beside the block": lambda whole: shifted(whole, (0.0, 0.05, 0.0), closing(whole)),
    "open, about to close beside": lambda whole: shifted(whole, (0.02, 0.02, 0.0), closing(whole) - 4),
    "shut on nothing, low": lambda whole: shifted(whole, (0.0, 0.055, 0.0), closing(whole) + 6),
    "shut on the way": lambda whole: with_gripper(whole[:10], 0, 0),
    "fingers half shut around the block": lambda whole: whole[: closing(whole) + 2],
    "just grasped": lambda whole: whole[: closing(whole) + 6],
    "carried half the way": lambda whole: whole[: closing(whole) + 18],
    "held, low over the tray": lambda whole: whole[: opening(whole)],
    "pushed": lambda whole: pushing(whole),
    # Later it may fall close to the tray's wall, where an open hand cannot reach it.
    "let go on the way up": lambda whole: with_gripper(whole, closing(whole) + 9, 1)[: closing(whole) + 18],
    "never closed, gone to the tray": lambda whole: with_gripper(whole, 0, 1)[: closing(whole) + 22],
}


def carried_out(tabletop: Tabletop, progress: Progress, commands: Commands) -> None:
    for command in commands:
        tabletop.step(command.pose, command.gripper)
        progress.update(tabletop)


@pytest.mark.parametrize("referee", [PHYSICS, KINEMATIC])
@pytest.mark.parametrize("state", STATES)
def test_from_every_state_the_block_gets_into_the_tray(state: str, referee: str) -> None:
    for seed in range(2):
        rng = np.random.default_rng(seed)
        scene = task_of("pick_and_place").draw(rng)
        tabletop, progress = make_tabletop(scene, referee), Progress()
        carried_out(tabletop, progress, STATES[state](plan(scene, rng, 0.0)))
        assert not progress.succeeded, "there is something left to do"
        carried_out(tabletop, progress, plan_on(tabletop, rng, 0.3))
        assert progress.succeeded, f"{state}, {referee}, scene {seed}"


@pytest.mark.parametrize("task", ["two_in_order", "distractors", "pose_only"])
@pytest.mark.parametrize("done", [0.2, 0.6])
def test_the_other_tasks_are_ended_too(task: str, done: float) -> None:
    rng = np.random.default_rng(5)
    scene = task_of(task).draw(rng)
    tabletop, progress = make_tabletop(scene, KINEMATIC), Progress()
    commands = plan(scene, rng, 0.0)
    carried_out(tabletop, progress, commands[: int(done * len(commands))])
    carried_out(tabletop, progress, plan_on(tabletop, rng))
    assert progress.succeeded


def test_the_plan_begins_where_the_hand_is() -> None:
    rng = np.random.default_rng(1)
    scene = task_of("pick_and_place").draw(rng)
    tabletop = make_tabletop(scene, KINEMATIC)
    carried_out(tabletop, Progress(), shifted(plan(scene, rng), (0.03, 0.0, 0.0), 15))
    (first, *_), steps = plan_on(tabletop, rng), tabletop.steps
    assert np.linalg.norm(first.pose[:3] - tabletop.pose[:3]) < 0.02
    assert tabletop.steps == steps, "planning moves nothing"
