"""The scale of recorded or logged gripper numbers: found where it is unmistakable, unknown where it is not.

What can be found without any declaration:

* 0..1 with 1 = open, the robot's own scale: values that reach 1, in episodes that begin open (the arm is not holding
  anything yet). Values of 0..1 in episodes that begin at 0 may have either polarity: unknown.
* Commands of 0..1 or -1..1 with a measurement that increases when it opens (0..1 as above, or a width in meters) and
  that moves with them, or against them.
* For everything else the range is recognized, but not the polarity or not the full opening: unknown.

Pure functions on arrays. N steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.gripper_scale.names import FLAG, INTERNAL, DeclaredScales, FloatArray, GripperScale, parse_scale
from diffusion_policy.spec import SpecError

Family = Literal[
    "0..1", "0..1 without 1", "-1..1", "0..100", "0..255", "meters", "radians", "near 0", "counts", "nothing"
]
Origin = Literal["declared", "labeled", "found", "unknown"]

# A column is 0..1 or -1..1 if it stays within this much of it; sensors and policies overshoot a little.
SLACK = 0.1
# The level of an open gripper of 0..1; 0.8 is the full angle of a common gripper in radians.
_REACHES_ONE = 0.95
# Commands of 0..0.02 mean closed both in 0..1 and in meters; no gripper opens wider than 0.2 m.
_CLOSED_ANYWHERE, _WIDEST_METERS = 0.02, 0.2
_WIDEST_RADIANS, _WIDEST_PERCENT, _WIDEST_BYTE = 3.3, 110.0, 280.0
# Values beyond the ends of a declared scale by more than this share of its span contradict it.
_BEYOND = 0.25
# Least correlation, or anticorrelation, of command and measurement (at the best delay of a few steps).
_MOVES_WITH = 0.7
_DELAYS = 8


@dataclass(frozen=True)
class ResolvedScale:
    """The scale of one column of gripper numbers, and how it was determined.

    Attributes:
        scale: None if unknown.
        origin: "declared" (flag or key), "labeled" (attribute), "found" (unmistakable), or "unknown".
        low, high: the range of the numbers; None without any.
        reason: in words, the evidence for it, or why it is unknown.
        candidates: possible scales if it is unknown, the likeliest first.
    """

    scale: GripperScale | None
    origin: Origin
    low: float | None
    high: float | None
    reason: str
    candidates: tuple[GripperScale, ...] = field(default=())

    @property
    def is_internal(self) -> bool:
        """Whether it is known to be 0 closed to 1 open."""
        return self.scale is not None and self.scale.is_internal

    @property
    def span(self) -> str:
        """The range in words."""
        return "no number" if self.low is None else f"{self.low:.3g} to {self.high:.3g}"


@dataclass(frozen=True)
class ResolvedScales:
    """The scales of the command and of the measurement (None without one)."""

    command: ResolvedScale
    measured: ResolvedScale | None = None

    @property
    def unknown(self) -> tuple[tuple[str, ResolvedScale], ...]:
        """The columns whose scale is unknown, with their names."""
        both = {"commanded gripper": self.command, "measured gripper": self.measured}
        return tuple((name, scale) for name, scale in both.items() if scale is not None and scale.scale is None)

    def flag(self, prefix: str = f"{FLAG} ") -> str:
        """The flag that settles it: ``--gripper-scale NAME`` with the likeliest names."""
        if self.measured is None or (
            self.command.scale is None and self.measured.candidates == self.command.candidates
        ):
            return prefix + _likeliest(self.command)
        names = (_likeliest(self.command), _likeliest(self.measured))
        return prefix + (names[0] if names[0] == names[1] else "/".join(names))

    def advice(self, prefix: str = f"{FLAG} ") -> str:
        """The flag, and the other names that the first unknown column may have."""
        others = [scale.name for _, scale_of in self.unknown[:1] for scale in scale_of.candidates[1:]]
        return self.flag(prefix) + (f" (or {', or '.join(others)})" if others else "")


def _likeliest(scale: ResolvedScale) -> str:
    if scale.scale is not None:
        return scale.scale.name
    return scale.candidates[0].name if scale.candidates else "NAME"


@dataclass(frozen=True)
class _Column:
    """A column's shape: its range, the level it rests at, and where its episodes begin."""

    values: FloatArray
    starts: FloatArray

    @property
    def low(self) -> float:
        return float(self.values.min()) if self.values.size else float("nan")

    @property
    def high(self) -> float:
        return float(self.values.max()) if self.values.size else float("nan")

    @property
    def range(self) -> tuple[float | None, float | None]:
        """Lowest and highest number."""
        return (self.low, self.high) if self.values.size else (None, None)

    @property
    def family(self) -> Family:
        """The scale family that the range alone suggests."""
        low, high = self.low, self.high
        if not self.values.size:
            return "nothing"
        if low >= -SLACK and high <= 1 + SLACK:
            if high <= _CLOSED_ANYWHERE:
                return "near 0"
            if high <= _WIDEST_METERS:
                return "meters"
            level = float(np.median(self.values[self.values >= (low + high) / 2]))
            return "0..1" if level >= _REACHES_ONE else "0..1 without 1"
        if max(-low, high) <= 1 + SLACK:
            return "-1..1"
        if max(-low, high) <= _WIDEST_RADIANS:
            return "radians"
        if max(-10 * low, high) <= _WIDEST_PERCENT:
            return "0..100"
        return "0..255" if max(-10 * low, high) <= _WIDEST_BYTE else "counts"

    @property
    def begins_high(self) -> bool | None:
        """Whether most episodes begin in the upper half of the range; None if the values hardly differ."""
        if not self.starts.size or self.high - self.low < SLACK * max(1.0, abs(self.high)):
            return None
        return bool((self.starts > (self.low + self.high) / 2).mean() >= 0.5)

    def is_within(self, slack: float) -> bool:
        """Whether all of it is within 0..1, with some slack."""
        return bool(self.values.size) and self.low >= -slack and self.high <= 1 + slack


