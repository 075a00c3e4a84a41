"""The motion guard: limits of an action chunk between policy and arm.

Every action is absolute: for each arm a pose (meters, quaternion xyzw) or joints, and a gripper command (1 = open). The
guard checks the whole chunk before any of it is sent. Numbers must be finite and quaternions near unit norm. Each step
of each arm is limited to a distance from the previous one, in meters, in radians on SO(3) and in the joints' unit; to a
workspace box; and, over the whole chunk, to a distance from the measured state (``arm_guard``). Gripper commands are
debounced. A limit either clips (the action is moved to the limit) or refuses (no action is sent). Interventions are
counted and reported by limit, with the names of the joint and, where there are several, of the arm.

:meth:`MotionGuard.check` changes no state; only :meth:`MotionGuard.accept`, called for a chunk that is sent, does. So a
late answer does not affect later ones.

Legend of shapes: T actions in a chunk, D numbers in an action, G grippers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.serve.checks.arm_guard import ArmGuard, FloatArray, MotionRefusedError
from diffusion_policy.serve.checks.guard_settings import CHUNK_STEPS, Box, GuardSettings, MotionLimits
from diffusion_policy.spec import GRIPPER_CLOSED, GRIPPER_OPEN, POSE_GRIPPER, ActionLayout

__all__ = [
    "CHUNK_STEPS",
    "Box",
    "GripperHold",
    "GuardSettings",
    "GuardedChunk",
    "MotionGuard",
    "MotionLimits",
    "MotionRefusedError",
]


@dataclass(frozen=True)
class GripperHold:
    """A gripper command, and for how many actions it has been held; None before the first clear command."""

    command: float | None = None
    held: int = 0


@dataclass
class GuardedChunk:
    """A chunk that may be sent to the arm, and how it differs from the policy's.

    Attributes:
        actions: (T, D) float64, quaternions of unit norm.
        interventions: how many actions each limit changed.
        holds: state of each gripper's debouncing after each action: T times G.
    """

    actions: FloatArray
    interventions: Counter[str] = field(default_factory=Counter)
    holds: list[tuple[GripperHold, ...]] = field(default_factory=list)


class MotionGuard:
    """Checks and limits the chunks of one session, and keeps its gripper commands between them.

    Args:
        limits: the limits in force; bare settings are taken as limits for one pose and a gripper.

    Raises:
        WorkspaceError: the settings hold no workspace box.
    """

    def __init__(self, limits: GuardSettings | MotionLimits) -> None:
        self.limits = _of_pose_and_gripper(limits) if isinstance(limits, GuardSettings) else limits
        self.settings = self.limits.settings
        self._layout = self.limits.layout
        self._arms = [ArmGuard(arm, self.limits) for arm in self._layout.arms]
        self._gripper_names = [f"{arm} gripper" if arm else "gripper" for arm in self._layout.labels("gripper")]
        self.totals: Counter[str] = Counter()
        self.reset()

    def reset(self) -> None:
        """Forgets the last gripper commands, as at the start of an episode."""
        self._holds: list[tuple[GripperHold, ...]] = []

    def check(
        self,
        chunk: Sequence[Sequence[float]] | FloatArray,
        current: Sequence[float] | FloatArray,
        executed: int | None = None,
        gripper: float | Sequence[float] | FloatArray | None = None,
    ) -> GuardedChunk:
        """Limits a chunk that starts from the measured state.

        Args:
            chunk: (T, D), in the order of the layout.
            current: (D,) measured state, in the same order; grippers at its end may be omitted.
            executed: how many actions of the last accepted chunk the arm has carried out; None for all of them.
            gripper: (G,) measured grippers; each keeps its state until its first clear command.

        Raises:
            MotionRefusedError: nothing of this chunk may be executed.
        """
        actions, state = np.asarray(chunk, dtype=np.float64), np.asarray(current, dtype=np.float64)
        grippers = [None] * len(self._gripper_names) if gripper is None else np.atleast_1d(gripper).tolist()
        measured = [None if value is None else self._clear_state(value) for value in grippers]
        try:
            return self._check(actions, state, self._hold(executed), measured)
        except MotionRefusedError as error:
            self.totals[f"refused: {error.limit}"] += 1
            raise

    def accept(self, guarded: GuardedChunk) -> None:
        """Stores the gripper commands of a chunk that is sent and counts its interventions."""
        self._holds = guarded.holds
        self.totals.update(guarded.interventions)

    def _hold(self, executed: int | None) -> tuple[GripperHold, ...]:
        if not self._holds or executed == 0:
            return (GripperHold(),) * len(self._gripper_names) if not self._holds else self._holds[0]
        last = len(self._holds) if executed is None else min(executed, len(self._holds))
        return self._holds[last - 1]

    def _check(
        self, chunk: FloatArray, current: FloatArray, holds: tuple[GripperHold, ...], measured: Sequence[float | None]
    ) -> GuardedChunk:
        width = len(self._layout.names)
        if chunk.ndim != 2 or chunk.shape[1] != width or len(chunk) == 0:
            raise MotionRefusedError("shape", f"action chunk has shape {chunk.shape}; expected (T, {width})")
        if not np.isfinite(chunk).all():
            raise MotionRefusedError("not finite", "action chunk holds NaN or infinity")
        guarded = GuardedChunk(chunk.copy())
        for arm in self._arms:
            arm.make_unit(guarded.actions, current)
        previous = current
        for step, action in enumerate(guarded.actions):
            for arm in self._arms:
                arm.limit(current, previous, action, guarded.interventions, step)
            commands = self._layout.grippers(action)
            debounce = partial(self._debounce, interventions=guarded.interventions)
            holds = tuple(map(debounce, self._gripper_names, holds, commands.tolist(), measured))
            guarded.holds.append(holds)
            kept = [old if hold.command is None else hold.command for hold, old in zip(holds, commands, strict=True)]
            action[:] = self._layout.replaced(action, grippers=kept)
            previous = action
        return guarded

    def _debounce(
        self, name: str, hold: GripperHold, command: float, measured: float | None, *, interventions: Counter[str]
    ) -> GripperHold:
        """Returns the command after dead band and dwell; open or closed once either was commanded or measured."""
        wanted = self._clear_state(command)
        if wanted is None:
            wanted = measured if hold.command is None else hold.command
            if wanted is not None:
                interventions[f"{name} dead band"] += 1
        if hold.command is not None and wanted != hold.command and hold.held < self.settings.gripper_min_dwell:
            interventions[f"{name} dwell"] += 1
            wanted = hold.command
        return GripperHold(wanted, hold.held + 1 if wanted == hold.command else 1)

    def _clear_state(self, value: float) -> float | None:
        """Returns open, closed, or None within the dead band."""
        if value >= self.settings.gripper_open:
            return GRIPPER_OPEN
        return GRIPPER_CLOSED if value <= self.settings.gripper_closed else None


def _of_pose_and_gripper(settings: GuardSettings) -> MotionLimits:
    if settings.workspace_low is None or settings.workspace_high is None:
        raise WorkspaceError("motion guard: workspace_low and workspace_high are not set; set both")
    box = settings.workspace_low, settings.workspace_high
    return MotionLimits(ActionLayout.of(POSE_GRIPPER), settings, {"": box})
