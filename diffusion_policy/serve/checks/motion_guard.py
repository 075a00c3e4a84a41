"""What stands between a predicted action chunk and the arm.

Every action is an absolute end-effector pose and a gripper command (x y z in metres, quaternion xyzw, 1 = open). The
guard looks at the whole chunk before any of it leaves: numbers must be finite and quaternions near unit norm; then each
step is held within a distance of the one before it, measured in metres and in radians on SO(3), within a workspace box,
and all of the chunk within a distance of the measured pose; the gripper command is debounced. A limit either clips (the
action is moved to the limit) or refuses (no action leaves). What was done is counted and reported: a guard that is
silent is a guard nobody can trust.

Looking is not doing: :meth:`MotionGuard.check` remembers nothing of a chunk until :meth:`MotionGuard.accept` says that
it leaves, so an answer that came too late changes no later one.

Defaults for the step limits are those of the predecessor's robot configuration: 0.04 m and 0.1 rad a step. The public
robot client commands all steps of a chunk at once and so drives the arm towards the last one: the limit over the whole
chunk is what bounds that jump. Its default is CHUNK_STEPS steps of full length, half of what eight could add up to; of
4,734 chunks in the logs of a real robot's 8-D policies 95 % stay within it in metres and 98 % in radians.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Optional

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.geometry import align_quaternion_signs, geodesic_distance
from diffusion_policy.spec import GRIPPER_CLOSED, GRIPPER_OPEN, POSE_GRIPPER

CHUNK_STEPS = 4

FloatArray = NDArray[np.float64]
Box = tuple[float, float, float]


class MotionRefusedError(WorkspaceError):
    """A chunk that must not reach the arm; ``limit`` names the reason for logs and counters."""

    def __init__(self, limit: str, message: str) -> None:
        super().__init__(message)
        self.limit = limit


@dataclass(frozen=True)
class GuardSettings:
    """The limits, all in force by default.

    Attributes:
        max_step_m: largest distance between consecutive positions, metres.
        max_step_rad: largest geodesic angle between consecutive orientations, radians.
        max_chunk_m: largest distance of any position of a chunk from the measured one, metres; None: CHUNK_STEPS times
            ``max_step_m``, filled in.
        max_chunk_rad: largest geodesic angle of any orientation of a chunk from the measured one, radians; None:
            CHUNK_STEPS times ``max_step_rad``, filled in.
        workspace_low: lowest x y z in metres, robot base frame; None: to be filled in by :meth:`within`.
        workspace_high: highest x y z in metres; None as above.
        on_step: "clip" or "refuse" a step that is too long.
        on_chunk: "clip" or "refuse" a pose too far from the measured one.
        on_workspace: "clip" or "refuse" a position outside the box.
        quaternion_tolerance: a norm further than this from 1 is refused; nearer ones are normalised.
        action_scale: fraction of each step that is executed, position and rotation alike; 1 changes nothing.
        smoothing: weight of the previous action in (0, 1) (lerp for positions, slerp for orientations); 0 is off.
        gripper_open: commands at or above it open.
        gripper_closed: commands at or below it close; between the two the last command holds, and before the first
            one the measured state.
        gripper_min_dwell: actions for which a gripper command holds before it may change again.
    """

    max_step_m: float = 0.04
    max_step_rad: float = 0.1
    max_chunk_m: Optional[float] = None  # noqa: UP045 - OmegaConf reads this form
    max_chunk_rad: Optional[float] = None  # noqa: UP045
    workspace_low: Optional[Box] = None  # noqa: UP045
    workspace_high: Optional[Box] = None  # noqa: UP045
    on_step: str = "clip"
    on_chunk: str = "clip"
    on_workspace: str = "refuse"
    quaternion_tolerance: float = 0.05
    action_scale: float = 1.0
    smoothing: float = 0.0
    gripper_open: float = 0.7
    gripper_closed: float = 0.3
    gripper_min_dwell: int = 1

    def __post_init__(self) -> None:
        """Refuse settings that could not limit anything, or would limit everything."""
        for name in ("m", "rad"):
            if getattr(self, f"max_chunk_{name}") is None:
                longest = round(CHUNK_STEPS * getattr(self, f"max_step_{name}"), 9)
                object.__setattr__(self, f"max_chunk_{name}", longest)  # frozen: this is its one chance
        for name, low, high in (
            ("max_step_m", 0, np.inf),
            ("max_step_rad", 0, np.inf),
            ("max_chunk_m", 0, np.inf),
            ("max_chunk_rad", 0, np.inf),
            ("quaternion_tolerance", 0, 1),
            ("action_scale", 0, 1 + 1e-12),
        ):
            if not low < getattr(self, name) < high:
                raise WorkspaceError(f"motion guard: {name} is {getattr(self, name)}; expected more than {low}, finite")
        if not 0 <= self.smoothing < 1:
            raise WorkspaceError(f"motion guard: smoothing is {self.smoothing}; expected 0 <= smoothing < 1")
        if not -np.inf < self.gripper_closed < self.gripper_open < np.inf:
            raise WorkspaceError(
                f"motion guard: gripper_closed {self.gripper_closed} is not below gripper_open {self.gripper_open}"
            )
        if self.gripper_min_dwell < 0:
            raise WorkspaceError(f"motion guard: gripper_min_dwell is {self.gripper_min_dwell}; expected 0 or more")
        edges = zip(self.workspace_low or (), self.workspace_high or (), strict=False)
        if not all(low < high for low, high in edges):
            raise WorkspaceError(f"motion guard: workspace_low {self.workspace_low} is not below {self.workspace_high}")
        for name in ("on_step", "on_chunk", "on_workspace"):
            if getattr(self, name) not in ("clip", "refuse"):
                raise WorkspaceError(f"motion guard: {name} is {getattr(self, name)!r}; expected 'clip' or 'refuse'")

    def within(self, low: Sequence[float] | FloatArray, high: Sequence[float] | FloatArray) -> GuardSettings:
        """The same limits with this box, x y z in metres, where none is set: a box that engages is a small one."""
        return replace(
            self,
            workspace_low=_corner(low) if self.workspace_low is None else self.workspace_low,
            workspace_high=_corner(high) if self.workspace_high is None else self.workspace_high,
        )

    def describe(self) -> str:
        """One sentence for the start-up message."""
        low, high = (", ".join(map(str, edge or ("not set",))) for edge in (self.workspace_low, self.workspace_high))
        return (
            f"at most {self.max_step_m} m and {self.max_step_rad} rad a step ({self.on_step}), "
            f"{self.max_chunk_m} m and {self.max_chunk_rad} rad from the measured pose in a chunk ({self.on_chunk}), "
            f"workspace ({low}) to ({high}) m ({self.on_workspace}), action scale {self.action_scale}, "
            f"smoothing {self.smoothing}, gripper opens from {self.gripper_open} and closes to {self.gripper_closed}, "
            f"holding each command {self.gripper_min_dwell} action(s)"
        )


@dataclass(frozen=True)
class GripperHold:
    """A gripper command, and for how many actions it has been held; None before the first clear command."""

    command: float | None = None
    held: int = 0


@dataclass
class GuardedChunk:
    """A chunk that may reach the arm, and how it differs from what the policy said.

    Attributes:
        actions: (T, 8) float64, quaternions of unit norm.
        interventions: how many actions each limit changed.
        holds: state of the gripper's debouncing after each action.
    """

    actions: FloatArray
    interventions: Counter[str] = field(default_factory=Counter)
    holds: list[GripperHold] = field(default_factory=list)


class MotionGuard:
    """Checks and limits one session's chunks; remembers the gripper command across them.

    Raises:
        WorkspaceError: the settings hold no workspace box.
    """

    def __init__(self, settings: GuardSettings) -> None:
        if settings.workspace_low is None or settings.workspace_high is None:
            raise WorkspaceError("motion guard: workspace_low and workspace_high are not set; see GuardSettings.within")
        self.settings = settings
        self._box = settings.workspace_low, settings.workspace_high
        self.totals: Counter[str] = Counter()
        self.reset()

    def reset(self) -> None:
        """Forget the last gripper command, as at the start of an episode."""
        self._holds: list[GripperHold] = []

    def check(
        self,
        chunk: Sequence[Sequence[float]] | FloatArray,
        current_pose: Sequence[float] | FloatArray,
        executed: int | None = None,
        gripper: float | None = None,
    ) -> GuardedChunk:
        """Limit a chunk (T, 8) that starts from the measured ``current_pose`` (7,).

        ``executed`` says how many actions of the last accepted chunk the arm has carried out; all of them if None.
        ``gripper`` is the measured one: it stays as it is until the first clear command.

        Raises:
            MotionRefusedError: nothing of this chunk may be executed.
        """
        actions, current = np.asarray(chunk, dtype=np.float64), np.asarray(current_pose, dtype=np.float64)
        measured = None if gripper is None else self._clear_state(gripper)
        try:
            return self._check(actions, current, self._hold(executed), measured)
        except MotionRefusedError as error:
            self.totals[f"refused: {error.limit}"] += 1
            raise

    def accept(self, guarded: GuardedChunk) -> None:
        """Remember a chunk that leaves for the arm, and count what was done to it."""
        self._holds = guarded.holds
        self.totals.update(guarded.interventions)

    def _hold(self, executed: int | None) -> GripperHold:
        if not self._holds or executed == 0:
            return GripperHold() if not self._holds else self._holds[0]
        last = len(self._holds) if executed is None else min(executed, len(self._holds))
        return self._holds[last - 1]

    def _check(self, chunk: FloatArray, current: FloatArray, hold: GripperHold, measured: float | None) -> GuardedChunk:
        if chunk.ndim != 2 or chunk.shape[1] != len(POSE_GRIPPER) or len(chunk) == 0:
            raise MotionRefusedError(
                "shape", f"action chunk has shape {chunk.shape}; expected (T, {len(POSE_GRIPPER)})"
            )
        if not np.isfinite(chunk).all():
            raise MotionRefusedError("not finite", "action chunk holds NaN or infinity")
        norms = np.linalg.norm(chunk[:, 3:7], axis=1)
        worst = int(np.abs(norms - 1).argmax())
        if abs(norms[worst] - 1) > self.settings.quaternion_tolerance:
            raise MotionRefusedError("quaternion norm", f"action {worst}: quaternion has norm {norms[worst]:.4f}")

        guarded = GuardedChunk(chunk.copy())
        quaternions = align_quaternion_signs(chunk[:, 3:7] / norms[:, None], reference=current[3:7])
        previous = current[:7].copy()
        for step, action in enumerate(guarded.actions):
            action[3:7] = quaternions[step]
            action[:7] = self._limit_step(previous, action[:7], guarded.interventions, step)
            self._limit_workspace(previous, action, guarded.interventions, step)
            self._limit_chunk(current, previous, action, guarded.interventions, step)
            hold = self._debounce(hold, action[7], measured, guarded.interventions)
            guarded.holds.append(hold)
            action[7] = action[7] if hold.command is None else hold.command
            previous = action[:7]
        return guarded

    def _limit_step(
        self, previous: FloatArray, wanted: FloatArray, interventions: Counter[str], step: int
    ) -> FloatArray:
        """The pose between ``previous`` and ``wanted``, both (7,), that scale, smoothing and step limits allow."""
        fraction = self.settings.action_scale * (1 - self.settings.smoothing)
        metres = fraction * float(np.linalg.norm(wanted[:3] - previous[:3]))
        radians = fraction * float(geodesic_distance(previous[3:7], wanted[3:7]))
        for limit, length, longest in (
            ("step distance", metres, self.settings.max_step_m),
            ("step angle", radians, self.settings.max_step_rad),
        ):
            if length > longest and self.settings.on_step == "refuse":
                raise MotionRefusedError(limit, f"action {step} moves {length:.4f}; at most {longest} is allowed")
            if length > longest:
                interventions[limit] += 1
        position = fraction * min(1.0, self.settings.max_step_m / max(metres, 1e-12))
        rotation = fraction * min(1.0, self.settings.max_step_rad / max(radians, 1e-12))
        return _part_of_the_way(previous, wanted, position, rotation)

    def _limit_chunk(
        self, measured: FloatArray, previous: FloatArray, action: FloatArray, interventions: Counter[str], step: int
    ) -> None:
        """Into the ball around the measured pose (7,).

        Moving towards its center never lengthens the step from ``previous``, which lies within it.
        """
        assert self.settings.max_chunk_m is not None
        assert self.settings.max_chunk_rad is not None
        metres = float(np.linalg.norm(action[:3] - measured[:3]))
        radians = float(geodesic_distance(measured[3:7], action[3:7]))
        shares = []
        for limit, length, longest in (
            ("chunk distance", metres, self.settings.max_chunk_m),
            ("chunk angle", radians, self.settings.max_chunk_rad),
        ):
            too_far = length > longest * (1 + 1e-9)
            if too_far and self.settings.on_chunk == "refuse":
                raise MotionRefusedError(
                    limit, f"action {step} is {length:.4f} from the measured pose; at most {longest} is allowed"
                )
            if too_far:
                interventions[limit] += 1
            shares.append(longest / length if too_far else 1.0)
        if min(shares) < 1:
            action[:7] = _part_of_the_way(measured, action[:7], *shares)
            action[3:7] = align_quaternion_signs(action[None, 3:7], reference=previous[3:7])[0]

    def _limit_workspace(
        self, previous: FloatArray, action: FloatArray, interventions: Counter[str], step: int
    ) -> None:
        """Into the box; from a place outside of it by steps that are no longer than any other."""
        inside = np.clip(action[:3], *self._box)
        if np.array_equal(inside, action[:3]):
            return
        if self.settings.on_workspace == "refuse":
            place = ", ".join(f"{value:.3f}" for value in action[:3])
            raise MotionRefusedError("workspace", f"action {step} at ({place}) m is outside the workspace")
        interventions["workspace"] += 1
        metres, longest = float(np.linalg.norm(inside - previous[:3])), self.settings.max_step_m
        if metres > longest * (1 + 1e-9) and self.settings.on_step == "refuse":
            raise MotionRefusedError(
                "step distance", f"action {step}: the workspace is {metres:.4f} m away; at most {longest} is allowed"
            )
        action[:3] = previous[:3] + min(1.0, longest / max(metres, 1e-12)) * (inside - previous[:3])

    def _debounce(
        self, hold: GripperHold, command: float, measured: float | None, interventions: Counter[str]
    ) -> GripperHold:
        """The gripper after dead band and dwell: exactly open or closed once either was commanded or measured."""
        wanted = self._clear_state(command)
        if wanted is None:
            wanted = measured if hold.command is None else hold.command
            if wanted is not None:
                interventions["gripper dead band"] += 1
        if hold.command is not None and wanted != hold.command and hold.held < self.settings.gripper_min_dwell:
            interventions["gripper dwell"] += 1
            wanted = hold.command
        return GripperHold(wanted, hold.held + 1 if wanted == hold.command else 1)

    def _clear_state(self, value: float) -> float | None:
        """Open, closed, or None within the dead band."""
        if value >= self.settings.gripper_open:
            return GRIPPER_OPEN
        return GRIPPER_CLOSED if value <= self.settings.gripper_closed else None


def _part_of_the_way(start: FloatArray, end: FloatArray, position: float, rotation: float) -> FloatArray:
    """The pose (7,) at these shares of the way from one pose (7,) to another: a line, and an arc on SO(3)."""
    reached = end[3:7]
    if rotation != 1.0:  # else nothing is shortened
        first = Rotation.from_quat(start[3:7])
        turn = (first.inv() * Rotation.from_quat(end[3:7])).as_rotvec()
        reached = (first * Rotation.from_rotvec(rotation * turn)).as_quat()
    aligned = align_quaternion_signs(reached[None], reference=start[3:7])[0]
    return np.concatenate([start[:3] + position * (end[:3] - start[:3]), aligned])


def _corner(values: Sequence[float] | FloatArray) -> Box:
    x, y, z = (round(float(value), 4) for value in values)
    return x, y, z
