"""One message from its last byte to its reply: when it came, who still waits for it, and what goes back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from diffusion_policy.run_log.session_log import Images
from diffusion_policy.serve.stages import Stages
from diffusion_policy.serve.transport.protocol import Message, ProtocolError

Outcome = Literal["claimed", "late", "gone"]


@dataclass
class Arrival:
    """When a message was complete, on the server's monotonic clock, and where time went so far."""

    received: float
    stages: Stages = field(default_factory=Stages)


class Request:
    """One message of a client, parsed at most once.

    Args:
        read: parses what the transport received; raises ProtocolError.
        arrival: when it was complete.
        size: bytes that it holds while it waits.
        refusal: why it is not even parsed (too many messages, too many bytes); None: it is.
    """

    def __init__(
        self, read: Callable[[], Message], arrival: Arrival, size: int = 0, refusal: ProtocolError | None = None
    ) -> None:
        self.arrival = arrival
        self.size = size
        self.refusal = refusal
        self._read = read
        self._message: Message | None = None

    def message(self) -> Message:
        """The message; the first call parses it, in the stage "parse".

        Raises:
            ProtocolError: at every call, if it is no message of the protocol.
        """
        if self.refusal is not None:
            raise self.refusal
        if self._message is None:
            try:
                with self.arrival.stages.measure("parse"):
                    self._message = self._read()
            except ProtocolError as error:
                self.refusal = error
                raise
        return self._message


@dataclass
class Reply:
    """What goes back, what is logged once it has gone, and whether the session ends.

    ``withheld``: nobody waits for it any more, so it goes into the log alone.
    """

    message: dict[str, Any]
    ends: bool = False
    line: dict[str, Any] | None = None
    images: Images = ()
    stages: Stages = field(default_factory=Stages)
    withheld: bool = False


class Ticket:
    """Decides once whether an answer leaves (the session claims it) or not (nobody waits for it any more)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.outcome: Outcome | None = None

    def claim(self) -> bool:
        """Whether the answer may leave."""
        return self._decide("claimed")

    @property
    def expired(self) -> bool:
        """Whether nobody waits any more."""
        return self.outcome in ("late", "gone")

    def expire(self, why: Literal["late", "gone"] = "late") -> bool:
        """Whether nobody claimed it before; then nobody can any more."""
        return self._decide(why)

    def _decide(self, outcome: Outcome) -> bool:
        with self._lock:
            if self.outcome is None:
                self.outcome = outcome
            return self.outcome == outcome
