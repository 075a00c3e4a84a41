"""Motion limits of one arm: of a pose, of joints, or of both. ``motion_guard`` checks whole chunks."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.geometry import align_quaternion_signs, geodesic_distance
from diffusion_policy.serve.checks.guard_settings import MotionLimits
from diffusion_policy.spec.action_layout import Arm

FloatArray = NDArray[np.float64]


class MotionRefusedError(WorkspaceError):
    """A chunk that must not reach the arm; ``limit`` names the reason for logs and counters."""

    def __init__(self, limit: str, message: str) -> None:
        super().__init__(message)
        self.limit = limit


class Pose(NamedTuple):
    """Position (3,) in meters and rotation (4,) xyzw; zero and the identity where an arm lacks one."""

    position: FloatArray
    rotation: FloatArray


class ArmGuard:
    """The limits of one arm.

    Args:
        arm: the arm's columns.
        limits: limits of all arms.
    """

    def __init__(self, arm: Arm, limits: MotionLimits) -> None:
        self._settings = limits.settings
        self._box = limits.boxes.get(arm.name)
        self._prefix = f"{arm.name} " if arm.name else ""
        self._position, self._rotation, self._joints = list(arm.position), list(arm.rotation), list(arm.joints)
        self._joint_names = [limits.layout.names[column] for column in arm.joints]
        own = [limits.layout.joint_columns.index(column) for column in arm.joints]
        self._joint_steps = np.array([limits.joint_steps[index] for index in own])
        self._joint_chunks = np.array([limits.joint_chunks[index] for index in own])
        self._unit = limits.layout.joint_unit

    def make_unit(self, actions: FloatArray, current: FloatArray) -> None:
        """Normalizes the quaternions of a chunk (T, D) in place, with the signs of the measured quaternions (D,).

        Raises:
            MotionRefusedError: a norm is too far from 1.
        """
        if not self._rotation:
            return
        quaternions = actions[:, self._rotation]
        norms = np.linalg.norm(quaternions, axis=1)
        worst = int(np.abs(norms - 1).argmax())
        if abs(norms[worst] - 1) > self._settings.quaternion_tolerance:
            raise MotionRefusedError(
                f"{self._prefix}quaternion norm", f"action {worst}: quaternion has norm {norms[worst]:.4f}"
            )
        signed = align_quaternion_signs(quaternions / norms[:, None], reference=current[self._rotation])
        actions[:, self._rotation] = signed

    def limit(
        self, measured: FloatArray, previous: FloatArray, action: FloatArray, interventions: Counter[str], step: int
    ) -> None:
        """Moves an action (D,) of this arm into its limits, in place.

        Args:
            measured: (D,) at the start of the chunk.
            previous: (D,) the previous action, already limited.
            action: the action to limit, whose quaternions have unit norm.
            interventions: counts the changes by limit.
            step: index in the chunk, for messages.

        Raises:
            MotionRefusedError: a limit that refuses was exceeded.
        """
        if self._position or self._rotation:
            start, before = self._pose(measured), self._pose(previous)
            pose = self._limit_step(before, self._pose(action), interventions, step)
            pose = self._limit_workspace(before, pose, interventions, step)
            pose = self._limit_chunk(start, before, pose, interventions, step)
            if self._position:
                action[self._position] = pose.position
            if self._rotation:
                action[self._rotation] = pose.rotation
        if self._joints:
            action[self._joints] = self._limit_joints(
                measured[self._joints], previous[self._joints], action[self._joints], interventions, step
            )

    def _pose(self, values: FloatArray) -> Pose:
        return Pose(
            values[self._position] if self._position else np.zeros(3),
            values[self._rotation] if self._rotation else np.array([0.0, 0.0, 0.0, 1.0]),
        )

    @property
    def _fraction(self) -> float:
        """Fraction of a step that is executed."""
        return self._settings.action_scale * (1 - self._settings.smoothing)

    def _limit_step(self, previous: Pose, wanted: Pose, interventions: Counter[str], step: int) -> Pose:
        """Returns the pose on the way to the wanted one, as far as scale, smoothing and step limits allow."""
        fraction = self._fraction
        meters = fraction * float(np.linalg.norm(wanted.position - previous.position))
        radians = fraction * float(geodesic_distance(previous.rotation, wanted.rotation))
        for limit, length, longest in (
            ("step distance", meters, self._settings.max_step_m),
            ("step angle", radians, self._settings.max_step_rad),
        ):
            if length > longest:
                self._exceeded(
                    limit, self._settings.on_step, f"action {step} moves {length:.4f}; at most {longest} is allowed"
                )
                interventions[f"{self._prefix}{limit}"] += 1
        position = fraction * min(1.0, self._settings.max_step_m / max(meters, 1e-12))
        rotation = fraction * min(1.0, self._settings.max_step_rad / max(radians, 1e-12))
        return _part_of_the_way(previous, wanted, position, rotation)

    def _limit_chunk(self, measured: Pose, previous: Pose, pose: Pose, interventions: Counter[str], step: int) -> Pose:
        """Returns the pose moved into the ball around the measured one.

        Moving toward the center never lengthens the step from ``previous``, which is inside the ball.
        """
        assert self._settings.max_chunk_m is not None
        assert self._settings.max_chunk_rad is not None
        meters = float(np.linalg.norm(pose.position - measured.position))
        radians = float(geodesic_distance(measured.rotation, pose.rotation))
        shares = []
        for limit, length, longest in (
            ("chunk distance", meters, self._settings.max_chunk_m),
            ("chunk angle", radians, self._settings.max_chunk_rad),
        ):
            too_far = length > longest * (1 + 1e-9)
            if too_far:
                message = f"action {step} is {length:.4f} from the measured pose; at most {longest} is allowed"
                self._exceeded(limit, self._settings.on_chunk, message)
                interventions[f"{self._prefix}{limit}"] += 1
            shares.append(longest / length if too_far else 1.0)
        if min(shares) == 1:
            return pose
        position, rotation = _part_of_the_way(measured, pose, *shares)
        return Pose(position, align_quaternion_signs(rotation[None], reference=previous.rotation)[0])

    def _limit_workspace(self, previous: Pose, pose: Pose, interventions: Counter[str], step: int) -> Pose:
        """Returns the pose moved into the box; an arm outside it returns in steps within the step limit."""
        if self._box is None:
            return pose
        inside = np.clip(pose.position, *self._box)
        if np.array_equal(inside, pose.position):
            return pose
        position = ", ".join(f"{value:.3f}" for value in pose.position)
        message = f"action {step} at ({position}) m is outside the workspace"
        self._exceeded("workspace", self._settings.on_workspace, message)
        interventions[f"{self._prefix}workspace"] += 1
        meters, longest = float(np.linalg.norm(inside - previous.position)), self._settings.max_step_m
        if meters > longest * (1 + 1e-9):
            message = f"action {step}: the workspace is {meters:.4f} m away; at most {longest} is allowed"
            self._exceeded("step distance", self._settings.on_step, message)
        share = min(1.0, longest / max(meters, 1e-12))
        return Pose(previous.position + share * (inside - previous.position), pose.rotation)

    def _limit_joints(
        self,
        measured: FloatArray,
        previous: FloatArray,
        wanted: FloatArray,
        interventions: Counter[str],
        step: int,
    ) -> FloatArray:
        """Returns joints (J,): all steps scaled by the same factor, then each joint clipped around its measurement."""
        moves = self._fraction * (wanted - previous)
        lengths = np.abs(moves)
        for index in np.flatnonzero(lengths > self._joint_steps * (1 + 1e-9)):
            limit, longest = f"{self._joint_names[index]} step", self._joint_steps[index]
            message = f"action {step} moves {lengths[index]:.4f} {self._unit}; at most {longest:g} is allowed"
            self._exceeded(limit, self._settings.on_step, message, is_joint=True)
            interventions[limit] += 1
        share = float(np.min(self._joint_steps / np.maximum(lengths, 1e-12)))
        reached = previous + min(1.0, share) * moves
        away = np.abs(reached - measured)
        for index in np.flatnonzero(away > self._joint_chunks * (1 + 1e-9)):
            limit, longest = f"{self._joint_names[index]} chunk", self._joint_chunks[index]
            far = f"action {step} is {away[index]:.4f} {self._unit} from the measured joint"
            message = f"{far}; at most {longest:g} is allowed"
            self._exceeded(limit, self._settings.on_chunk, message, is_joint=True)
            interventions[limit] += 1
        return np.clip(reached, measured - self._joint_chunks, measured + self._joint_chunks)

    def _exceeded(self, limit: str, choice: str, message: str, *, is_joint: bool = False) -> None:
        if choice == "refuse":
            raise MotionRefusedError(limit if is_joint else f"{self._prefix}{limit}", message)


def _part_of_the_way(start: Pose, end: Pose, position: float, rotation: float) -> Pose:
    """Returns the pose at these fractions of the way between two: on a line, and on a geodesic of SO(3)."""
    reached = end.rotation
    if rotation != 1.0:  # otherwise nothing is shortened
        first = Rotation.from_quat(start.rotation)
        turn = (first.inv() * Rotation.from_quat(end.rotation)).as_rotvec()
        reached = (first * Rotation.from_rotvec(rotation * turn)).as_quat()
    aligned = align_quaternion_signs(reached[None], reference=start.rotation)[0]
    return Pose(start.position + position * (end.position - start.position), aligned)
