"""What is on the table and how it moves: a parallel gripper, a block, a tray.

The physics is kinematic and small on purpose. The arm follows a commanded pose, the fingers close at a finite speed, a
block between closing fingers is held, and a released block falls. That suffices for the one thing the demo is about:
deciding *when* to close and when to open.

Frame: the robot's base frame, x forward, y left, z up, metres; the table is the plane z = 0. Quaternions are xyzw and
gripper 1 = open, as everywhere (see spec.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from diffusion_policy.spec import GRIPPER_CLOSED, GRIPPER_OPEN, POSE, SpecError

FloatArray = NDArray[np.float64]

STEP_SECONDS = 0.1
BLOCK_SIZE = 0.046
TRAY_SIZE = (0.17, 0.15)
TRAY_HEIGHT = 0.03
TRAY_FLOOR = 0.006
FINGER_SPAN = 0.092  # metres between the open fingers
HOME = (0.40, 0.0, 0.24)

# How the hardware follows its commands. With a block, the measured gripper flips four steps after the command to close
# and three after the one to open, as on real grippers: it is no label to copy from.
_FINGER_SPEED = 0.14  # of the span, a step
_MEASURED_CLOSED_BELOW, _MEASURED_OPEN_ABOVE = 0.55, 0.85  # between them the last value stays
_ARM_GAIN = 0.9
_GRASP_REACH = 0.024  # metres, sideways, from the middle of the fingers to the middle of the block
_HELD_OPENING = BLOCK_SIZE / FINGER_SPAN
_FALL_STEP = 0.05  # metres a step

BLOCK_COLOURS = {
    "red": (208, 60, 54),
    "orange": (232, 138, 40),
    "yellow": (230, 198, 62),
    "green": (72, 164, 92),
    "blue": (58, 112, 200),
    "violet": (138, 88, 180),
}


@dataclass(frozen=True)
class Scene:
    """What chance decides before an episode starts.

    Attributes:
        block_xy: (2,) metres, where the block stands.
        block_yaw: radians about z.
        block_colour: a name of BLOCK_COLOURS.
        tray_xy: (2,) metres, the tray's centre.
        table_rgb: colour of the table.
        brightness: factor on all light.
        light: (3,) direction towards the lamp, unit length.
        grain_seed: draws the wood's grain.
    """

    block_xy: tuple[float, float]
    block_yaw: float
    block_colour: str
    tray_xy: tuple[float, float]
    table_rgb: tuple[float, float, float]
    brightness: float
    light: tuple[float, float, float]
    grain_seed: int


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw an episode's scene: the block left of the robot's middle, the tray right of it."""
    lamp = np.array([rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.6), 1.0])
    lamp /= np.linalg.norm(lamp)
    wood = np.array([186.0, 150.0, 112.0]) + rng.uniform(-14, 14) + rng.uniform(-8, 8, size=3)
    return Scene(
        block_xy=(float(rng.uniform(0.40, 0.54)), float(rng.uniform(0.07, 0.21))),
        block_yaw=float(rng.uniform(-0.35, 0.35)),
        block_colour=str(rng.choice(list(BLOCK_COLOURS))),
        tray_xy=(float(rng.uniform(0.45, 0.49)), float(rng.uniform(-0.19, -0.15))),
        table_rgb=(float(wood[0]), float(wood[1]), float(wood[2])),
        brightness=float(rng.uniform(0.88, 1.08)),
        light=(float(lamp[0]), float(lamp[1]), float(lamp[2])),
        grain_seed=int(rng.integers(2**31)),
    )


def downward_pose(position: ArrayLike, yaw: float = 0.0) -> FloatArray:
    """Pose (7,) of a gripper that points straight down, its fingers turned by ``yaw`` radians about z."""
    turn = Rotation.from_euler("z", yaw) * Rotation.from_quat([1.0, 0.0, 0.0, 0.0])
    return np.concatenate([np.asarray(position, dtype=np.float64), turn.as_quat()])


