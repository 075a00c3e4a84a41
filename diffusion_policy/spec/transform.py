"""Converts between a policy's numbers and those of robots, recordings and logs: the only boundary between the two.

A policy may be trained with rotations in a representation other than the recorded one (``StepSpec.rotation``), and with
actions relative to the newest observed pose (``StepSpec.relative``). All code that gives it observations, or takes its
actions, goes through here; for a policy with neither, everything is returned unchanged.

Legend of shapes: To observation steps, T steps of a chunk, D numbers in the robot's action, Da in the policy's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.errors import SpecError
from diffusion_policy.geometry import align_quaternion_signs
from diffusion_policy.spec.action_layout import ActionLayout
from diffusion_policy.spec.rotations import are_rotations
from diffusion_policy.spec.steps import StepSpec

FloatArray = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class StepTransform:
    """Converts observations and actions between the robot's numbers and the policy's.

    Attributes:
        policy: what the policy reads and predicts.
    """

    policy: StepSpec

    def __post_init__(self) -> None:
        if self.policy.relative:
            _ = self._state_columns

    @cached_property
    def robot(self) -> StepSpec:
        """What robots, recordings and logs hold."""
        return self.policy.robot

    @property
    def is_identity(self) -> bool:
        """Whether the two are the same numbers."""
        return self.robot == self.policy

    def observed(self, obs: Arrays) -> dict[str, NDArray[Any]]:
        """The robot's observations (..., D of the key) -> the policy's; images and other keys are unchanged.

        Raises:
            SpecError: a pose has an invalid rotation.
        """
        result = dict(obs)
        for ours, theirs in zip(self.policy.low_dim, self.robot.low_dim, strict=True):
            if ours != theirs and ours.key in obs:
                values = ActionLayout.of(theirs.names).converted(obs[ours.key], ActionLayout.of(ours.names))
                result[ours.key] = values.astype(obs[ours.key].dtype)
        return result

    def trained(self, actions: ArrayLike, state: ArrayLike | None) -> FloatArray:
        """Recorded actions (..., T, D) -> the actions (..., T, Da) that the policy learns.

        Args:
            actions: absolute.
            state: (..., D) newest state, see :meth:`state`; only used for relative actions.

        Raises:
            SpecError: one has an invalid rotation.
        """
        values = np.asarray(actions, dtype=np.float64)
        if self.policy.relative:
            assert state is not None
            values = self.robot.layout.difference(np.asarray(state)[..., None, :], values)
        if self.robot.action_names == self.policy.action_names:
            return values
        return self.robot.layout.converted(values, self.policy.layout)

    def commanded(self, actions: ArrayLike, obs: Arrays) -> FloatArray:
        """The policy's actions (..., T, Da) -> the actions (..., T, D) that a robot gets: absolute, quaternions xyzw.

        Signs of quaternions continue from the newest observed one. A step that is not finite, or has an invalid
        rotation, becomes NaN.

        Args:
            actions: as predicted.
            obs: of the robot, (..., To, D of the key).
        """
        values = np.asarray(actions, dtype=np.float64)
        if self.is_identity:
            return values
        usable = np.isfinite(values).all(axis=-1) & are_rotations(self.policy.layout.rotations(values)).all(axis=-1)
        robot_actions = np.full((*values.shape[:-1], len(self.robot.action_names)), np.nan)
        sound = values[usable]
        if self.robot.action_names != self.policy.action_names:
            sound = self.policy.layout.converted(sound, self.robot.layout)
        if self.policy.relative:
            start = np.broadcast_to(self.state(obs)[..., None, :], robot_actions.shape)
            sound = self.robot.layout.integrate(start[usable], sound)
        robot_actions[usable] = sound
        return self._with_continuous_signs(robot_actions, obs)

    def state(self, obs: Arrays) -> FloatArray:
        """(..., D) newest observed state in the robot's action layout; NaN for numbers that are not observed.

        Args:
            obs: of the robot, (..., To, D of the key).
        """
        leading = next(iter(obs[key].shape[:-2] for key in self._observed_by.values()), ())
        result = np.full((*leading, len(self.robot.action_names)), np.nan)
        for column, name in enumerate(self.robot.action_names):
            key = self._observed_by.get(name)
            if key is not None:
                result[..., column] = obs[key][..., -1, self.robot.field(key).names.index(name)]
        return result

    @cached_property
    def _observed_by(self) -> dict[str, str]:
        """For each name in the action, the observation key that has a number of that name."""
        keys: dict[str, str] = {}
        for field in self.robot.low_dim:
            for name in field.names:
                keys.setdefault(name, field.key)
        return {name: key for name, key in keys.items() if name in self.robot.action_names}

    @cached_property
    def _state_columns(self) -> tuple[int, ...]:
        """Columns of the action that are relative; each must also be observed.

        Raises:
            SpecError: one is not observed, or nothing in the action moves an arm.
        """
        columns = self.robot.layout.motion_columns
        named = [self.robot.action_names[column] for column in columns]
        unseen = [name for name in named if name not in self._observed_by]
        if unseen or not columns:
            keys = {field.key: list(field.names) for field in self.robot.low_dim}
            lacks = f"{' '.join(unseen)} of the action" if unseen else "a pose or joints in the action"
            raise SpecError(
                f"relative actions are relative to the observed state, but the observations {keys} lack {lacks}; "
                "observe it (shape_meta.obs), or set task.dataset.relative_actions=false"
            )
        return columns

    def _with_continuous_signs(self, actions: FloatArray, obs: Arrays) -> FloatArray:
        """Actions (..., T, D) whose quaternions do not flip sign, starting from the newest observed one."""
        layout, state = self.robot.layout, self.state(obs)
        for arm in layout.arms:
            if arm.representation != "quaternion":
                continue
            columns = list(arm.rotation)
            chunks = actions[..., columns].reshape(-1, actions.shape[-2], 4)
            starts = np.broadcast_to(state[..., columns], (*actions.shape[:-2], 4)).reshape(-1, 4)
            turned = [
                align_quaternion_signs(chunk, start if np.isfinite(start).all() else None)
                for chunk, start in zip(chunks, starts, strict=True)
            ]
            actions[..., columns] = np.reshape(turned, (*actions.shape[:-1], 4))
        return actions
