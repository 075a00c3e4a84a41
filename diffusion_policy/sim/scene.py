"""The initial scene of an episode: blocks, a tray, the light; sizes, coordinate frames and poses.

Frame: the robot's base frame, x forward, y left, z up, meters; the table is the plane z = 0. Quaternions are xyzw and
gripper 1 = open, as everywhere (see spec.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

FloatArray = NDArray[np.float64]
Triple = tuple[float, float, float]

STEP_SECONDS = 0.1
BLOCK_SIZE = 0.046
TRAY_SIZE = (0.17, 0.15)
TRAY_HEIGHT = 0.03
TRAY_FLOOR = 0.006
FINGER_SPAN = 0.092  # meters between the open fingertips
HOME = (0.40, 0.0, 0.24)

BLOCK_COLORS = {
    "red": (208, 60, 54),
    "orange": (232, 138, 40),
    "yellow": (230, 198, 62),
    "green": (72, 164, 92),
    "blue": (58, 112, 200),
    "violet": (138, 88, 180),
}
PICK_AND_PLACE = "pick_and_place"


@dataclass(frozen=True)
class Block:
    """A block before the episode: position (2,) in meters, yaw in radians, and a color named in BLOCK_COLORS."""

    xy: tuple[float, float]
    yaw: float
    color: str


@dataclass(frozen=True)
class Scene:
    """The random choices that determine an episode's initial state.

    Attributes:
        blocks: the blocks on the table, the targets first.
        tray_xy: (2,) meters, the tray's center.
        table_rgb: color of the table.
        brightness: factor on all light.
        light: (3,) direction toward the light source, unit length.
        grain_seed: seed of the wood's grain.
        n_targets: how many of the first blocks belong in the tray, in this order.
        light_drift: change of the light during the episode: relative amplitude, period in steps, phase in radians.
        task: a name in ``tasks.TASKS``.
    """

    blocks: tuple[Block, ...]
    tray_xy: tuple[float, float]
    table_rgb: Triple
    brightness: float
    light: Triple
    grain_seed: int
    n_targets: int = 1
    light_drift: Triple = (0.0, 1.0, 0.0)
    task: str = PICK_AND_PLACE

    @property
    def block_xy(self) -> tuple[float, float]:
        """(2,) position of the first target in meters."""
        return self.blocks[0].xy

    def light_level(self, step: int) -> float:
        """Returns the brightness factor of the frame at a step: 1 unless the light drifts."""
        share, period, phase = self.light_drift
        return 1.0 + share * float(np.sin(2 * np.pi * step / period + phase))


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draws a random scene: one block to the left of the robot's center line, the tray to the right."""
    lamp = np.array([rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.6), 1.0])
    lamp /= np.linalg.norm(lamp)
    wood = np.array([186.0, 150.0, 112.0]) + rng.uniform(-14, 14) + rng.uniform(-8, 8, size=3)
    block = Block(
        xy=(float(rng.uniform(0.40, 0.54)), float(rng.uniform(0.07, 0.21))),
        yaw=float(rng.uniform(-0.35, 0.35)),
        color=str(rng.choice(list(BLOCK_COLORS))),
    )
    return Scene(
        blocks=(block,),
        tray_xy=(float(rng.uniform(0.45, 0.49)), float(rng.uniform(-0.19, -0.15))),
        table_rgb=(float(wood[0]), float(wood[1]), float(wood[2])),
        brightness=float(rng.uniform(0.88, 1.08)),
        light=(float(lamp[0]), float(lamp[1]), float(lamp[2])),
        grain_seed=int(rng.integers(2**31)),
    )


def tray_walls() -> list[tuple[Triple, Triple]]:
    """Returns the tray's four walls as boxes: center relative to the tray's at half its height, and half sizes."""
    (length, width), thickness, middle = TRAY_SIZE, 0.004, TRAY_HEIGHT / 2
    return [
        (offset, half)
        for sign in (-1, 1)
        for offset, half in (
            ((sign * length / 2, 0.0, 0.0), (thickness, width / 2 + thickness, middle)),
            ((0.0, sign * width / 2, 0.0), (length / 2 - thickness, thickness, middle)),
        )
    ]


def downward_pose(position: ArrayLike, yaw: float = 0.0) -> FloatArray:
    """Returns the pose (7,) of a gripper that points straight down, rotated by ``yaw`` radians about z."""
    turn = Rotation.from_euler("z", yaw) * Rotation.from_quat([1.0, 0.0, 0.0, 0.0])
    return np.concatenate([np.asarray(position, dtype=np.float64), turn.as_quat()])


def yaw_of(pose: ArrayLike) -> float:
    """Returns the yaw, in radians, of a gripper pose (7,) that points down; the inverse of ``downward_pose``."""
    finger_axis = Rotation.from_quat(np.asarray(pose, dtype=np.float64)[3:7]).apply([1.0, 0.0, 0.0])
    return float(np.arctan2(finger_axis[1], finger_axis[0]))
