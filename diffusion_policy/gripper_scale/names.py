"""The scales of gripper numbers, each given by two numbers: the one that means closed and the one that means open.

    open1, closed1                 0..1; the name says which state 1 is
    signed_open1, signed_closed1   -1..1
    percent, percent_closed        0..100; 100 is open, or closed
    byte, byte_closed              0..255; 255 is open, or closed (Robotiq counts 255 as closed)
    meters:0.08                    0 closed, 0.08 m open; also millimeters:80, radians:0.8, degrees:45
    meters_closed:0.08             0 open, 0.08 m closed, and so on (a joint that closes as it turns)
    meters:0.03:0.08               closed at 0.03, open at 0.08, and so on
    range:CLOSED:OPEN              any other two numbers, such as range:850:0

One name covers command and measurement; ``COMMAND/MEASURED`` names both, for binary commands with a continuous
measurement: ``signed_closed1/meters:0.08``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.spec import GRIPPER_CLOSED, GRIPPER_OPEN, SpecError

FloatArray = NDArray[np.float64]

FLAG = "--gripper-scale"
CONFIG_KEY = "task.dataset.gripper_scale"
_ENDS: dict[str, tuple[float, float]] = {
    "open1": (0, 1),
    "closed1": (1, 0),
    "signed_open1": (-1, 1),
    "signed_closed1": (1, -1),
    "percent": (0, 100),
    "percent_closed": (100, 0),
    "byte": (0, 255),
    "byte_closed": (255, 0),
}
"""Closed and open end of the scales that have no parameter."""
_UNITS = ("meters", "millimeters", "radians", "degrees")
_SPELLINGS = {"metres": "meters", "percent_open": "percent", "byte_open": "byte"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class GripperScale:
    """One scale: the number that means closed, and the one that means open.

    Attributes:
        name: as in the module's docstring; used by flags and config keys.
        closed, open: the two ends, in the unit of the data.
    """

    name: str
    closed: float
    open: float

    @property
    def is_internal(self) -> bool:
        """Whether it is 0 closed to 1 open, so that no conversion is needed."""
        return (self.closed, self.open) == (GRIPPER_CLOSED, GRIPPER_OPEN)

    @property
    def label(self) -> dict[str, float]:
        """The entry of a dataset's ``action_semantics``."""
        return {"open": self.open, "closed": self.closed}

    def to_internal(self, values: ArrayLike) -> FloatArray:
        """Values of any shape in this scale -> 0 closed .. 1 open; values beyond the ends stay beyond them."""
        numbers = np.asarray(values, dtype=np.float64)
        return numbers if self.is_internal else (numbers - self.closed) / (self.open - self.closed)

    def from_internal(self, values: ArrayLike) -> FloatArray:
        """0 closed .. 1 open, of any shape -> this scale."""
        numbers = np.asarray(values, dtype=np.float64)
        return numbers if self.is_internal else self.closed + numbers * (self.open - self.closed)

    def __str__(self) -> str:
        return f"{self.name} ({self.closed:g} closed, {self.open:g} open)"


INTERNAL = GripperScale("open1", GRIPPER_CLOSED, GRIPPER_OPEN)


@dataclass(frozen=True)
class DeclaredScales:
    """The declared scales: of the command, and of the measurement if it was named separately."""

    command: GripperScale
    measured: GripperScale | None = None

    @property
    def name(self) -> str:
        """The form used by flags."""
        return self.command.name if self.measured is None else f"{self.command.name}/{self.measured.name}"


def parse_scale(name: str) -> GripperScale:
    """The scale with that name.

    Raises:
        SpecError: there is no such name; lists the known ones.
    """
    word, *numbers = name.strip().split(":")
    for spelling, usual in _SPELLINGS.items():
        word = word.replace(spelling, usual)
    if word in _ENDS and not numbers:
        return GripperScale(word, *map(float, _ENDS[word]))
    unit = word.removesuffix("_closed")
    ends = [float(number) for number in numbers if _NUMBER.fullmatch(number)]
    known = word == "range" or (unit in _UNITS and (word == unit or len(ends) == 1))
    if known and len(ends) == len(numbers) and len(ends) in ((2,) if word == "range" else (1, 2)):
        closed, opened = (0.0, ends[0]) if len(ends) == 1 else (ends[0], ends[1])
        if word != unit:
            closed, opened = opened, closed
        if closed != opened and np.isfinite([closed, opened]).all():
            return GripperScale(":".join([word, *numbers]), closed, opened)
    raise SpecError(
        f"gripper scale {name!r} is not known; expected one of {', '.join(_ENDS)}, meters:OPEN (such as meters:0.08), "
        "millimeters:OPEN, radians:OPEN, degrees:OPEN, meters_closed:CLOSED and so on, range:CLOSED:OPEN, "
        "or two of them as COMMAND/MEASURED"
    )


def parse_scales(name: str | None) -> DeclaredScales | None:
    """The scales of a flag or a config key, ``NAME`` or ``COMMAND/MEASURED``; None for None.

    Raises:
        SpecError: no such name.
    """
    if name is None:
        return None
    parts = [parse_scale(part) for part in str(name).split("/")]
    if len(parts) > 2:
        raise SpecError(f"gripper scale {name!r} has {len(parts)} names; expected one, or COMMAND/MEASURED")
    return DeclaredScales(*parts)


def add_gripper_scale(parser: argparse.ArgumentParser) -> None:
    """The flag ``--gripper-scale``, the same in every script; ``parse_scales`` reads it."""
    parser.add_argument(
        FLAG,
        metavar="NAME",
        help="scale of the gripper's numbers, or COMMAND/MEASURED: open1 (0..1, 1 = open; the default), closed1, "
        "signed_open1, signed_closed1, percent, byte, meters:0.08, radians:0.8, ... (docs/data.md)",
    )


def labeled_scales(semantics: Mapping[str, Any] | None, where: str) -> DeclaredScales | None:
    """The scales in the ``gripper`` entry of an ``action_semantics``; None if there is no such entry.

    Raises:
        SpecError: the entry is not two different numbers, in ``where``.
    """
    entry = None if semantics is None else semantics.get("gripper")
    if entry is None:
        return None
    measured = entry.get("measured") if isinstance(entry, Mapping) else None
    return DeclaredScales(
        _scale_of_label(entry, where), None if measured is None else _scale_of_label(measured, f"{where} (measured)")
    )


def _scale_of_label(entry: Any, where: str) -> GripperScale:
    ends = [entry.get(end) for end in ("closed", "open")] if isinstance(entry, Mapping) else []
    numbers = [float(end) for end in ends if isinstance(end, int | float) and not isinstance(end, bool)]
    if len(numbers) != 2 or not np.isfinite(numbers).all():
        raise SpecError(f'{where}: its gripper entry is {entry!r}; expected {{"open": number, "closed": number}}')
    closed, opened = numbers
    if closed == opened:
        raise SpecError(f"{where}: its gripper is open and closed at {opened:g}; expected two different numbers")
    known = (name for name, both in _ENDS.items() if both == (closed, opened))
    return GripperScale(next(known, f"range:{closed:g}:{opened:g}"), closed, opened)
