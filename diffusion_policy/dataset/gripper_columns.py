"""Gripper columns of a dataset, read as 0 closed .. 1 open whatever scale they are stored in.

Whoever reads a gripper by its name gets it in that scale, or an error that says which declaration is needed; nobody
gets numbers of an unknown scale. N steps, D dimensions.
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
    FoundScale,
    FoundScales,
    find_scales,
    labeled_scales,
    parse_scales,
)
from diffusion_policy.spec import GRIPPER, SpecError

ScaleSetting = str | Sequence[str | None] | None


class GripperArrays(Protocol):
    """What is needed of a dataset to tell the scales of its gripper."""

    where: str
    episode_ends: NDArray[np.int64]

    @property
    def label(self) -> Mapping[str, Any] | None:
        """Its ``action_semantics``, as stored."""

    def stored_column(self, key: str, name: str) -> NDArray[Any] | None:
        """(N,) one dimension of a vector array as stored; None where there is none of that name."""


def scale_of_each(setting: ScaleSetting, n_datasets: int) -> list[DeclaredScales | None]:
    """The declared scale of each dataset: one name for all, or one (or None) for each.

    Raises:
        SpecError: an unknown name, or another number of names.
    """
    if setting is None or isinstance(setting, str):
        return [parse_scales(setting)] * n_datasets
    names = list(setting)
    if len(names) != n_datasets:
        raise SpecError(f"gripper_scale has {len(names)} names {names}; expected one, or one for each of {n_datasets}")
    return [parse_scales(name) for name in names]


def is_gripper(key: str, action_key: str) -> bool:
    """Whether a dimension called "gripper" of this array is one; a vector of one number is called so by default."""
    return key == action_key or GRIPPER in key.lower()


def scales_of_dataset(
    arrays: GripperArrays, action_key: str, state_key: str, declared: DeclaredScales | None
) -> FoundScales | None:
    """The scales of commands and measurements; None of a dataset without a gripper.

    Raises:
        SpecError: the numbers contradict what is declared, or the label is none.
    """
    command, measured = arrays.stored_column(action_key, GRIPPER), arrays.stored_column(state_key, GRIPPER)
    starts = np.concatenate([[0], arrays.episode_ends[:-1]]).astype(np.int64)
    try:
        labeled = labeled_scales(arrays.label, "its action_semantics")
        if command is not None:
            return find_scales(command, measured, starts=starts, declared=declared, labeled=labeled)
        if measured is None:
            return None
        alone = [said and DeclaredScales(said.measured or said.command) for said in (declared, labeled)]
        found = find_scales(measured, starts=starts, declared=alone[0], labeled=alone[1]).command
    except SpecError as error:
        raise SpecError(f"{arrays.where}: {error}") from error
    return FoundScales(found, found)


def converted(
    values: NDArray[Any], names: Sequence[str], found: FoundScale, scales: FoundScales, where: str
) -> NDArray[Any]:
    """Rows (N, D) with the column called "gripper" as 0 closed .. 1 open.

    Raises:
        SpecError: its scale is not known; says what was found and which declaration settles it.
    """
    if found.scale is None:
        raise SpecError(
            f"{where}: its gripper is {found.span}: {found.reason}. A gripper is 0 (closed) to "
            f"1 (open) here; say what this one is: {scales.advice()}, when training "
            f"{scales.flag(f'{CONFIG_KEY}=')}, or the attribute action_semantics (docs/data.md)"
        )
    if found.scale.is_internal:
        return values
    index = list(names).index(GRIPPER)
    rows: NDArray[Any] = values.astype(np.result_type(values.dtype, np.float32))
    rows[:, index] = found.scale.to_internal(values[:, index])
    return rows


def internal_label(label: Mapping[str, Any] | None, scales: FoundScales | None) -> dict[str, Any] | None:
    """What a dataset says of its numbers, as they are once its gripper is read as 0 closed .. 1 open."""
    if label is None:
        return None
    if scales is None or scales.command.scale is None or GRIPPER not in label:
        return dict(label)
    return {**label, GRIPPER: INTERNAL.label}
