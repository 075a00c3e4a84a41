"""Gripper columns of a dataset, read as 0 closed .. 1 open, whatever their stored scale.

Reading a gripper by its name converts it to that scale, or raises an error that says which declaration is needed;
numbers of unknown scale are never returned. N steps, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.gripper_scale import (
    CONFIG_KEY,
    INTERNAL,
    DeclaredScales,
    ResolvedScale,
    ResolvedScales,
    find_scales,
    labeled_scales,
    parse_scales,
)
from diffusion_policy.spec import GRIPPER, SpecError
from diffusion_policy.spec.action_layout import is_gripper_name

ScaleSetting = str | Sequence[str | None] | None


class GripperArrays(Protocol):
    """What is needed from a dataset to determine the scales of its gripper."""

    where: str
    episode_ends: NDArray[np.int64]

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of its arrays."""

    @property
    def label(self) -> Mapping[str, Any] | None:
        """Its ``action_semantics``, as stored."""

    def vector_names(self, key: str) -> tuple[str, ...]:
        """Names of the dimensions of a vector array; empty if it is not a vector, or does not exist."""

    def stored_column(self, key: str, name: str) -> NDArray[Any] | None:
        """(N,) one dimension of a vector array as stored; None if there is no such dimension."""


def scale_of_each(setting: ScaleSetting, n_datasets: int) -> list[DeclaredScales | None]:
    """The declared scale of each dataset: one name for all, or one (or None) for each.

    Raises:
        SpecError: an unknown name, or the wrong number of names.
    """
    if setting is None or isinstance(setting, str):
        return [parse_scales(setting)] * n_datasets
    names = list(setting)
    if len(names) != n_datasets:
        raise SpecError(f"gripper_scale has {len(names)} names {names}; expected one, or one for each of {n_datasets}")
    return [parse_scales(name) for name in names]


def grippers_of(key: str, names: Sequence[str], action_key: str) -> tuple[str, ...]:
    """Names of the grippers among the dimensions of an array.

    A vector of one number is called "gripper" by default, so in arrays other than the action, a column with that bare
    name is a gripper only if the array's own name says so.
    """
    sure = key == action_key or GRIPPER in key.lower()
    return tuple(name for name in names if is_gripper_name(name) and (sure or name != GRIPPER))


def scales_of_dataset(
    arrays: GripperArrays, action_key: str, state_key: str, declared: DeclaredScales | None
) -> dict[str, ResolvedScales]:
    """The scales of commands and measurements, by name of the gripper ("gripper", "left.gripper").

    Raises:
        SpecError: the numbers contradict the declaration, or the label is invalid.
    """
    keys = (state_key, *(key for key in arrays.keys if key not in (action_key, state_key)))
    measured_in: dict[str, str] = {}
    for key in keys:
        for name in grippers_of(key, arrays.vector_names(key), action_key):
            if key == state_key or name != GRIPPER:
                measured_in.setdefault(name, key)
    names = dict.fromkeys([*grippers_of(action_key, arrays.vector_names(action_key), action_key), *measured_in])
    try:
        return {
            name: _scales_of(
                arrays,
                arrays.stored_column(action_key, name),
                arrays.stored_column(measured_in[name], name) if name in measured_in else None,
                declared,
            )
            for name in names
        }
    except SpecError as error:
        raise SpecError(f"{arrays.where}: {error}") from error


def _scales_of(
    arrays: GripperArrays,
    command: NDArray[Any] | None,
    measured: NDArray[Any] | None,
    declared: DeclaredScales | None,
) -> ResolvedScales:
    """The scales of one gripper, (N,) commanded and measured; one of the two may be missing."""
    starts = np.concatenate([[0], arrays.episode_ends[:-1]]).astype(np.int64)
    labeled = labeled_scales(arrays.label, "its action_semantics")
    if command is not None:
        return find_scales(command, measured, starts=starts, declared=declared, labeled=labeled)
    assert measured is not None
    alone = [scales and DeclaredScales(scales.measured or scales.command) for scales in (declared, labeled)]
    scale = find_scales(measured, starts=starts, declared=alone[0], labeled=alone[1]).command
    return ResolvedScales(scale, scale)


def converted(
    values: NDArray[Any], column: int, name: str, own: ResolvedScale, scales: ResolvedScales, where: str
) -> NDArray[Any]:
    """Rows (N, D) with one column, the gripper of that name, converted to 0 closed .. 1 open.

    Raises:
        SpecError: its scale is unknown; says what was found and which declaration settles it.
    """
    if own.scale is None:
        raise SpecError(
            f"{where}: its {name} is {own.span}: {own.reason}. A gripper is 0 (closed) to "
            f"1 (open) here; declare this one's scale: {scales.advice()}, when training "
            f"{scales.flag(f'{CONFIG_KEY}=')}, or the attribute action_semantics (docs/data.md)"
        )
    if own.scale.is_internal:
        return values
    rows: NDArray[Any] = values.astype(np.result_type(values.dtype, np.float32))
    rows[:, column] = own.scale.to_internal(values[:, column])
    return rows


def internal_label(label: Mapping[str, Any] | None, resolved: Sequence[ResolvedScales]) -> dict[str, Any] | None:
    """A dataset's label, adjusted to grippers that are read as 0 closed .. 1 open."""
    if label is None:
        return None
    if not resolved or any(scales.command.scale is None for scales in resolved) or GRIPPER not in label:
        return dict(label)
    return {**label, GRIPPER: INTERNAL.label}
