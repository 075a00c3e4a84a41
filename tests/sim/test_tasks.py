"""Tasks and the expert that varies: what is drawn, what counts as done, and how much episodes differ."""

import numpy as np
import pytest

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.sim.expert import Command, plan
from diffusion_policy.sim.referees import KINEMATIC, make_tabletop
from diffusion_policy.sim.scene import Scene
from diffusion_policy.sim.tasks import DISTRACTORS, POSE_ONLY, TASKS, TWO_IN_ORDER, Progress, task_of


def planned(task: str, seed: int, variation: float = 0.0) -> tuple[Scene, list[Command]]:
    rng = np.random.default_rng([3, seed])
    scene = TASKS[task].draw(rng)
    return scene, plan(scene, rng, variation)


def played(scene: Scene, commands: list[Command]) -> Progress:
    tabletop, progress = make_tabletop(scene, KINEMATIC), Progress()
    for command in commands:
        tabletop.step(command.pose, command.gripper)
        progress.update(tabletop)
    return progress


@pytest.mark.parametrize("variation", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("task", TASKS)
def test_the_expert_succeeds(task: str, variation: float) -> None:
    assert all(played(*planned(task, seed, variation)).succeeded for seed in range(20))


@pytest.mark.parametrize("task", TASKS)
def test_equal_seeds_make_equal_plans(task: str) -> None:
    (scene, one), (again, other), (_, different) = (planned(task, seed, 1.0) for seed in (1, 1, 2))
    assert scene == again
    np.testing.assert_array_equal([command.pose for command in one], [command.pose for command in other])
    assert len(one) != len(different) or not np.array_equal(one[9].pose, different[9].pose)


def test_a_varied_expert_differs_from_itself() -> None:
    steady, varied = ([planned("pick_and_place", seed, v)[1] for seed in range(40)] for v in (0.0, 1.0))
    assert np.ptp([len(commands) for commands in varied]) > 5 * np.ptp([len(commands) for commands in steady])
    closings = [sum(np.diff([command.gripper for command in commands]) < 0) for commands in varied]
    assert set(closings) == {1, 2}, "some first tries fail and are corrected"
    assert 0.1 < np.mean(np.array(closings) == 2) < 0.5
    assert all(sum(np.diff([command.gripper for command in commands]) < 0) == 1 for commands in steady)


def test_two_blocks_count_in_their_order_only() -> None:
    scene, commands = planned(TWO_IN_ORDER, 0)
    assert scene.n_targets == 2
    assert [block.color for block in scene.blocks] == ["red", "blue"]
    assert played(scene, commands).succeeded
    first = next(step for step in range(20, len(commands)) if commands[step].gripper > commands[step - 1].gripper)
    start_of_second = first + 10
    assert not played(scene, commands[:start_of_second]).succeeded, "one of two is not done"
    swapped = commands[start_of_second:] + commands[:start_of_second]
    assert not played(scene, swapped).succeeded, "the blue block came first"


def test_distractors_stand_clear_of_the_target_and_light_changes() -> None:
    scenes = [TASKS[DISTRACTORS].draw(np.random.default_rng(seed)) for seed in range(30)]
    assert {len(scene.blocks) for scene in scenes} == {2, 3, 4}
    assert all(scene.blocks[0].color == "red" and scene.n_targets == 1 for scene in scenes)
    assert all(block.color != "red" for scene in scenes for block in scene.blocks[1:])
    away = [np.linalg.norm(np.subtract(b.xy, scene.block_xy)) for scene in scenes for b in scene.blocks[1:]]
    assert min(away) > 0.1
    levels = np.array([[scene.light_level(step) for step in range(80)] for scene in scenes])
    assert np.ptp(levels, axis=1).max() > 0.2
    assert np.ptp([scene.brightness for scene in scenes]) > 0.3


def test_the_pose_only_task_never_closes() -> None:
    scene, commands = planned(POSE_ONLY, 0, variation=1.0)
    assert {command.gripper for command in commands} == {1}
    assert played(scene, commands).succeeded
    assert not played(scene, commands[:15]).succeeded


@pytest.mark.parametrize("variation", [-0.1, 1.5, float("nan")])
def test_variation_has_bounds(variation: float) -> None:
    with pytest.raises(WorkspaceError, match=r"expected 0 .* to 1"):
        planned("pick_and_place", 0, variation)


def test_unknown_tasks_are_named() -> None:
    with pytest.raises(WorkspaceError, match="no task 'juggle'; expected one of pick_and_place, two_in_order"):
        task_of("juggle")
