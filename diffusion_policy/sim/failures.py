"""Why an episode on the tabletop failed, from what the fingers did at the block.

The last attempt counts: a policy may close next to the block, correct itself and drop the block later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from diffusion_policy.sim.scene import BLOCK_SIZE, FINGER_SPAN, FloatArray
from diffusion_policy.sim.tabletop import Tabletop
from diffusion_policy.sim.tasks import POSE_ONLY

NEVER_CLOSED = "never closed"
CLOSED_EARLY = "closed early"
CLOSED_NEXT_TO_BLOCK = "closed beside"
SHUT_ON_ARRIVAL = "shut on arrival"
PUSHED = "pushed"
DROPPED = "dropped"
NOT_RELEASED = "not released"
WRONG_ORDER = "wrong order"
TIMEOUT = "timeout"
REASONS = (
    NEVER_CLOSED,
    CLOSED_EARLY,
    CLOSED_NEXT_TO_BLOCK,
    SHUT_ON_ARRIVAL,
    PUSHED,
    DROPPED,
    NOT_RELEASED,
    WRONG_ORDER,
    TIMEOUT,
)

_AT_BLOCK = 0.045  # meters sideways from the block's center: fingers within it are at the block
_OVER_BLOCK = 0.07  # meters sideways from the block's center: fingers beyond it are far from the block
_LOW = 0.035  # meters above the block's center: closing fingers below it can hold the block
_ARRIVED = 0.045  # meters above the block's center: closed fingers below it touch the block
_MOVED = 0.02  # meters: a block that moved further before the fingers closed was pushed


@dataclass
class _Attempts:
    """The attempts on one target so far.

    Attributes:
        start: (3,) initial position of the target.
        closings: how often the gripper command changed from open to closed.
        was_high, was_far, was_moved: at the last closing, whether the fingers were above the block or far from it,
            and whether the block had been pushed.
        arrivals: how often the fingers came down to the target.
        arrived_shut: whether the fingers were narrower than the block at the last arrival.
        held, lifted: whether the target was ever held, or lifted.
    """

    start: FloatArray
    closings: int = 0
    was_high: bool = False
    was_far: bool = False
    was_moved: bool = False
    arrivals: int = 0
    arrived_shut: bool = False
    held: bool = False
    lifted: bool = False


class FailureMonitor:
    """Monitors one episode; ``reason`` states why it failed, if it ends now."""

    def __init__(self, tabletop: Tabletop) -> None:
        self._tabletop = tabletop
        self._wanted_open = True
        self._near = False
        self._target = 0
        self._attempts = _Attempts(tabletop.blocks[0].position.copy())

    def update(self, *, wants_open: bool) -> None:
        """Updates the monitor; called once after every step.

        Args:
            wants_open: whether the step's command opens the gripper.
        """
        tabletop, attempt = self._tabletop, self._attempts
        axes = Rotation.from_quat(tabletop.pose[3:7]).as_matrix()
        block = tabletop.blocks[self._target]
        offset = (block.position - tabletop.pose[:3]) @ axes
        sideways, below = float(np.linalg.norm(offset[:2])), float(offset[2])
        near = sideways < _AT_BLOCK and below < _ARRIVED
        if near and not self._near:
            attempt.arrivals += 1
            attempt.arrived_shut = tabletop.opening < BLOCK_SIZE / FINGER_SPAN
        if self._wanted_open and not wants_open:
            attempt.closings += 1
            attempt.was_high, attempt.was_far = below >= _LOW, sideways >= _OVER_BLOCK
            attempt.was_moved = bool(np.linalg.norm(block.position[:2] - attempt.start[:2]) > _MOVED)
        attempt.held = attempt.held or tabletop.held == self._target
        attempt.lifted = attempt.lifted or tabletop.lifted == self._target
        self._near, self._wanted_open = near, wants_open
        self._next_target()

    def _next_target(self) -> None:
        if self._target + 1 < self._tabletop.scene.n_targets and self._tabletop.is_placed(self._target):
            self._target += 1
            self._attempts = _Attempts(self._tabletop.blocks[self._target].position.copy())
            self._near = False

    @property
    def reason(self) -> str:
        """One of REASONS."""
        tabletop, attempt = self._tabletop, self._attempts
        if tabletop.scene.task == POSE_ONLY:
            return TIMEOUT
        if tabletop.placed_order and tabletop.placed_order[0] != 0:
            return WRONG_ORDER
        if tabletop.held == self._target:
            return NOT_RELEASED
        if attempt.held:
            return DROPPED
        if not attempt.closings:
            return NEVER_CLOSED if attempt.arrivals else TIMEOUT
        if attempt.was_moved:
            return PUSHED
        if attempt.arrivals and attempt.arrived_shut and attempt.was_far:
            return SHUT_ON_ARRIVAL
        return CLOSED_EARLY if attempt.was_high else CLOSED_NEXT_TO_BLOCK
