"""The scripted expert: one pick and place, planned before it is played.

Home, above the block, down, close and dwell, up, above the tray, down, open and dwell, up to rest. Every move is
minimum jerk (Flash and Hogan 1985): it starts and ends at rest, so the gripper's changes lie in the pauses, as in
teleoperation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diffusion_policy.sim.tabletop import BLOCK_SIZE, HOME, TRAY_FLOOR, FloatArray, Scene, downward_pose
from diffusion_policy.spec import GRIPPER_CLOSED, GRIPPER_OPEN

_HOVER = 0.15
_CLEARANCE = 0.012
_DWELL_STEPS = 6  # until the fingers have moved
# Training never looks from an episode's last steps on (windows end half a horizon after it): rest longer than those.
_REST_STEPS = 12


@dataclass(frozen=True)
class Command:
    """What the robot is told for one step: pose (7,) wanted at the next step, and gripper, 1 = open."""

    pose: FloatArray
    gripper: int


@dataclass(frozen=True)
class _Leg:
    """One part of the plan: move to (position, yaw) in so many steps, with this gripper command."""

    position: tuple[float, float, float]
    yaw: float
    steps: int
    gripper: float


def plan(scene: Scene, rng: np.random.Generator) -> list[Command]:
    """Plan the commands of one episode: about 75, seven and a half seconds; the tempo varies with ``rng``."""
    start, yaw = np.array(HOME), 0.0
    commands = []
    for leg in _legs(scene, rng):
        commands += list(_play(start, yaw, leg))
        start, yaw = np.array(leg.position), leg.yaw
    return commands


def _legs(scene: Scene, rng: np.random.Generator) -> list[_Leg]:
    def steps(usual: int) -> int:
        return usual + int(rng.integers(-1, 2))

    grasp = (*scene.block_xy, BLOCK_SIZE / 2 - 0.002)
    above_block = (*scene.block_xy, _HOVER)
    drop = (*scene.tray_xy, BLOCK_SIZE / 2 + TRAY_FLOOR + _CLEARANCE)
    above_tray = (*scene.tray_xy, _HOVER)
    rest = (*scene.tray_xy, HOME[2])
    turned = scene.block_yaw
    return [
        _Leg(above_block, turned, steps(11), GRIPPER_OPEN),
        _Leg(grasp, turned, steps(8), GRIPPER_OPEN),
        _Leg(grasp, turned, _DWELL_STEPS, GRIPPER_CLOSED),
        _Leg(above_block, turned, steps(7), GRIPPER_CLOSED),
        _Leg(above_tray, 0.0, steps(12), GRIPPER_CLOSED),
        _Leg(drop, 0.0, steps(7), GRIPPER_CLOSED),
        _Leg(drop, 0.0, _DWELL_STEPS, GRIPPER_OPEN),
        _Leg(rest, 0.0, steps(9), GRIPPER_OPEN),
        _Leg(rest, 0.0, _REST_STEPS, GRIPPER_OPEN),
    ]


def _play(start: FloatArray, yaw: float, leg: _Leg) -> Iterator[Command]:
    for time in np.linspace(0, 1, leg.steps + 1)[1:]:
        share = time**3 * (10 - 15 * time + 6 * time**2)
        position = start + share * (np.array(leg.position) - start)
        yield Command(downward_pose(position, yaw + share * (leg.yaw - yaw)), int(leg.gripper))
