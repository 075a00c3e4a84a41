"""The scale of recorded or logged gripper numbers: found where it is unmistakable, unknown where it is not.

What can be found without a word from anyone:

* 0..1 with 1 = open, the robot's own scale: values that reach 1, in episodes that begin open (an arm that has nothing
  in its hand yet). Values of 0..1 in episodes that begin at 0 may be of either polarity: not known.
* Commands of 0..1 or -1..1 above a measurement that opens upwards (0..1 as above, or a width in meters) and that moves
  with them, or against them.
* Everything else is recognized by its range, but not its polarity, or not its full opening: not known.

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
# Commands of 0..0.02 are a closed gripper in 0..1 and in meters alike; wider than 0.2 m no gripper opens.
_CLOSED_ANYWHERE, _WIDEST_METERS = 0.02, 0.2
_WIDEST_RADIANS, _WIDEST_PERCENT, _WIDEST_BYTE = 3.3, 110.0, 280.0
# A declared scale is contradicted by values this much of its span beyond its ends.
_BEYOND = 0.25
# Command and measurement that agree, or disagree, at least this well (correlation at the best of a few steps' delay).
_MOVES_WITH = 0.7
_DELAYS = 8


@dataclass(frozen=True)
class ResolvedScale:
    """The scale of one column of gripper numbers, and how it is known.

    Attributes:
        scale: None if it is not known.
        origin: "declared" (flag or key), "labeled" (attribute), "found" (unmistakable), or "unknown".
        low, high: the range of the numbers; None without any.
        reason: in words, what speaks for it, or why it is not known.
        candidates: what it may be if it is not known, the likeliest first.
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
    """Of the command and of the measurement (None without one)."""

    command: ResolvedScale
    measured: ResolvedScale | None = None

    @property
    def unknown(self) -> tuple[tuple[str, ResolvedScale], ...]:
        """The columns whose scale is not known, with their names."""
        both = {"commanded gripper": self.command, "measured gripper": self.measured}
        return tuple((name, scale) for name, scale in both.items() if scale is not None and scale.scale is None)

    def flag(self, prefix: str = f"{FLAG} ") -> str:
        """What settles it: ``--gripper-scale NAME`` with the likeliest names."""
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
        """What the range alone says."""
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
        """Whether all of it is 0..1, give or take."""
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
        measured: (N,) what was measured at the same steps.
        starts: first step of each episode.
        declared: what a flag or key says; it is believed, or refused if the numbers contradict it.
        labeled: what the data says of itself; believed where nothing is declared, unless the numbers contradict it.

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
        raise SpecError(f"gripper numbers have shape {numbers.shape}; expected one a step, (N,)")
    begun = numbers[starts[starts < len(numbers)]]
    return _Column(numbers[np.isfinite(numbers)], begun[np.isfinite(begun)])


def _other_column(stated: DeclaredScales, ours: _Column, theirs: _Column, origin: Origin) -> ResolvedScale:
    """The measurement's scale: named by itself, or the command's where it is alike, or as it shows itself."""
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
    """The range of numbers that cannot be of a scale: far beyond its ends, or a whole scale in a sliver of it."""
    if not column.values.size:
        return None
    span, low, high = abs(scale.open - scale.closed), min(scale.open, scale.closed), max(scale.open, scale.closed)
    sliver = span >= 20 and column.family in ("0..1", "-1..1") and column.high - column.low > 0.5
    if sliver or column.low < low - _BEYOND * span or column.high > high + _BEYOND * span:
        return f"{column.low:.3g} to {column.high:.3g}"
    return None


def _without_a_word(ours: _Column, theirs: _Column | None, moves: float) -> ResolvedScales:
    """``moves``: how well the command agrees with the measurement, -1..1; 0 where that says nothing."""
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
        reason = "0..1, as the measured gripper, which begins open"
        return ResolvedScales(ResolvedScale(other.scale, "found", *ours.range, reason), other)
    command = _of_itself(ours)
    if command.scale is not None and theirs.family == "near 0":  # a sensor that says nothing
        other = ResolvedScale(command.scale, "found", *theirs.range, "near 0 throughout, with a command of 0..1")
    return ResolvedScales(command, other)


def _of_itself(column: _Column) -> ResolvedScale:
    """What a column shows without the other."""
    if column.family == "0..1" and column.begins_high is not False:
        return ResolvedScale(INTERNAL, "found", *column.range, "0..1, and it begins open if 1 is open")
    reasons: dict[Family, str] = {
        "meters": "it looks like a width in meters, of which the range does not tell the full opening",
        "0..1": "0..1, but it begins at 0: 1 may be open or closed",
        "0..1 without 1": "within 0..1, but it never reaches 1: 0..1, or an angle, or a width",
        "near 0": "near 0 throughout: closed in 0..1, or the lower end of any scale",
        "nothing": "without a number",
        "radians": "it looks like an angle, of which the range tells neither the polarity nor the full opening",
        "counts": "no unit that is known here",
    }
    known = f"it looks like {column.family}, and the range does not tell which end is open"
    return _unknown(column, reasons.get(column.family, known))


def _unknown(column: _Column, reason: str) -> ResolvedScale:
    return ResolvedScale(None, "unknown", *column.range, reason, _candidates(column))


def _candidates(column: _Column) -> tuple[GripperScale, ...]:
    """What a column may be, the likeliest first: an episode begins open."""
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
