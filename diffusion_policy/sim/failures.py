"""Why an episode on the tabletop failed: what the fingers did beside the block, in words that name the next step.

The last try counts: a policy may close beside the block, correct itself and drop the block later.
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
CLOSED_BESIDE = "closed beside"
SHUT_ON_ARRIVAL = "shut on arrival"
PUSHED = "pushed"
DROPPED = "dropped"
NOT_RELEASED = "not released"
WRONG_ORDER = "wrong order"
TIMEOUT = "timeout"
REASONS = (
    NEVER_CLOSED,
    CLOSED_EARLY,
    CLOSED_BESIDE,
    SHUT_ON_ARRIVAL,
    PUSHED,
    DROPPED,
    NOT_RELEASED,
    WRONG_ORDER,
    TIMEOUT,
)

_AT_BLOCK = 0.045  # metres sideways from the block's centre within which the fingers have arrived
_OVER_BLOCK = 0.07  # metres sideways within which they are about to
_LOW = 0.035  # metres above the block's centre below which closing fingers can hold it
_ARRIVED = 0.045  # metres above the block's centre at which shut fingers stand on it
_MOVED = 0.02  # metres by which a block was pushed away before fingers closed on it


@dataclass
class _Try:
    """What happened to one target so far.

    Attributes:
        start: (3,) where it stood.
        closings: how often the command went from open to closed.
        was_high, was_far, was_moved: of the last closing: fingers above the block, far beside it, block pushed before.
        arrivals: how often the fingers came down to it.
        arrived_shut: of the last arrival: narrower than the block.
        held, lifted: ever.
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


class FailureWitness:
    """Follows one episode; ``reason`` says why it failed, if it ends here."""

    def __init__(self, tabletop: Tabletop) -> None:
        self._tabletop = tabletop
        self._wanted_open = True
        self._near = False
        self._target = 0
        self._try = _Try(tabletop.blocks[0].position.copy())

    def update(self, *, wants_open: bool) -> None:
        """Look once after every step.

        Args:
            wants_open: what the step's command said.
        """
        tabletop, attempt = self._tabletop, self._try
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
            self._try = _Try(self._tabletop.blocks[self._target].position.copy())
            self._near = False

    @property
    def reason(self) -> str:
        """One of REASONS."""
        tabletop, attempt = self._tabletop, self._try
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
        return CLOSED_EARLY if attempt.was_high else CLOSED_BESIDE
