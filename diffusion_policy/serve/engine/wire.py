"""Between a policy's numbers and those of messages and logs: the same parts, rotations as quaternions.

Where a policy has quaternions, nothing is converted. What it observes is found by name in what was measured.

Legend of shapes: n steps, D numbers of the policy's action, W of a message's, d of an observed key.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.policy.quaternion_side import QuaternionSide
from diffusion_policy.spec import ActionLayout, ObsField, SpecError, StepSpec

FloatArray = NDArray[np.float64]


class Wire:
    """The numbers of one policy's messages.

    Args:
        spec: of the policy.
        units: of action names whose unit their name does not tell, such as joints.

    Attributes:
        policy_layout: of the policy's actions.
        layout: of states and actions in messages and logs.
    """

    def __init__(self, spec: StepSpec, units: Mapping[str, str] | None = None) -> None:
        self._spec = spec
        self.policy_layout = ActionLayout.of(spec.action_names, units)
        self.layout = self.policy_layout.with_rotations_as("quaternion")

    @property
    def unknown_keys(self) -> list[str]:
        """Observed keys with numbers that no message carries."""
        return [field.key for field in self._spec.low_dim if self._source(field) is None]

    @cached_property
    def motion_names(self) -> frozenset[str]:
        """Names of all that moves an arm, in the policy's layout and in that of messages."""
        return frozenset(
            layout.names[column] for layout in (self.policy_layout, self.layout) for column in layout.motion_columns
        )

    def actions(self, values: FloatArray) -> FloatArray:
        """Actions (..., D) of the policy as messages carry them, (..., W); NaN where a rotation is none."""
        return values if self._is_same else self.policy_layout.converted(values, self.layout)

    def policy_actions(self, values: FloatArray) -> FloatArray:
        """The inverse of ``actions``."""
        return values if self._is_same else self.layout.converted(values, self.policy_layout)

    def observed(self, states: FloatArray) -> dict[str, FloatArray]:
        """Measured states (n, W) -> (n, d) of each low-dimensional key."""
        found = {}
        for field in self._spec.low_dim:
            source = self._source(field)
            assert source is not None, f"{field.key} was found to be unknown before"
            columns = states[:, [self.layout.names.index(name) for name in source.names]]
            is_same = source.names == field.names
            found[field.key] = columns if is_same else source.converted(columns, ActionLayout.of(field.names))
        return found

    def measured(self, observed: Mapping[str, NDArray[Any]]) -> FloatArray:
        """The inverse of ``observed``: (n, W) of the low-dimensional keys, (n, d) each.

        Raises:
            SpecError: no key holds one of the names.
        """
        known: dict[str, FloatArray] = {}
        for field in self._spec.low_dim:
            values = np.asarray(observed[field.key], dtype=np.float64)
            source = self._source(field)
            if source is not None and source.names != field.names:
                values = ActionLayout.of(field.names).converted(values, source)
            names = field.names if source is None else source.names
            known |= dict(zip(names, np.moveaxis(values, -1, 0), strict=True))
        missing = [name for name in self.layout.names if name not in known]
        if missing:
            raise SpecError(
                f"messages carry {self.layout.describe()}; the policy's observation ({sorted(known)}) lacks {missing}"
            )
        return np.stack([known[name] for name in self.layout.names], axis=-1)

    def range(self, low: FloatArray, high: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(W,) smallest and largest actions of (D,) of the policy; -1 and 1 of a quaternion that it does not have."""
        found = np.full((2, len(self.layout.names)), [[-1.0], [1.0]])
        for column, name in enumerate(self.layout.names):
            if name in self.policy_layout.names:
                index = self.policy_layout.names.index(name)
                found[:, column] = low[index], high[index]
        return found[0], found[1]

    def middle(self, low: FloatArray, high: FloatArray) -> FloatArray:
        """(W,) a state within a range of ``range``: poses and joints at its middle, grippers open."""
        middle = (low + high) / 2
        turns = self.layout.rotations(middle)
        norms = np.linalg.norm(turns, axis=-1, keepdims=True)
        turns = np.where(norms > 1e-6, turns / np.maximum(norms, 1e-6), [0.0, 0.0, 0.0, 1.0])
        return self.layout.replaced(middle, rotations=turns, grippers=np.ones(len(self.layout.gripper_columns)))

    @property
    def _is_same(self) -> bool:
        return self.layout.names == self.policy_layout.names

    def _source(self, field: ObsField) -> ActionLayout | None:
        """The numbers of messages that an observed key is made from; None if they do not carry them all."""
        known = frozenset(self.layout.names)
        if known.issuperset(field.names):
            return ActionLayout(field.names)
        try:
            source = ActionLayout.of(field.names).with_rotations_as("quaternion")
        except SpecError:  # a part of a rotation, or of a position
            return None
        return source if known.issuperset(source.names) else None


class QuaternionSides:
    """The side of each arm's quaternions, see ``QuaternionSide``.

    Args:
        wire: of the policy.
        spec: of the policy.
        normalizer: of the policy.
    """

    def __init__(self, wire: Wire, spec: StepSpec, normalizer: Any) -> None:
        self._sides = [
            (QuaternionSide.of(spec, normalizer, arm.name), arm.rotation) for arm in wire.layout.arms if arm.rotation
        ]

    def turned(self, states: FloatArray) -> FloatArray:
        """Measured states (To, W) with continuous quaternion signs, on the side on which they were recorded."""
        for side, columns in self._sides:
            states = side.turned(states, columns)
        return states
