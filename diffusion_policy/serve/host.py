"""What the transports share: sessions, the one worker thread, the deadline, and an orderly end.

The event loop only reads, waits and writes. Parsing, inference and the guard run in one worker thread, one message
after another: there is one policy, one robot, and no race between two answers.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from diffusion_policy.serve.engine import Engine
from diffusion_policy.serve.motion_guard import GuardSettings, MotionGuard
from diffusion_policy.serve.protocol import ErrorCode, Message
from diffusion_policy.serve.session import Arrival, Reply, Session, Slot, Ticket
from diffusion_policy.serve.session_log import SessionLog
from diffusion_policy.serve.settings import ServeSettings
from diffusion_policy.serve.stages import Stages

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Connection:
    """One client's connection: its session, its rate, and whether it waits for a message."""

    def __init__(self, host: Host, session: Session) -> None:
        self.session = session
        self._host = host
        self._task = asyncio.current_task()
        self._waiting = False
        self._allowance = host.settings.traffic.messages_per_s
        self._last = time.monotonic()

    def stop_waiting(self) -> None:
        """End at once if no request is under way; one that is will be answered first."""
        if self._waiting and self._task is not None:
            self._task.cancel()

    async def wait_for(self, message: Awaitable[T]) -> T:
        """Wait for (a part of) a message; the only place at which the server's end cuts in."""
        self._waiting = True
        try:
            return await message
        finally:
            self._waiting = False

    def is_too_fast(self) -> bool:
        """Count one message; whether it is one too many (a bucket that holds one second of messages)."""
        rate, now = self._host.settings.traffic.messages_per_s, time.monotonic()
        self._allowance = min(rate, self._allowance + (now - self._last) * rate) - 1
        self._last = now
        if self._allowance < 0:
            self._allowance += 1
            return True
        return False

    async def exchange(
        self, read: Callable[[], Message], arrival: Arrival, send: Callable[[Reply], Awaitable[None]]
    ) -> bool:
        """Answer one message and log it; whether the connection goes on.

        Raises:
            OSError: of ``send``, when the client is gone; logged as not delivered.
        """
        if self.is_too_fast():
            reply = self.session.refuse("rate", "more messages a second than the limit allows", arrival)
        else:
            reply = await self._host.reply(self.session, read, arrival)
        return await self.deliver(reply, send)

    async def refuse(
        self, code: ErrorCode, message: str, arrival: Arrival, send: Callable[[Reply], Awaitable[None]]
    ) -> bool:
        """Answer what could not even be read."""
        return await self.deliver(self.session.refuse(code, message, arrival), send)

    def note(self, code: ErrorCode, message: str) -> None:
        """Log an error that the transport has told the client in its own way."""
        self.session.record(self.session.refuse(code, message, Arrival(time.monotonic())), delivered=True)

    async def deliver(self, reply: Reply, send: Callable[[Reply], Awaitable[None]]) -> bool:
        """Send, then log; whether the connection goes on."""
        try:
            await self._send_and_log(reply, send)
        except (TypeError, ValueError, OverflowError):  # it cannot be written down, so nothing of it has left
            logger.exception("a reply cannot be encoded; the session ends")
            failed = "the server failed on this message; its log says why"
            reply = self.session.refuse("internal", failed, Arrival(time.monotonic()))
            await self._send_and_log(reply, send)
        return not reply.ends and not self._host.stopping.is_set()

    async def _send_and_log(self, reply: Reply, send: Callable[[Reply], Awaitable[None]]) -> None:
        delivered = False
        try:
            with reply.stages.measure("reply"):
                await send(reply)
            delivered = True
        finally:
            self.session.record(reply, delivered=delivered)
            self._host.on_answer(reply)


def computing_thread() -> ThreadPoolExecutor:
    """The one thread of a server that computes, from loading the checkpoint to the last answer.

    OpenMP gives every thread that computes helpers of its own. Once there are more of them than cores, they no longer
    stay awake between products: a second computing thread, even an idle one, makes denoising on a CPU several times
    slower (libgomp's throttled spin count).
    """
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")


class Host:
    """Serves one robot at a time with one engine.

    Args:
        engine: the policy, warmed up.
        settings: all of them; the guard's box is filled in from the engine's training range.
        on_answer: sees every reply with its stages once it is logged; for measurements.
        worker: the thread that computes, see :func:`computing_thread`; None: one of the host's own.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ServeSettings,
        on_answer: Callable[[Reply], None] = lambda reply: None,
        worker: ThreadPoolExecutor | None = None,
    ) -> None:
        self.on_answer = on_answer
        self.engine = engine
        self.settings = settings
        low, high = engine.action_range()
        margin = settings.workspace_margin_m
        self.guard: GuardSettings = settings.guard.within(np.asarray(low)[:3] - margin, np.asarray(high)[:3] + margin)
        self.token = settings.token()  # once: a file that is gone later neither opens the door nor breaks it
        self.stopping = asyncio.Event()
        self.slot = Slot()
        self._worker = worker or computing_thread()
        self._connections: set[Connection] = set()

    @asynccontextmanager
    async def connection(self, *, authorized: bool = False) -> AsyncIterator[Connection | None]:
        """A client's connection while it lasts; None if there are too many."""
        if len(self._connections) >= self.settings.traffic.connections or self.stopping.is_set():
            logger.warning("a connection was closed: %d are open", len(self._connections))
            yield None
            return
        session = Session(
            self.engine,
            self.settings,
            MotionGuard(self.guard),
            self.slot,
            self._new_log(),
            token=self.token,
            authorized=authorized,
        )
        connection = Connection(self, session)
        self._connections.add(connection)
        try:
            yield connection
        finally:
            await asyncio.to_thread(session.end)
            self._connections.discard(connection)

    async def reply(self, session: Session, read: Callable[[], Message], arrival: Arrival) -> Reply:
        """The session's reply, or "late" once the deadline is over; a late answer is logged and never sent."""
        if self.slot.holder not in (None, session):
            return session.refuse("busy", "another robot is being served", arrival)
        ticket = Ticket()
        future = self._worker.submit(session.answer, read, arrival, ticket)
        waiting = asyncio.wrap_future(future)
        deadline = arrival.received + self.settings.deadline_s
        await asyncio.wait({waiting}, timeout=max(0.0, deadline - time.monotonic()))
        if waiting.done() or not ticket.expire():
            return await waiting
        late = session.refuse("late", f"no answer within {self.settings.deadline_s} s; no action", arrival)
        late.line, late.stages = None, Stages()  # what the worker finds goes into the log, once it is done
        session.late = logged = threading.Event()

        def record(finished: Future[Reply]) -> None:
            if not finished.cancelled():
                session.record(finished.result(), delivered=False)
            logged.set()

        future.add_done_callback(record)
        return late

    async def stop(self) -> None:
        """Let requests that are under way finish, end the others, and write the logs."""
        self.stopping.set()
        for connection in tuple(self._connections):
            connection.stop_waiting()
        while self._connections:
            await asyncio.sleep(0.01)
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _new_log(self) -> SessionLog | None:
        log = self.settings.log
        if log.directory is None:
            return None
        return SessionLog(log.directory, self._log_meta(), log.max_bytes, log.queue)

    def _log_meta(self) -> dict[str, Any]:
        settings = asdict(self.settings)
        return {**self.engine.describe(), "guard": asdict(self.guard), "settings": settings}
