"""The queue of a connection's messages.

A client may send faster than a policy answers. Messages are read at once, so that the newest observation is known when
the policy is free, and a client that disconnects is noticed while its answer is computed. The queue is bounded in
bytes: beyond that, reading pauses and TCP slows the client down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from diffusion_policy.serve.transport.protocol import Observation, ProtocolError, Reset
from diffusion_policy.serve.transport.request import Request

# Bytes charged for a message in addition to its own, so that a flood of empty ones is bounded as well.
_OVERHEAD_BYTES = 1024


class Inbox:
    """Requests in the order of their arrival.

    Args:
        max_bytes: limit on the waiting bytes; one message may always wait.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._requests: tuple[Request, ...] = ()
        self._changed = asyncio.Condition()
        self._closed = False

    @property
    def waiting(self) -> tuple[Request, ...]:
        """All waiting requests, oldest first; may be read from another thread."""
        return self._requests

    async def put(self, request: Request) -> None:
        """Adds a request; waits while the inbox is full."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or not self._requests or self._fits(request))
            if not self._closed:
                self._requests = (*self._requests, request)
            self._changed.notify_all()

    async def take(self) -> Request | None:
        """Returns the oldest request once there is one; None after :meth:`close`, when all have been taken."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or self._requests)
            if not self._requests:
                return None
            first, *rest = self._requests
            self._requests = tuple(rest)
            self._changed.notify_all()
            return first

    async def close(self) -> None:
        """Stops accepting requests; waiting ones can still be taken."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, request: Request) -> bool:
        held = sum(other.size + _OVERHEAD_BYTES for other in self._requests)
        return held + request.size + _OVERHEAD_BYTES <= self._max_bytes


def is_superseded(observation: Observation, behind: Sequence[Request]) -> bool:
    """Whether a newer valid observation of the same episode waits behind this one."""
    if observation.inspect:
        return False
    for request in behind:
        try:
            message = request.message()
        except ProtocolError:
            continue
        if isinstance(message, Reset):
            return False
        if isinstance(message, Observation) and not message.inspect:
            return bool(message.timestamps[-1] >= observation.timestamps[-1])
    return False