def find_scales(
    command: ArrayLike,
    measured: ArrayLike | None = None,
    *,
    starts: Sequence[int] | NDArray[np.int64] = (0,),
    declared: DeclaredScales | None = None,
    labeled: DeclaredScales | None = None,
) -> ResolvedScales:
    """The scales of a gripper's commands and measurements.

    Args:
        command: (N,) commands; numbers that are not finite are left out.
        measured: (N,) measurements at the same steps.
        starts: first step of each episode.
        declared: the scale given by a flag or key; it is accepted, or refused if the numbers contradict it.
        labeled: the data's own label; accepted if nothing is declared, unless the numbers contradict it.

    Raises:
        SpecError: the numbers contradict what was declared; both are named.
    """
    first = np.asarray(starts, dtype=np.int64)
    ours = _column(command, first)
    theirs = None if measured is None else _column(measured, first)
    stated = declared or labeled
    if stated is None:
        moves = 0.0 if measured is None else _moves_with(command, measured)
        return _without_a_word(ours, theirs, moves)
    origin: Origin = "declared" if declared is not None else "labeled"
    other = None
    if theirs is not None:
        other = _other_column(stated, ours, theirs, origin)
    return ResolvedScales(_believed(stated.command, ours, origin, "command"), other)


def _column(values: ArrayLike, starts: NDArray[np.int64]) -> _Column:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise SpecError(f"gripper numbers have shape {numbers.shape}; expected one per step, (N,)")
    begun = numbers[starts[starts < len(numbers)]]
    return _Column(numbers[np.isfinite(numbers)], begun[np.isfinite(begun)])


def _other_column(stated: DeclaredScales, ours: _Column, theirs: _Column, origin: Origin) -> ResolvedScale:
    """The measurement's scale: its own name, or the command's if they look alike, or what its numbers show."""
    if stated.measured is not None:
        return _believed(stated.measured, theirs, origin, "measurement")
    alike = theirs.family in (ours.family, "near 0") or stated.command.is_internal
    if alike and _contradiction(stated.command, theirs) is None:
        return _believed(stated.command, theirs, origin, "measurement")
    return _of_itself(theirs)


def _believed(scale: GripperScale, column: _Column, origin: Origin, what: str) -> ResolvedScale:
    against = _contradiction(scale, column)
    if against is None:
        return ResolvedScale(scale, origin, *column.range, f"{origin} as {scale}")
    if origin == "declared":
        names = " or ".join(candidate.name for candidate in _candidates(column))
        raise SpecError(f"gripper scale {scale}: the {what} is {against}; that looks like {names}")
    return ResolvedScale(None, "unknown", *column.range, f"labeled {scale}, but it is {against}", _candidates(column))


def _contradiction(scale: GripperScale, column: _Column) -> str | None:
    """The range of numbers that contradict a scale: far beyond its ends, or covering only a sliver of it."""
    if not column.values.size:
        return None
    span, low, high = abs(scale.open - scale.closed), min(scale.open, scale.closed), max(scale.open, scale.closed)
    sliver = span >= 20 and column.family in ("0..1", "-1..1") and column.high - column.low > 0.5
    if sliver or column.low < low - _BEYOND * span or column.high > high + _BEYOND * span:
        return f"{column.low:.3g} to {column.high:.3g}"
    return None