def yaw_of(pose: ArrayLike) -> float:
    """Turn about z, in radians, of a gripper pose (7,) that points down; the inverse of ``downward_pose``."""
    finger_axis = Rotation.from_quat(np.asarray(pose, dtype=np.float64)[3:7]).apply([1.0, 0.0, 0.0])
    return float(np.arctan2(finger_axis[1], finger_axis[0]))


class Tabletop:
    """The scene in motion; ``step`` moves it by a tenth of a second.

    Attributes:
        scene: what was drawn.
        pose: (7,) measured pose of the point between the fingertips.
        opening: of the fingers, 0 = shut, 1 = open.
        gripper: as measured, 1 = open, 0 = closed.
        block_position: (3,) centre of the block.
        block_yaw: radians.
        holding: whether the block is between the fingers.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.pose = downward_pose(HOME)
        self.opening = 1.0
        self.gripper = int(GRIPPER_OPEN)
        self.block_position = np.array([*scene.block_xy, BLOCK_SIZE / 2])
        self.block_yaw = scene.block_yaw
        self.holding = False

    @property
    def placed(self) -> bool:
        """Whether the block rests in the tray, let go."""
        return not self.holding and self._over_tray() and self.block_position[2] <= self._rest_height() + 1e-9

    def step(self, pose: ArrayLike, gripper: float) -> None:
        """Follow one command for one step.

        Args:
            pose: (7,) commanded pose; its quaternion is normalised.
            gripper: above 0.5 opens the fingers, else closes them, as the robot's client decides.

        Raises:
            SpecError: the command is not eight finite numbers with a quaternion in them.
        """
        command = np.asarray(pose, dtype=np.float64)
        if command.shape != (len(POSE),) or not np.isfinite(command).all() or not np.isfinite(gripper):
            raise SpecError(f"a command is {len(POSE)} finite pose numbers and a gripper, got {command}, {gripper}")
        norm = np.linalg.norm(command[3:7])
        if norm < 0.5:
            raise SpecError(f"the commanded quaternion {command[3:7]} has norm {norm:.3f}; expected 1")
        before = self.pose
        position = before[:3] + _ARM_GAIN * (command[:3] - before[:3])
        position[2] = max(position[2], 0.0)
        self.pose = np.concatenate([position, command[3:7] / norm])
        self._move_fingers(gripper > 0.5)
        self._move_block(before)

    def _move_fingers(self, wants_open: bool) -> None:
        closing_on_block = not wants_open and (self.holding or self._block_between_fingers())
        lower = _HELD_OPENING if closing_on_block else 0.0
        self.opening = float(np.clip(self.opening + (_FINGER_SPEED if wants_open else -_FINGER_SPEED), lower, 1.0))
        if self.opening < _MEASURED_CLOSED_BELOW:
            self.gripper = int(GRIPPER_CLOSED)
        elif self.opening > _MEASURED_OPEN_ABOVE:
            self.gripper = int(GRIPPER_OPEN)
        if closing_on_block and self.opening <= _HELD_OPENING:
            self.holding = True
        elif self.opening > _HELD_OPENING + _FINGER_SPEED / 2:
            self.holding = False

    def _move_block(self, before: FloatArray) -> None:
        if self.holding:
            turn = yaw_of(self.pose) - yaw_of(before)
            offset = Rotation.from_euler("z", turn).apply(self.block_position - before[:3])
            self.block_position = self.pose[:3] + offset
            self.block_yaw += turn
        else:
            self.block_position[2] = max(self.block_position[2] - _FALL_STEP, self._rest_height())

    def _block_between_fingers(self) -> bool:
        offset = self.block_position - self.pose[:3]
        return bool(np.linalg.norm(offset[:2]) < _GRASP_REACH and abs(offset[2]) < BLOCK_SIZE / 2)

    def _over_tray(self) -> bool:
        room = (np.array(TRAY_SIZE) - BLOCK_SIZE) / 2
        return bool((np.abs(self.block_position[:2] - self.scene.tray_xy) <= room).all())

    def _rest_height(self) -> float:
        return BLOCK_SIZE / 2 + (TRAY_FLOOR if self._over_tray() else 0.0)
