"""A scripted player of the grove: turns to the nearest target, walks up to it, aims, and holds the right button.

It acts in VPT's space: its turns are values of the camera's bins, so a policy that clones it can express everything
that it does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diffusion_policy.minecraft.actions import BUTTONS, degrees_of, quantize
from diffusion_policy.minecraft.world import Box, World

_STILL = 0.35  # degrees: smaller errors are not corrected; half of the smallest turn
_AHEAD = 25.0  # degrees of yaw within which it walks
_SPRINTS_FROM = 6.0  # meters
_STUCK_TICKS, _ASIDE_TICKS = 4, 14
_STUCK_M = 0.02  # per tick; it walks ten times as far


class Expert:
    """Plays one episode.

    Args:
        rng: draws pauses and the strength of turns.
        variation: 0 to 1, how much it pauses and how unevenly it turns; 0 draws nothing.
    """

    def __init__(self, rng: np.random.Generator, variation: float = 0.5) -> None:
        self._rng, self._variation = rng, variation
        self._pause, self._aside, self._stood = 0, 0, 0
        self._side = "left"
        self._before = np.full(3, np.nan)
        self._answered: frozenset[str] = frozenset()

    def act(self, world: World) -> dict[str, Any]:
        """The action for the current state: all buttons, and the camera (2,) in degrees."""
        pressed, turn = self._decide(world)
        self._answered = frozenset(pressed)
        return {**{name: int(name in pressed) for name in BUTTONS}, "camera": degrees_of(quantize(turn))}

    def _decide(self, world: World) -> tuple[set[str], Any]:
        """The buttons to press, and the turn (2,) of pitch and yaw in degrees."""
        pressed: set[str] = set()
        if self._pauses(world):
            return pressed, np.zeros(2)
        pitch, yaw, distance = self._aim(world, _target(world))
        turn = np.array([pitch, yaw]) * (1 - 0.4 * self._variation * self._rng.random(2))
        near = 2.2 if world.task.target == "sheep" else 2.6
        aimed = world.aimed_at()
        near_enough = distance < near + 1.0 or world.progress  # what is being harvested is not let go of
        if aimed is not None and aimed.material == world.task.target and near_enough:
            pressed.add(world.task.button)
            if world.progress:  # no turns: any turn could move the aim off the block
                turn = turn * (world.task.target == "sheep")
        stands = world.progress and "forward" not in world.pressed  # and harvests: to walk could move the aim, too
        if abs(yaw) < _AHEAD and distance > near and not stands:
            pressed |= {"forward", "sprint"} if distance > _SPRINTS_FROM else {"forward"}
        hidden = distance <= near and aimed is not None and aimed.material != world.task.target
        self._walk_around(world, pressed, hidden=hidden and max(abs(pitch), abs(yaw)) < 1.0)
        return pressed, np.where(np.abs(turn) < _STILL, 0.0, turn)

    def _pauses(self, world: World) -> bool:
        """Whether it pauses now, as people do at times; never while harvesting."""
        if self._pause == 0 and not world.progress and self._rng.random() < 0.03 * self._variation:
            self._pause = int(self._rng.integers(3, 9))
        self._pause = max(0, self._pause - 1)
        return self._pause > 0

    def _aim(self, world: World, target: Box) -> tuple[float, float, float]:
        """Turns of pitch and yaw, in degrees, to look at the middle of a target, and its distance on the ground."""
        x, y, z = (target.low + target.high) / 2 - world.eye
        distance = math.hypot(x, z)
        yaw = (math.degrees(math.atan2(-x, z)) - world.yaw + 180.0) % 360.0 - 180.0
        return math.degrees(math.atan2(-y, distance)) - world.pitch, yaw, distance

    def _walk_around(self, world: World, pressed: set[str], *, hidden: bool) -> None:
        """Step aside if something is in the way, or hides a target that is near enough.

        Where the expert only says what it would do, a player that stands may simply not have walked: only after it did
        what the expert would have done does this mean that something is in the way.
        """
        moved = float(np.abs(world.position - self._before).max())
        followed = world.pressed == self._answered
        stood = hidden or (followed and "forward" in pressed and moved < _STUCK_M)
        self._stood = self._stood + 1 if stood else 0
        self._before = world.position.copy()
        if self._stood >= _STUCK_TICKS and self._aside == 0:
            self._aside, self._side = _ASIDE_TICKS, "right" if self._side == "left" else "left"
        if self._aside:
            self._aside -= 1
            pressed -= {"forward", "sprint"}
            pressed.add(self._side)


def _target(world: World) -> Box:
    """The part of the nearest target that is easiest to reach: for a tree the second log, at eye level."""

    def effort(box: Box) -> tuple[float, float]:
        x, y, z = (box.low + box.high) / 2 - world.eye
        return round(math.hypot(x, z), 3), abs(y)

    return min(world.targets(), key=effort)