def _without_a_word(ours: _Column, theirs: _Column | None, moves: float) -> ResolvedScales:
    """``moves``: how well the command agrees with the measurement, -1..1; 0 if that is inconclusive."""
    if theirs is None:
        return ResolvedScales(_of_itself(ours))
    other = _of_itself(theirs)
    opens_upwards = other.scale is not None or theirs.family == "meters"
    if opens_upwards and abs(moves) >= _MOVES_WITH:
        turned = "with" if moves > 0 else "against"
        reason = f"{ours.family}, and it moves {turned} the measured gripper (correlation {moves:+.2f})"
        if ours.family in ("0..1", "-1..1"):
            scale = next(one for one in _candidates(ours) if (one.open > one.closed) == (moves > 0))
            return ResolvedScales(ResolvedScale(scale, "found", *ours.range, reason), other)
        if moves < 0:
            return ResolvedScales(_unknown(ours, reason), other)
    if other.scale is not None and ours.is_within(_BEYOND) and ours.family != "meters":
        reason = "0..1, like the measured gripper, which begins open"
        return ResolvedScales(ResolvedScale(other.scale, "found", *ours.range, reason), other)
    command = _of_itself(ours)
    if command.scale is not None and theirs.family == "near 0":  # an uninformative sensor
        other = ResolvedScale(command.scale, "found", *theirs.range, "near 0 throughout, with a command of 0..1")
    return ResolvedScales(command, other)


def _of_itself(column: _Column) -> ResolvedScale:
    """What a column shows without the other one."""
    if column.family == "0..1" and column.begins_high is not False:
        return ResolvedScale(INTERNAL, "found", *column.range, "0..1, and it begins open if 1 is open")
    reasons: dict[Family, str] = {
        "meters": "it looks like a width in meters, whose range does not show the full opening",
        "0..1": "0..1, but it begins at 0: 1 may be open or closed",
        "0..1 without 1": "within 0..1, but it never reaches 1: 0..1, or an angle, or a width",
        "near 0": "near 0 throughout: closed in 0..1, or the lower end of any scale",
        "nothing": "without a number",
        "radians": "it looks like an angle, whose range shows neither the polarity nor the full opening",
        "counts": "no known unit",
    }
    known = f"it looks like {column.family}, and the range does not show which end is open"
    return _unknown(column, reasons.get(column.family, known))


def _unknown(column: _Column, reason: str) -> ResolvedScale:
    return ResolvedScale(None, "unknown", *column.range, reason, _candidates(column))


def _candidates(column: _Column) -> tuple[GripperScale, ...]:
    """Possible scales of a column, the likeliest first, assuming that episodes begin open."""
    if column.family == "nothing":
        return ()
    bottom = min(column.low, 0.0)
    top = column.high if column.high > bottom else 0.0
    low, high = f"{bottom:.4g}", f"{top:.2g}"
    span = (f"range:{low}:{top:.4g}", f"range:{top:.4g}:{low}")
    angle = (f"radians:{high}", f"radians_closed:{high}")
    if column.family == "radians" and column.low < -SLACK:
        span = (f"range:{low}:{top:.4g}", f"range:{top:.4g}:{low}")
    angle = (f"radians:{low}:{high}", f"radians:{high}:{low}")
    names: dict[Family, tuple[str, str]] = {
        "0..1": ("open1", "closed1"),
        "near 0": ("open1", "closed1"),
        "-1..1": ("signed_open1", "signed_closed1"),
        "0..100": ("percent", "percent_closed") if top > _REACHES_ONE * 100 else span,
        "0..255": ("byte", "byte_closed") if top > _REACHES_ONE * 255 else span,
        "meters": (f"meters:{high}", f"meters_closed:{high}"),
        "radians": angle,
        "0..1 without 1": angle,
        "counts": span,
    }
    opened, closed = names[column.family]
    turned = column.begins_high is False and column.family != "meters"
    others: dict[Family, str] = {"0..1 without 1": "open1", "0..100": "percent", "0..255": "byte"}
    more = tuple(name for family, name in others.items() if family == column.family and name not in (opened, closed))
    return tuple(parse_scale(name) for name in ((closed, opened) if turned else (opened, closed)) + more)


def _moves_with(command: ArrayLike, measured: ArrayLike) -> float:
    """Correlation of command and measurement, at the delay (of the measurement) at which it is largest."""
    ours, theirs = (np.asarray(values, dtype=np.float64) for values in (command, measured))
    best = 0.0
    for delay in range(min(_DELAYS, len(ours))):
        a, b = ours[: len(ours) - delay], theirs[delay:]
        known = np.isfinite(a) & np.isfinite(b)
        if known.sum() > 2 and a[known].std() > 0 and b[known].std() > 0:
            correlation = float(np.corrcoef(a[known], b[known])[0, 1])
            best = correlation if abs(correlation) > abs(best) else best
    return best
