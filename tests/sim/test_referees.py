"""The same commands with both referees: what only physics can decide, and that the fast one agrees."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.sim.expert import Command, plan
from diffusion_policy.sim.referees import KINEMATIC, PHYSICS, REFEREES, make_tabletop
from diffusion_policy.sim.scene import BLOCK_SIZE, Scene, downward_pose, draw_scene
from diffusion_policy.sim.tasks import TASKS, Progress


def scene_and_commands(seed: int) -> tuple[Scene, list[Command]]:
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng)
    return scene, plan(scene, rng)


def outcome(referee: str, scene: Scene, commands: list[Command]) -> tuple[bool, bool]:
    """Whether the block was lifted, and whether it is in the tray at the end."""
    tabletop, progress = make_tabletop(scene, referee), Progress()
    for command in commands:
        tabletop.step(command.pose, command.gripper)
        progress.update(tabletop)
    return progress.grasped, progress.succeeded


def with_grippers(commands: list[Command], rule: Callable[[int, int, int], int]) -> list[Command]:
    """The same poses; ``rule`` gets the step, the step of closing and the step of opening over the tray."""
    closed = [step for step, command in enumerate(commands) if command.gripper == 0]
    return [Command(command.pose, rule(step, closed[0], closed[-1] + 1)) for step, command in enumerate(commands)]


@pytest.mark.slow
@pytest.mark.parametrize("referee", REFEREES)
def test_the_expert_places_forty_of_forty(referee: str) -> None:
    assert [outcome(referee, *scene_and_commands(seed)) for seed in range(40)] == [(True, True)] * 40


@pytest.mark.parametrize("referee", REFEREES)
@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(lambda step, closing, opening: int(step >= opening), id="shut until over the tray"),
        pytest.param(lambda step, closing, opening: 0, id="never opens"),
        pytest.param(lambda step, closing, opening: 1, id="never closes"),
        pytest.param(lambda step, closing, opening: int(step == closing - 1 or step >= opening), id="opens on arrival"),
        pytest.param(lambda step, closing, opening: int(not closing - 9 <= step < opening), id="closes 9 steps early"),
    ],
)
def test_wrong_grippers_lift_nothing(referee: str, rule: Callable[[int, int, int], int]) -> None:
    for seed in range(3):
        scene, commands = scene_and_commands(seed)
        assert outcome(referee, scene, with_grippers(commands, rule)) == (False, False), seed


@pytest.mark.parametrize("referee", REFEREES)
@pytest.mark.parametrize("early", [6, 3, -2])
def test_some_haste_is_forgiven(referee: str, early: int) -> None:
    scene, commands = scene_and_commands(0)
    hasty = with_grippers(commands, lambda step, closing, opening: int(not closing - early <= step < opening))
    assert outcome(referee, scene, hasty) == (True, True)


def displaced(commands: list[Command], seed: int, millimeters: float) -> list[Command]:
    """All positions moved by one vector of that length and random direction."""
    direction = np.random.default_rng([9, seed]).normal(size=3)
    offset = np.concatenate([millimeters / 1e3 * direction / np.linalg.norm(direction), np.zeros(4)])
    return [Command(command.pose + offset, command.gripper) for command in commands]


# The figures in docs/closed_loop.md, of 40 scenes: placed by physics, by the kinematic referee, and equal outcomes.
@pytest.mark.parametrize(
    ("millimeters", "agreement"),
    [
        pytest.param(8, 1.0, marks=pytest.mark.exhaustive),
        (15, 1.0),
        pytest.param(25, 1.0, marks=pytest.mark.exhaustive),
        (35, 0.7),
    ],
)
def test_displaced_poses_end_alike(millimeters: float, agreement: float) -> None:
    alike = []
    for seed in range(8):
        scene, commands = scene_and_commands(seed)
        moved = displaced(commands, seed, millimeters)
        alike.append(outcome(PHYSICS, scene, moved) == outcome(KINEMATIC, scene, moved))
    assert np.mean(alike) >= agreement


def lifts(referee: str, scene: Scene, offset: tuple[float, float, float]) -> bool:
    """Whether open fingers that descend at ``offset`` (across, along, above; mm) from the block's center lift it."""
    turn = Rotation.from_euler("z", scene.blocks[0].yaw)
    low = np.array([*scene.block_xy, BLOCK_SIZE / 2]) + turn.apply(np.array(offset) / 1e3)
    above = np.array([0, 0, 0.12])
    shares = [*[1.0] * 4, *np.linspace(1, 0, 7), *[0.0] * 8, *np.linspace(0, 1, 7), 1.0]
    tabletop = make_tabletop(scene, referee)
    for step, share in enumerate(shares):
        tabletop.step(downward_pose(low + share * above, scene.blocks[0].yaw), step < 12)
    return tabletop.lifted == 0


@pytest.mark.parametrize(
    ("offset", "held"),
    [
        ((0, 0, 0), True),
        ((32, 0, 0), True),
        ((37, 0, 0), False),
        ((0, 23, 0), True),
        ((0, 28, 0), False),  # a finger lands on the block
        ((0, 40, 0), False),
        ((0, 0, 31), True),
        ((0, 0, 38), False),
        ((20, 12, 0), True),
        ((30, 20, 0), False),  # one finger touches first, at the block's rim, and turns it away
        ((0, 20, 32), False),
    ],
)
def test_reach_of_the_fingers(offset: tuple[float, float, float], held: bool) -> None:
    scene, _ = scene_and_commands(1)
    assert {referee: lifts(referee, scene, offset) for referee in REFEREES} == dict.fromkeys(REFEREES, held)


def test_physics_repeats_to_the_bit() -> None:
    scene, commands = scene_and_commands(2)
    states = []
    for _ in range(2):
        tabletop = make_tabletop(scene, PHYSICS)
        for command in commands[:40]:
            tabletop.step(command.pose, command.gripper)
        states.append(np.concatenate([tabletop.pose, tabletop.blocks[0].position, [tabletop.opening]]))
    np.testing.assert_array_equal(*states)


def test_a_landing_finger_does_not_press_the_block_through_the_table() -> None:
    scene, _ = scene_and_commands(3)
    turn = Rotation.from_euler("z", scene.blocks[0].yaw)
    over_the_block = np.array([*scene.block_xy, 0.1]) + turn.apply([0, 0.052, 0])
    tabletop = make_tabletop(scene, PHYSICS)
    for height in [0.2] * 5 + [0.0] * 15:
        tabletop.step(downward_pose([*over_the_block[:2], height], scene.blocks[0].yaw), 1)
    assert tabletop.pose[2] > 0.02, "the arm gives in"
    assert tabletop.blocks[0].position[2] > BLOCK_SIZE / 2 - 0.005


@pytest.mark.slow
@pytest.mark.parametrize("variation", [pytest.param(0.5, marks=pytest.mark.exhaustive), 1.0])
@pytest.mark.parametrize("task", TASKS)
def test_the_varied_expert_succeeds_by_physics(task: str, variation: float) -> None:
    for seed in range(10):
        rng = np.random.default_rng([5, seed])
        scene = TASKS[task].draw(rng)
        assert outcome(PHYSICS, scene, plan(scene, rng, variation))[1], seed


def test_results_name_their_referee() -> None:
    scene, _ = scene_and_commands(0)
    assert [make_tabletop(scene, referee).referee for referee in REFEREES] == list(REFEREES)
    assert make_tabletop(scene).referee == PHYSICS
    with pytest.raises(WorkspaceError, match="no referee 'umpire'; expected one of physics, kinematic"):
        make_tabletop(scene, "umpire")
