"""The age of observations, without synchronized clocks.

The client's timestamp and the server's receive time differ by the offset of the clocks plus the delay. The smallest
difference so far is the offset plus the smallest delay; the excess over it is how much longer a message took than the
fastest one. This is the only comparison of the two clocks.

The offset drifts: a crystal is off by up to 100 ppm, and NTP slews a clock by up to 500 ppm (``MAX_DRIFT``). So the
smallest difference may rise at that rate between accepted observations. A delay that grows that slowly (0.5 s in a
quarter of an hour) cannot be distinguished from drift; refused observations do not count.

A clock that was set back (a second episode without a reset, a restart, NTP) is accepted after a pause, or once
consecutive observations agree on the new time. Until then observations are stale.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.serve.transport.protocol import Observation, ProtocolError

MAX_DRIFT = 600e-6
# Seconds without an observation after which the next one starts another episode.
EPISODE_GAP_S = 10.0
# Seconds without an observation after which an earlier timestamp means that the clock was set back.
PAUSE_S = 2.0
# Number of consecutive observations that must agree on an earlier time; a single old frame does not suffice.
AGREEING = 3
UNITS = {"milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
# Time since 1970 in seconds reaches this in the year 5138; in a finer unit it is already beyond it. The last limit is
# the year 5138 in nanoseconds.
_UNIX_LIMIT = 1e11


class _Candidate(NamedTuple):
    """An earlier clock that observations agree on: last timestamp, its offset, and number of observations."""

    stamp: float
    difference: float
    agreeing: int


def _check_unit(timestamps: NDArray[np.float64], period_s: float, silence: float | None) -> None:
    """Refuses times (To,) that are not seconds in float64; the error names their unit.

    A finer unit is recognized by the size of a time since 1970, or by the spacing of frames that are ``period_s``
    apart; after a pause of that length, a large spacing may be genuine.
    """
    newest, spacing = abs(float(timestamps[-1])), float(np.diff(timestamps).max(initial=0.0))
    apart = (u for u, n in UNITS.items() if 0.3 <= spacing / (period_s * n) <= 3)
    since_1970 = (u for u, n in UNITS.items() if _UNIX_LIMIT * n / 1e3 < newest <= _UNIX_LIMIT * n)
    unit = next(apart, None) if silence is None or silence < spacing / 2 else None
    unit = unit or next(since_1970, None)
    if unit is not None:
        shown = ", ".join(f"{time:.12g}" for time in timestamps)
        raise ProtocolError("bad_state", f"timestamps ({shown}) are in {unit}; expected seconds")
    with np.errstate(over="ignore"):
        narrow = timestamps.astype(np.float32)
        resolution = float(np.spacing(narrow[-1]))
    if resolution > period_s / 2 and np.array_equal(narrow.astype(np.float64), timestamps):
        raise ProtocolError(
            "bad_state",
            f"timestamps such as {newest:.12g} were rounded to float32, whose steps are {resolution:g} s there; "
            "expected seconds in float64",
        )


class Freshness:
    """Refuses observations that are older than the last one, or delayed much longer than the fastest.

    Args:
        max_age_s: largest excess delay over the fastest message of the episode.
        period_s: period of the client's observations, to recognize the unit of its timestamps.
    """

    def __init__(self, max_age_s: float, period_s: float = 0.1) -> None:
        self.max_age_s = max_age_s
        self.period_s = period_s
        self.reset()

    def reset(self) -> None:
        """Forgets the offset of the clocks, as at the start of an episode."""
        self._newest: float | None = None
        self._offset: float | None = None
        self._updated = 0.0
        self._last_received: float | None = None
        self._candidate: _Candidate | None = None

    def check_unit(self, observation: Observation, received: float) -> None:
        """Refuses times in milliseconds, microseconds, nanoseconds or float32.

        Raises:
            ProtocolError: bad_state.
        """
        _check_unit(
            observation.timestamps,
            self.period_s,
            None if self._last_received is None else received - self._last_received,
        )

    def new_episode(self, observation: Observation, received: float) -> str | None:
        """Returns a sentence if this observation starts an episode without a reset, else None.

        If the client's clock was set back, the offset of the clocks is forgotten.
        """
        stamp, last_received, newest = float(observation.timestamps[-1]), self._last_received, self._newest
        self._last_received = received
        if last_received is None or newest is None:
            return None
        silence = received - last_received
        if stamp >= newest:
            self._candidate = None
            return f"a new episode begins: no observation for {silence:.1f} s" if silence > EPISODE_GAP_S else None
        back = newest - stamp
        if (silence > PAUSE_S and back > self.max_age_s) or self._agrees(stamp, received - stamp):
            self.reset()
            self._last_received = received
            return f"a new episode begins: the client's clock restarted, {back:.3f} s before the newest observation"
        return None

    def _agrees(self, stamp: float, difference: float) -> bool:
        """Counts consecutive observations on an earlier clock; returns whether they suffice."""
        last, self._candidate = self._candidate, _Candidate(stamp, difference, 1)
        if last is not None and stamp > last.stamp and abs(difference - last.difference) <= self.max_age_s:
            self._candidate = _Candidate(stamp, difference, last.agreeing + 1)
        return self._candidate.agreeing >= AGREEING

    def check(self, observation: Observation, received: float, now: float | None = None) -> float:
        """Returns how much older, in seconds, an observation is than the episode's freshest one was on arrival.

        Args:
            observation: judged by its newest timestamp, seconds on the client's clock.
            received: time of arrival, seconds on the server's monotonic clock.
            now: time of processing on the same clock; None for the time of arrival.

        Raises:
            ProtocolError: stale.
        """
        stamp = float(observation.timestamps[-1])
        if self._newest is not None and stamp < self._newest:
            raise ProtocolError(
                "stale",
                f"observed at {stamp:.3f} s, after one at {self._newest:.3f} s: an old frame, or the client's clock "
                "was set back or restarted; send reset for a new episode",
            )
        offset = difference = received - stamp
        if self._offset is not None:
            offset = min(difference, self._offset + MAX_DRIFT * (received - self._updated))
        waited = 0.0 if now is None else now - received
        age = difference - offset + waited
        if age > self.max_age_s:
            self._updated = received  # a refused observation is not evidence of drift
            waiting = f", {waited:.3f} s of it waiting for its turn" if waited > 0.001 else ""
            raise ProtocolError(
                "stale",
                f"{age:.3f} s older than the freshest of this episode was on arrival{waiting}; limit {self.max_age_s} "
                "s. Slower cameras or network, or the client's clock was set back: send reset to begin a new episode",
            )
        self._newest, self._offset, self._updated = stamp, offset, received
        return age
