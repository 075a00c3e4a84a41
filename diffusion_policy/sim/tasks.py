"""The tasks of the tabletop: how their scenes are drawn, and when they are completed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.sim.scene import (
    BLOCK_COLORS,
    PICK_AND_PLACE,
    STEP_SECONDS,
    Block,
    FloatArray,
    Scene,
    draw_scene,
)
from diffusion_policy.sim.tabletop import Tabletop

POSE_ONLY = "pose_only"
TWO_IN_ORDER = "two_in_order"
DISTRACTORS = "distractors"

_TARGET_COLORS = ("red", "blue")  # of the first and the second target, in scenes with several blocks
_ROOM_X, _ROOM_Y = (0.36, 0.53), (0.05, 0.24)
_ROOM_FOR_FINGERS = 0.10  # meters between a target and any other block, so that the open hand fits between them
_ROOM_FOR_BLOCKS = 0.075
_VISITED_WITHIN = 0.02  # meters sideways from the fingertips to where they would grasp or release
_VISITED_BELOW = 0.06  # meters above the table


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: name in configs and on command lines.
        goal: the goal in one sentence.
        draw: draws a random scene of the task.
    """

    name: str
    goal: str
    draw: Callable[[np.random.Generator], Scene]


class Progress:
    """The progress of one episode; ``update`` is called once after every step.

    Attributes:
        grasped: whether a target was ever held well above the table.
        succeeded: whether the task is completed.
    """

    def __init__(self) -> None:
        self.grasped = False
        self.succeeded = False
        self._visited_block = False

    def update(self, tabletop: Tabletop) -> None:
        """Updates the progress from the current state of the tabletop."""
        scene, lifted = tabletop.scene, tabletop.lifted
        self.grasped = self.grasped or (lifted is not None and lifted < scene.n_targets)
        if scene.task == POSE_ONLY:
            self._visited_block = self._visited_block or _visits(tabletop, scene.block_xy)
            self.succeeded = self.succeeded or (self._visited_block and _visits(tabletop, scene.tray_xy))
        else:
            self.succeeded = tabletop.placed and tabletop.placed_order == list(range(scene.n_targets))


def _visits(tabletop: Tabletop, xy: tuple[float, float]) -> bool:
    tips = tabletop.pose[:3]
    return bool(np.linalg.norm(tips[:2] - xy) < _VISITED_WITHIN and tips[2] < _VISITED_BELOW)


def _draw_pose_only(rng: np.random.Generator) -> Scene:
    return replace(draw_scene(rng), task=POSE_ONLY)


def _draw_two_in_order(rng: np.random.Generator) -> Scene:
    scene = draw_scene(rng)
    blocks = tuple(Block(xy, _yaw(rng), color) for xy, color in zip(_spots(rng, 2, 2), _TARGET_COLORS, strict=True))
    return replace(scene, blocks=blocks, n_targets=2, task=TWO_IN_ORDER)


def _draw_distractors(rng: np.random.Generator) -> Scene:
    """One red target, one to three blocks of other colors, and a light that differs between episodes and in them."""
    scene = draw_scene(rng)
    others = [name for name in BLOCK_COLORS if name != _TARGET_COLORS[0]]
    colors = [_TARGET_COLORS[0], *map(str, rng.choice(others, size=rng.integers(1, 4), replace=False))]
    spots = _spots(rng, len(colors), 1)
    lamp = np.array([rng.uniform(-0.4, 0.8), rng.uniform(-0.8, 0.8), 1.0])
    lamp /= np.linalg.norm(lamp)
    drift = (rng.uniform(0.0, 0.2), rng.uniform(3.0, 8.0) / STEP_SECONDS, rng.uniform(0.0, 2 * np.pi))
    return replace(
        scene,
        blocks=tuple(Block(xy, _yaw(rng), color) for xy, color in zip(spots, colors, strict=True)),
        brightness=float(rng.uniform(0.65, 1.15)),
        light=(float(lamp[0]), float(lamp[1]), float(lamp[2])),
        light_drift=(float(drift[0]), float(drift[1]), float(drift[2])),
        task=DISTRACTORS,
    )


def _yaw(rng: np.random.Generator) -> float:
    return float(rng.uniform(-0.35, 0.35))


def _spots(rng: np.random.Generator, n_blocks: int, n_targets: int) -> list[tuple[float, float]]:
    """Draws positions of blocks that are far enough apart for the open hand to reach every target."""
    while True:
        spots: FloatArray = np.stack([rng.uniform(*_ROOM_X, n_blocks), rng.uniform(*_ROOM_Y, n_blocks)], axis=1)
        between = np.linalg.norm(spots[:, None] - spots, axis=-1) + np.eye(n_blocks)
        if between[:n_targets].min() > _ROOM_FOR_FINGERS and between.min() > _ROOM_FOR_BLOCKS:
            return [(float(x), float(y)) for x, y in spots]


TASKS = MappingProxyType(
    {
        task.name: task
        for task in (
            Task(PICK_AND_PLACE, "put the block into the tray", draw_scene),
            Task(TWO_IN_ORDER, "put the red block into the tray, then the blue one", _draw_two_in_order),
            Task(DISTRACTORS, "put the red block into the tray; other blocks, changing light", _draw_distractors),
            Task(POSE_ONLY, "go down to the block, then to the tray; the gripper stays open", _draw_pose_only),
        )
    }
)


def task_of(name: str) -> Task:
    """The task of that name.

    Raises:
        WorkspaceError: there is none.
    """
    if name not in TASKS:
        raise WorkspaceError(f"no task {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]
