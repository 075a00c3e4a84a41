"""How old an observation is, without synchronised clocks.

The client stamps with its clock, the server receives by its own; their difference is the offset of the two clocks plus
the delay. The offset does not change within an episode, so the smallest difference seen is the offset plus the smallest
delay, and everything above it is how much longer this message took than the fastest one. That is the only use made of
two clocks at once. A client's clock that is set back or forth counts as stale until the next reset.
"""

from __future__ import annotations

from diffusion_policy.serve.protocol import Observation, ProtocolError


class Freshness:
    """Refuses observations that are older than the last one, or much later than the fastest.

    Args:
        max_age_s: how much later than the session's fastest message.
    """

    def __init__(self, max_age_s: float) -> None:
        self.max_age_s = max_age_s
        self.reset()

    def reset(self) -> None:
        """Forget both clocks' relation, as at the start of an episode."""
        self._newest: float | None = None
        self._offset: float | None = None

    def check(self, observation: Observation, received: float) -> float:
        """Seconds by which it was slower than the fastest; ``received`` is the server's monotonic clock.

        Raises:
            ProtocolError: stale.
        """
        stamp = float(observation.timestamps[-1])
        if self._newest is not None and stamp < self._newest:
            raise ProtocolError(
                "stale", f"observed at {stamp:.3f} s, after one of {self._newest:.3f} s; send reset for a new episode"
            )
        difference = received - stamp
        self._offset = difference if self._offset is None else min(self._offset, difference)
        age = difference - self._offset
        if age > self.max_age_s:
            raise ProtocolError(
                "stale", f"{age:.3f} s older on arrival than the freshest of this episode; limit {self.max_age_s} s"
            )
        self._newest = stamp
        return age
