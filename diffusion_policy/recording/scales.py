"""The scales of a dataset's grippers: declared, given in the mapping, or found in the numbers of all its episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.gripper_scale import (
    DeclaredScales,
    GripperScale,
    ResolvedScales,
    find_scales,
    parse_scale,
    parse_scales,
)
from diffusion_policy.recording.errors import RecordingError
from diffusion_policy.recording.mapped import Column, MappedArrays

Gripper = tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]
"""(N,) commanded and (N,) measured numbers of a gripper, each None if absent."""


@dataclass(frozen=True)
class GripperScales:
    """The scales of each gripper, by its name in the dataset.

    Attributes:
        commanded, measured: scales of command and measurement.
    """

    commanded: Mapping[str, GripperScale]
    measured: Mapping[str, GripperScale]

    @property
    def label(self) -> dict[str, str]:
        """Returns the scales by name, in the form of ``--gripper-scale``."""
        result = {}
        for name in {**self.commanded, **self.measured}:
            both = [scales[name].name for scales in (self.commanded, self.measured) if name in scales]
            result[name] = "/".join(dict.fromkeys(both))
        return result


def declared_scales(arrays: MappedArrays, flag: str | None) -> dict[str, DeclaredScales | None]:
    """Returns the scale of each gripper from the flag, else from the mapping; None if neither gives one."""
    return {
        name: parse_scales(flag) or _of_mapping(command, measured)
        for name, command, measured in arrays.gripper_columns()
    }


def _of_mapping(command: Column | None, measured: Column | None) -> DeclaredScales | None:
    declared = [column.part.scale for column in (command, measured) if column is not None]
    scales = [parse_scale(scale) for scale in declared if scale is not None]
    if not scales or len(scales) < len(declared):
        return None
    return DeclaredScales(scales[0], None if measured is None else scales[-1])


def scales_of(
    gripper: Gripper, declared: DeclaredScales | None, starts: NDArray[np.int64] | None = None
) -> ResolvedScales:
    """Returns the scales of one gripper's numbers.

    Args:
        gripper: the gripper's numbers.
        declared: the declared scales.
        starts: (E,) first steps of episodes; None for a single episode.

    Raises:
        SpecError: the numbers contradict the declared scale.
    """
    begun = np.zeros(1, dtype=np.int64) if starts is None else starts
    command, measured = gripper
    if command is not None:
        return find_scales(command, measured, starts=begun, declared=declared)
    assert measured is not None
    alone = declared and DeclaredScales(declared.measured or declared.command)
    scale = find_scales(measured, starts=begun, declared=alone).command
    return ResolvedScales(scale, scale)


def gripper_numbers(rows: Mapping[str, NDArray[Any]], command: Column | None, measured: Column | None) -> Gripper:
    """Returns the recorded numbers of a gripper, from its columns; `rows` are (N, width) of each feature."""
    columns = [
        None if column is None else rows[column.part.feature][:, column.at[0]].astype(np.float64)
        for column in (command, measured)
    ]
    return columns[0], columns[1]


def settled_scales(
    arrays: MappedArrays,
    declared: Mapping[str, DeclaredScales | None],
    recorded: Callable[[], Mapping[str, Gripper]],
    lengths: Sequence[int],
    where: str,
) -> GripperScales:
    """Returns the scale of each gripper: declared, or found in the numbers of all episodes.

    Args:
        arrays: the mapping's arrays.
        declared: declared scales, by name.
        recorded: returns the numbers of each gripper in all episodes; called only if a scale is not declared.
        lengths: (E,) lengths of the episodes.
        where: location, for errors.

    Raises:
        RecordingError: one is unknown; the message names the flag that settles it.
    """
    numbers = recorded() if None in declared.values() else {}
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    commanded, measured = {}, {}
    for name, command, measurement in arrays.gripper_columns():
        known = declared[name]
        if known is None:
            scale = scales_of(numbers[name], None, starts)
            if scale.unknown:
                raise RecordingError(
                    f"{where}: {name} is {scale.command.span}: {scale.command.reason}; declare it: "
                    f"{scale.advice()}, or scale in the mapping"
                )
            scales = (scale.command.scale, None if scale.measured is None else scale.measured.scale)
        else:
            scales = (known.command, known.measured or known.command)
        if command is not None and scales[0] is not None:
            commanded[name] = scales[0]
        if measurement is not None:
            measured[name] = scales[1] or commanded[name]
    return GripperScales(commanded, measured)
