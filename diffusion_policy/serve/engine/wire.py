"""Conversion between a policy's numbers and those of messages and logs, which have rotations as quaternions.

Where a policy has quaternions, nothing is converted. Its observations are selected by name from the measured states.

Legend of shapes: n steps, D numbers in the policy's action, W in a message's, d in an observed key.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.spec import POSE_GRIPPER, ActionLayout, ObsField, SpecError, StepSpec, with_units

FloatArray = NDArray[np.float64]


class Wire:
    """The numbers of one policy's messages.

    Args:
        spec: the policy's step.
        semantics: ``action_semantics`` of data or a checkpoint: units that neither names nor the spec give.

    Attributes:
        policy_layout: layout of the policy's actions.
        layout: layout of states and actions in messages and logs.
    """

    def __init__(self, spec: StepSpec, semantics: Mapping[str, Any] | None = None) -> None:
        self._spec = spec
        self.policy_layout = with_units(spec.layout, semantics)
        self.layout = self.policy_layout.with_rotations_as("quaternion")

    @property
    def unknown_keys(self) -> list[str]:
        """Observed keys with numbers that no message carries."""
        return [field.key for field in self._spec.low_dim if self._source(field) is None]

    @cached_property
    def motion_names(self) -> frozenset[str]:
        """Names of all numbers that move an arm, in the policy's layout and in that of messages."""
        return frozenset(
            layout.names[column] for layout in (self.policy_layout, self.layout) for column in layout.motion_columns
        )

    def actions(self, values: FloatArray, states: FloatArray | None = None) -> FloatArray:
        """Converts the policy's actions (n, D) to absolute ones of messages (n, W); non-finite rows stay so.

        Args:
            values: as predicted.
            states: (To, W) measured states; required by relative actions, which are relative to the newest.

        Raises:
            SpecError: a rotation is invalid.
        """
        converted = values if self._is_same else self.policy_layout.converted(values, self.layout)
        if not self._spec.relative:
            return converted
        assert states is not None
        return self.layout.integrate(states[-1], converted)

    def policy_actions(self, values: FloatArray, states: FloatArray | None = None) -> FloatArray:
        """The inverse of ``actions``."""
        if self._spec.relative:
            assert states is not None
            values = self.layout.difference(states[-1], values)
        return values if self._is_same else self.layout.converted(values, self.policy_layout)

    def observed(self, states: FloatArray) -> dict[str, FloatArray]:
        """Converts measured states (n, W) to (n, d) for each low-dimensional key."""
        result = {}
        for field in self._spec.low_dim:
            source = self._source(field)
            assert source is not None, f"{field.key} was already found to be unknown"
            columns = states[:, [self.layout.names.index(name) for name in source.names]]
            is_same = source.names == field.names
            result[field.key] = columns if is_same else source.converted(columns, ActionLayout.of(field.names))
        return result

    def measured(self, observed: Mapping[str, NDArray[Any]]) -> FloatArray:
        """The inverse of ``observed``: converts the low-dimensional keys, (n, d) each, to (n, W).

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
        return self._ordered(known, "the policy's observation")

    def recorded(self, states: FloatArray, layout: ActionLayout) -> FloatArray:
        """Converts recorded states (n, S), in a layout of their own, to those of messages (n, W).

        Raises:
            SpecError: the layout lacks one of the names.
        """
        source = layout.with_rotations_as("quaternion")
        values = states if source.names == layout.names else layout.converted(states, source)
        return self._ordered(dict(zip(source.names, values.T, strict=True)), "what was recorded")

    def _ordered(self, known: Mapping[str, FloatArray], where: str) -> FloatArray:
        """Returns (n, W) from named columns (n,)."""
        missing = [name for name in self.layout.names if name not in known]
        if missing:
            carried = "a pose and a gripper" if self.layout.names == POSE_GRIPPER else self.layout.describe()
            raise SpecError(f"the protocol carries {carried}; {where} lacks {missing}")
        return np.stack([known[name] for name in self.layout.names], axis=-1)

    def range(
        self, low: FloatArray, high: FloatArray, observed: Mapping[str, tuple[float, float]]
    ) -> tuple[FloatArray, FloatArray]:
        """Returns (W,) smallest and largest actions from the policy's (D,); -1 and 1 for a quaternion that it lacks.

        Args:
            low, high: range of the policy's actions.
            observed: smallest and largest value of each observed number by name, used for relative actions.
        """
        low_high = np.full((2, len(self.layout.names)), [[-1.0], [1.0]])
        if self._spec.relative:
            low, high = low.copy(), high.copy()
            for column in self.policy_layout.motion_columns:
                low[column], high[column] = observed.get(self.policy_layout.names[column], (np.nan, np.nan))
        for column, name in enumerate(self.layout.names):
            if name in self.policy_layout.names:
                index = self.policy_layout.names.index(name)
                low_high[:, column] = low[index], high[index]
        return low_high[0], low_high[1]

    def middle(self, low: FloatArray, high: FloatArray) -> FloatArray:
        """Returns a state (W,) within what ``range`` returns: poses and joints at its middle, grippers open."""
        middle = (low + high) / 2
        turns = self.layout.rotations(middle)
        norms = np.linalg.norm(turns, axis=-1, keepdims=True)
        turns = np.where(norms > 1e-6, turns / np.maximum(norms, 1e-6), [0.0, 0.0, 0.0, 1.0])
        return self.layout.replaced(middle, rotations=turns, grippers=np.ones(len(self.layout.gripper_columns)))

    @property
    def _is_same(self) -> bool:
        return self.layout.names == self.policy_layout.names

    def _source(self, field: ObsField) -> ActionLayout | None:
        """Returns the message numbers that an observed key is made from; None if messages do not carry them all."""
        known = frozenset(self.layout.names)
        if known.issuperset(field.names):
            return ActionLayout(field.names)
        try:
            source = ActionLayout.of(field.names).with_rotations_as("quaternion")
        except SpecError:  # only part of a rotation, or of a position
            return None
        return source if known.issuperset(source.names) else None
