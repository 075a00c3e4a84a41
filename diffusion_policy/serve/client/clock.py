"""The clock of the control loop: real time, or time that advances only on request."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since some moment; never set back."""

    def now(self) -> float:
        """Returns the time in seconds."""

    def sleep_until(self, moment: float) -> None:
        """Returns once ``moment`` has come; at once if it is over."""


class RealClock:
    """``time.monotonic``: it is not set by NTP or by hand. It stops while the computer sleeps."""

    def now(self) -> float:
        """Returns the time in seconds."""
        return time.monotonic()

    def sleep_until(self, moment: float) -> None:
        """Waits for ``moment``."""
        time.sleep(max(0.0, moment - time.monotonic()))


class VirtualClock:
    """Time of a simulation: sleeping advances it, nothing else does. Runs are deterministic and take no time.

    Args:
        start: seconds.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        """Returns the time in seconds."""
        return self._now

    def sleep_until(self, moment: float) -> None:
        """Advances to ``moment``, unless it is over."""
        self._now = max(self._now, moment)

    def advance(self, seconds: float) -> None:
        """Lets time pass, as a slow call does."""
        self._now += seconds
