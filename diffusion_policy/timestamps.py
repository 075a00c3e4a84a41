"""Time stamps are seconds everywhere in this project; any other unit is named before a rate is derived from it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.spec import SpecError

FLAG = "--timestamps"
_PER_SECOND = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
_RATE = "rate:"
# Stamps from here on count from 1970 in that unit: as seconds they would be beyond the year 5000.
_SINCE_1970 = (("nanoseconds", 1e17), ("microseconds", 1e14), ("milliseconds", 1e11))
# No arm is recorded with this many seconds between steps; the robot's period is a tenth of a second.
_SLOWEST_SECONDS, _USUAL_SECONDS = 4.0, 0.1
# Stamps rounded to more than this, and to more than this part of a step, do not determine a rate.
_FINE_SECONDS, _FINE_PART = 1e-3, 0.1


@dataclass(frozen=True)
class TimestampUnit:
    """The unit of recorded time stamps.

    Attributes:
        name: its name for the flag.
        per_second: how many make a second; None if the stamps are lost.
        hz: the rate at which steps are counted in place of lost stamps.
    """

    name: str
    per_second: float | None
    hz: float | None = None

    def seconds(self, stamps: NDArray[Any]) -> NDArray[np.float64]:
        """(N,) recorded stamps as seconds."""
        if self.hz is not None:
            return np.arange(len(stamps)) / self.hz
        assert self.per_second is not None
        return stamps.astype(np.float64) / self.per_second


@dataclass(frozen=True)
class TimestampFault:
    """Why time stamps are not seconds.

    Attributes:
        message: what was found and what was expected.
        remedy: what to do.
        flags: flags of a conversion that turn the stamps into seconds.
    """

    message: str
    remedy: str
    flags: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}"


def parse_timestamps(name: str | None) -> TimestampUnit | None:
    """The unit that the flag names; None without one.

    Raises:
        SpecError: there is no such unit, or the rate is invalid.
    """
    if name is None:
        return None
    if name in _PER_SECOND:
        return TimestampUnit(name, _PER_SECOND[name])
    if name.startswith(_RATE):
        try:
            hz = float(name.removeprefix(_RATE))
        except ValueError:
            hz = math.nan
        if math.isfinite(hz) and hz > 0:
            return TimestampUnit(name, None, hz)
    raise SpecError(f"timestamps {name!r}: expected {', '.join(_PER_SECOND)}, or {_RATE}HZ such as {_RATE}10")


def add_timestamps(parser: argparse.ArgumentParser) -> None:
    """The flag ``--timestamps``, the same in every script; ``parse_timestamps`` reads it."""
    parser.add_argument(
        FLAG,
        metavar="UNIT",
        help=f"the unit of recorded time stamps: {', '.join(_PER_SECOND)}, or {_RATE}HZ if they are lost and "
        "steps are to be counted (default: seconds)",
    )


def timestamp_fault(
    stamps: NDArray[Any], where: str, episode_ends: Sequence[int] | NDArray[np.int64] | None = None
) -> TimestampFault | None:
    """Why time stamps (N,) are not seconds; None if they may be.

    Args:
        stamps: finite, as recorded, of one or several episodes.
        where: their name.
        episode_ends: (E,) exclusive; None for one episode.
    """
    if len(stamps) == 0:
        return None
    ends = np.asarray([len(stamps)] if episode_ends is None else episode_ends)
    values = stamps.astype(np.float64)
    top = float(np.abs(values).max())
    inside = np.ones(max(len(values) - 1, 0), dtype=bool)
    inside[ends[:-1] - 1] = False
    steps = np.diff(values)[inside]
    step = float(np.median(steps)) if len(steps) else 0.0
    unit = next((unit for unit, least in _SINCE_1970 if top >= least), None)
    since = "" if unit is None else " since 1970"
    if unit is None and step > _SLOWEST_SECONDS:
        unit = min(list(_PER_SECOND)[1:], key=lambda one: abs(math.log(step / _PER_SECOND[one] / _USUAL_SECONDS)))
    if unit is not None:
        return TimestampFault(
            f"{where}: time stamps look like {unit}{since} (the first is {values[0]:.10g}, steps of {step:.3g}); "
            "expected seconds",
            f"say so with {FLAG} {unit}",
            (FLAG, unit),
        )
    return _rounded(stamps, top, float(steps.mean()) if len(steps) else 0.0, where)


def _rounded(stamps: NDArray[Any], top: float, mean: float, where: str) -> TimestampFault | None:
    single = stamps.astype(np.float32)
    if not np.array_equal(single.astype(np.float64), stamps.astype(np.float64)):
        return None
    spacing = float(np.spacing(np.float32(top)))
    if spacing < _FINE_SECONDS or spacing <= _FINE_PART * mean:
        return None
    return TimestampFault(
        f"{where}: time stamps are rounded to float32, which rounds times around {top:.0f} s to {spacing:.3g} s; "
        "expected float64",
        f"record them as np.float64, or, if the recorder's rate is known, count steps with {FLAG} {_RATE}10 (Hz)",
        (FLAG, f"{_RATE}10"),
    )
