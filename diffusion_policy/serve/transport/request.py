"""One message from its last byte to its reply: its arrival, whether its reply is still awaited, and the reply."""

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
    """When a message was complete, on the server's monotonic clock, and its stages so far."""

    received: float
    stages: Stages = field(default_factory=Stages)


class Request:
    """One message of a client, parsed at most once.

    Args:
        read: parses what the transport received; raises ProtocolError.
        arrival: when the message was complete.
        size: bytes that it occupies while waiting.
        refusal: why it is not parsed (too many messages, too many bytes); None if it is to be parsed.
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
        """Returns the message; the first call parses it, in the stage "parse".

        Raises:
            ProtocolError: on every call, if it is not a valid message.
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
    """A reply, its log line (written once the reply was sent), and whether the session ends.

    ``withheld``: the reply is no longer awaited, so it is only logged.
    """

    message: dict[str, Any]
    ends: bool = False
    line: dict[str, Any] | None = None
    images: Images = ()
    stages: Stages = field(default_factory=Stages)
    withheld: bool = False


class PendingReply:
    """Decides once whether an answer is sent (the session claims it) or not (it is no longer awaited)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.outcome: Outcome | None = None

    def claim(self) -> bool:
        """Claims the answer; returns whether it may be sent."""
        return self._decide("claimed")

    @property
    def expired(self) -> bool:
        """Whether the answer is no longer awaited."""
        return self.outcome in ("late", "gone")

    def expire(self, why: Literal["late", "gone"] = "late") -> bool:
        """Marks the answer as no longer awaited; returns whether it was not claimed before."""
        return self._decide(why)

    def _decide(self, outcome: Outcome) -> bool:
        with self._lock:
            if self.outcome is None:
                self.outcome = outcome
            return self.outcome == outcome
