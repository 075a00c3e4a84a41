"""The kinematic simulation of the tabletop: a parallel gripper, blocks, a tray.

This is the fast referee, without forces. The arm follows a commanded pose, the fingers close at a finite speed, a block
between closing fingers is held if they were at least as wide as the block when they reached it, and a released block
falls. Outcomes are checked against ``physics_tabletop.PhysicsTabletop``, which has the same interface;
docs/closed_loop.md lists the differences.

Frames and units are those of scene.py, whose names this module exports, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from diffusion_policy.gripper_events import CLIENT_THRESHOLD
from diffusion_policy.sim.scene import (
    BLOCK_COLORS,
    BLOCK_SIZE,
    FINGER_SPAN,
    HOME,
    STEP_SECONDS,
    TRAY_FLOOR,
    TRAY_HEIGHT,
    TRAY_SIZE,
    Block,
    FloatArray,
    Scene,
    downward_pose,
    draw_scene,
    yaw_of,
)
from diffusion_policy.spec import GRIPPER_CLOSED, GRIPPER_OPEN, POSE, SpecError

__all__ = [
    "BLOCK_COLORS",
    "BLOCK_SIZE",
    "FINGER_SPAN",
    "HOME",
    "LIFTED_ABOVE",
    "STEP_SECONDS",
    "TRAY_FLOOR",
    "TRAY_HEIGHT",
    "TRAY_SIZE",
    "Block",
    "BlockState",
    "FloatArray",
    "Scene",
    "Tabletop",
    "downward_pose",
    "draw_scene",
    "yaw_of",
]

# How the simulated hardware follows its commands. With a block, the measured gripper changes four steps after the
# command to close and three after the one to open, as on real grippers, so it cannot serve as the label.
FINGER_SPEED = 0.14  # of the span, per step
ARM_GAIN = 0.9  # share of the distance to the commanded position that one step covers
_MEASURED_CLOSED_BELOW, _MEASURED_OPEN_ABOVE = 0.55, 0.85  # between them the last value is kept
LIFTED_ABOVE = 0.08  # meters: a held block with its center above this height counts as grasped

# Offsets at which closing fingers hold a block, as in PhysicsTabletop (tests/sim/test_referees.py): of its center, in
# the gripper's frame, across the fingers' motion and downward. Along their motion the block must fit between them; a
# finger that touches it first rotates it away, so the reach shrinks by these shares of the offset along the motion.
_REACH_ACROSS, _ACROSS_LOST = 0.0335, 0.55
_REACH_BELOW, _BELOW_LOST = 0.0345, 0.42
_FINGER_GIVE = 0.002  # meters of overlap at which a finger still slides off a block's edge
_HELD_OPENING = BLOCK_SIZE / FINGER_SPAN
_FALL_STEP = 0.05  # meters per step


@dataclass
class BlockState:
    """The state of one block.

    Attributes:
        position: (3,) center in meters.
        rotation: (3, 3) matrix; its columns are the axes of the block.
        yaw: rotation about z in radians.
        straddled: whether the fingers went around the block when they reached it; None while they are away from it.
    """

    position: FloatArray
    rotation: FloatArray
    yaw: float
    straddled: bool | None = None

    @classmethod
    def of(cls, block: Block) -> BlockState:
        """Returns the initial state: the block stands on the table."""
        return cls(np.array([*block.xy, BLOCK_SIZE / 2]), rotation_about_z(block.yaw), block.yaw)


def rotation_about_z(yaw: float) -> FloatArray:
    """Returns the matrix (3, 3) of a rotation by ``yaw`` radians about z."""
    matrix: FloatArray = Rotation.from_euler("z", yaw).as_matrix()
    return matrix


class Tabletop:
    """The simulation of a scene; ``step`` advances it by a tenth of a second.

    Attributes:
        scene: the initial scene.
        pose: (7,) measured pose of the point between the fingertips.
        opening: opening of the fingers, 0 = closed, 1 = open.
        gripper: measured gripper state, 1 = open, 0 = closed.
        blocks: the state of each block of the scene.
        held: number of the block between the closed fingers, or None.
        placed_order: numbers of the blocks that have come to rest in the tray, in order of their first time.
        steps: number of steps taken.
    """

    referee: ClassVar[str] = "kinematic"
    _REST_TOLERANCE: ClassVar[float] = 1e-9

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.pose = downward_pose(HOME)
        self.opening = 1.0
        self.gripper = int(GRIPPER_OPEN)
        self.blocks = [BlockState.of(block) for block in scene.blocks]
        self.held: int | None = None
        self.placed_order: list[int] = []
        self.steps = 0

    @property
    def lifted(self) -> int | None:
        """Number of the block that is held well above the table, or None."""
        held = self.held
        return held if held is not None and self.blocks[held].position[2] > LIFTED_ABOVE else None

    @property
    def placed(self) -> bool:
        """Whether every target rests in the tray and is released."""
        return all(self.is_placed(number) for number in range(self.scene.n_targets))

    def is_placed(self, number: int) -> bool:
        """Whether block ``number`` rests in the tray and is released."""
        block = self.blocks[number]
        low = block.position[2] <= self._rest_height(block) + self._REST_TOLERANCE
        return number != self.held and self._over_tray(block) and bool(low)

    def step(self, pose: ArrayLike, gripper: float) -> None:
        """Executes one command for one step.

        Args:
            pose: (7,) commanded pose; its quaternion is normalized.
            gripper: above 0.5 opens the fingers, else closes them, as the robot's client does.

        Raises:
            SpecError: the command is not eight finite numbers with a quaternion in them.
        """
        command = np.asarray(pose, dtype=np.float64)
        if command.shape != (len(POSE),) or not np.isfinite(command).all() or not np.isfinite(gripper):
            raise SpecError(f"a command is {len(POSE)} finite pose numbers and a gripper, got {command}, {gripper}")
        norm = np.linalg.norm(command[3:7])
        if norm < 0.5:
            raise SpecError(f"the commanded quaternion {command[3:7]} has norm {norm:.3f}; expected 1")
        position = self.pose[:3] + ARM_GAIN * (command[:3] - self.pose[:3])
        position[2] = max(position[2], 0.0)
        self._advance(np.concatenate([position, command[3:7] / norm]), wants_open=gripper > CLIENT_THRESHOLD)
        self.steps += 1
        if self.opening < _MEASURED_CLOSED_BELOW:
            self.gripper = int(GRIPPER_CLOSED)
        elif self.opening > _MEASURED_OPEN_ABOVE:
            self.gripper = int(GRIPPER_OPEN)
        for number in range(len(self.blocks)):
            if number not in self.placed_order and self.is_placed(number):
                self.placed_order.append(number)

    def _advance(self, goal: FloatArray, *, wants_open: bool) -> None:
        """Moves arm, fingers and blocks by one step toward the pose ``goal`` (7,)."""
        before, self.pose = self.pose, goal
        opening = self.opening + (FINGER_SPEED if wants_open else -FINGER_SPEED)
        between = self.held if self.held is not None else self._block_between_fingers(opening)
        closing_on_block = not wants_open and between is not None
        self.opening = float(np.clip(opening, _HELD_OPENING if closing_on_block else 0.0, 1.0))
        if closing_on_block and self.opening <= _HELD_OPENING:
            self.held = between
        elif self.opening > _HELD_OPENING + FINGER_SPEED / 2:
            self.held = None
        for number, block in enumerate(self.blocks):
            if number == self.held:
                self._carry(block, before)
            else:
                block.position[2] = max(block.position[2] - _FALL_STEP, self._rest_height(block))
        if between is not None:
            self._push_between_fingers(self.blocks[between])

    def _carry(self, block: BlockState, before: FloatArray) -> None:
        turn = yaw_of(self.pose) - yaw_of(before)
        offset = Rotation.from_euler("z", turn).apply(block.position - before[:3])
        block.position = self.pose[:3] + offset
        block.yaw += turn
        block.rotation = rotation_about_z(block.yaw)

    def _block_between_fingers(self, opening: float) -> int | None:
        """Returns the block between the fingers: they went around it, and have neither left it nor rotated it away."""
        axes = Rotation.from_quat(self.pose[3:7]).as_matrix()
        room = self.opening * FINGER_SPAN / 2 - BLOCK_SIZE / 2 + _FINGER_GIVE
        for block in self.blocks:
            across, along, below = np.abs((block.position - self.pose[:3]) @ axes)
            if across > _REACH_ACROSS or below > _REACH_BELOW or along > room + BLOCK_SIZE:
                block.straddled = None
            elif block.straddled is None:
                block.straddled = bool(along <= room)
            elif self.held is None and along > opening * FINGER_SPAN / 2 - BLOCK_SIZE / 2 + _FINGER_GIVE:
                inside = across <= _REACH_ACROSS - _ACROSS_LOST * along and below <= _REACH_BELOW - _BELOW_LOST * along
                block.straddled = block.straddled and bool(inside)
        return next((number for number, block in enumerate(self.blocks) if block.straddled), None)

    def _push_between_fingers(self, block: BlockState) -> None:
        """Moves a block that one of the fingers touches while they close or pass by."""
        axis = Rotation.from_quat(self.pose[3:7]).as_matrix()[:, 1]
        along = float((block.position - self.pose[:3]) @ axis)
        room = max(self.opening * FINGER_SPAN / 2 - BLOCK_SIZE / 2, 0.0) + _FINGER_GIVE
        if abs(along) > room:
            block.position = block.position + axis * (np.clip(along, -room, room) - along)

    def _over_tray(self, block: BlockState) -> bool:
        room = (np.array(TRAY_SIZE) - BLOCK_SIZE) / 2
        return bool((np.abs(block.position[:2] - self.scene.tray_xy) <= room).all())

    def _rest_height(self, block: BlockState) -> float:
        return BLOCK_SIZE / 2 + (TRAY_FLOOR if self._over_tray(block) else 0.0)
