"""The scene in motion: commands are followed, fingers take time, blocks are held, carried and dropped."""

import numpy as np
import pytest

from diffusion_policy.sim.expert import plan
from diffusion_policy.sim.tabletop import (
    BLOCK_SIZE,
    HOME,
    TRAY_FLOOR,
    Tabletop,
    downward_pose,
    draw_scene,
    yaw_of,
)
from diffusion_policy.spec import SpecError


def tabletop_of(seed: int) -> Tabletop:
    return Tabletop(draw_scene(np.random.default_rng(seed)))


@pytest.mark.parametrize("yaw", [-0.3, 0.0, 0.35])
def test_yaw_survives_the_pose(yaw: float) -> None:
    pose = downward_pose([0.4, 0.1, 0.2], yaw)
    assert yaw_of(pose) == pytest.approx(yaw)
    assert np.linalg.norm(pose[3:7]) == pytest.approx(1)


def test_measured_gripper_lags_the_command() -> None:
    tabletop = tabletop_of(0)
    measured = []
    for command in [1, 0, 0, 0, 0, 1, 1, 1]:
        measured.append(tabletop.gripper)
        tabletop.step(downward_pose(HOME), command)
    assert measured == [1, 1, 1, 1, 1, 0, 0, 0]
    assert tabletop.gripper == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_expert_places_the_block(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng)
    tabletop, heights = Tabletop(scene), []
    for command in plan(scene, rng):
        tabletop.step(command.pose, command.gripper)
        heights.append(tabletop.blocks[0].position[2])
    assert tabletop.placed
    assert max(heights) > 0.1, "the block is lifted"
    assert heights[-1] == pytest.approx(BLOCK_SIZE / 2 + TRAY_FLOOR)


def test_expert_opens_closes_and_opens() -> None:
    rng = np.random.default_rng(3)
    grippers = [command.gripper for command in plan(draw_scene(rng), rng)]
    changes = np.flatnonzero(np.diff(grippers))
    assert [grippers[0], grippers[changes[0] + 1], grippers[changes[1] + 1]] == [1, 0, 1]
    assert len(changes) == 2


def test_expert_moves_smoothly() -> None:
    rng = np.random.default_rng(4)
    poses = np.stack([command.pose for command in plan(draw_scene(rng), rng)])
    assert np.linalg.norm(np.diff(poses[:, :3], axis=0), axis=1).max() < 0.08


def test_closing_beside_the_block_grasps_nothing() -> None:
    tabletop = tabletop_of(5)
    x, y = tabletop.scene.block_xy
    for gripper in [1] * 3 + [0] * 8:
        tabletop.step(downward_pose([x + 0.05, y, BLOCK_SIZE / 2]), gripper)
    assert tabletop.held is None
    assert tabletop.opening == 0
    assert not tabletop.placed


def test_a_block_let_go_in_the_air_falls() -> None:
    tabletop = tabletop_of(6)
    x, y = tabletop.scene.block_xy
    for height, gripper in [(0.02, 1)] * 4 + [(0.02, 0)] * 6 + [(0.2, 0)] * 6:
        tabletop.step(downward_pose([x, y, height]), gripper)
    assert tabletop.held is not None
    assert tabletop.blocks[0].position[2] > 0.15
    for _ in range(8):
        tabletop.step(downward_pose([x, y, 0.2]), 1)
    assert tabletop.held is None
    assert tabletop.blocks[0].position[2] == pytest.approx(BLOCK_SIZE / 2)


@pytest.mark.parametrize(
    ("pose", "gripper", "message"),
    [
        (np.zeros(6), 1.0, "finite pose numbers"),
        (np.full(7, np.nan), 1.0, "finite pose numbers"),
        (downward_pose(HOME), np.nan, "finite pose numbers"),
        (np.zeros(7), 1.0, "norm 0.000"),
    ],
)
def test_bad_commands_are_refused(pose: np.ndarray, gripper: float, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        tabletop_of(0).step(pose, gripper)
