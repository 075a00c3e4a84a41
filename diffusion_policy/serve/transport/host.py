"""The part that the transports share: connections, the worker thread, the deadline, and shutdown.

The event loop only reads, waits and writes. Parsing, inference and the guard run in one worker thread, one message
after another: there is one policy, one robot, and no race between two answers.

A connection continues to read while an answer is computed, so the newest observation is known when the worker is free
(older ones get a ``superseded`` error), and an inference is canceled once its client has disconnected or got ``late``.
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
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from diffusion_policy.run_log.session_log import SessionLog
from diffusion_policy.serve.checks.motion_guard import MotionGuard, MotionLimits
from diffusion_policy.serve.engine import Engine
from diffusion_policy.serve.session import RobotLock, Session
from diffusion_policy.serve.settings import ServeSettings
from diffusion_policy.serve.stages import Stages
from diffusion_policy.serve.transport.inbox import Inbox
from diffusion_policy.serve.transport.protocol import ErrorCode, ProtocolError
from diffusion_policy.serve.transport.request import Arrival, PendingReply, Reply, Request

logger = logging.getLogger(__name__)

T = TypeVar("T")
Send = Callable[[Reply], Awaitable[None]]
# Iterations of the event loop before shutdown, to read messages that have already arrived.
_LAST_READS = 10
# After these framing or trust is lost, and the connection is closed at once. After any other end of a session the
# connection stays open for a client that sends further requests: the robot clients of the predecessor never reconnect.
CLOSING = frozenset({"oversized", "unauthorized"})


class SilenceError(TimeoutError):
    """The client has not sent anything for too long."""


class Connection:
    """One client's connection: its session, its waiting messages, and its message rate."""

    def __init__(self, host: Host, session: Session) -> None:
        self.session = session
        self._host = host
        self._inbox = Inbox(2 * host.settings.limits.message_bytes)
        self._reading: asyncio.Task[None] | None = None
        self._pending: PendingReply | None = None  # of the current request
        self._is_gone = False
        self._allowance = host.settings.traffic.messages_per_s
        self._last = self._active = time.monotonic()

    async def serve(self, receive: Callable[[], Awaitable[Request]], send: Send) -> None:
        """Reads and answers messages until the client is gone, the connection is closed, or the server stops.

        Args:
            receive: returns the transport's next message; a request with a refusal is its last.
            send: sends a reply to the client.

        Raises:
            Exception: whatever ended ``receive`` (the client is gone or stuck), or an OSError from ``send``.
        """
        self._reading = asyncio.create_task(self._read(receive))
        try:
            while (request := await self._inbox.take()) is not None:
                if not await self._answer(request, send):
                    break
            else:
                if not self._host.stopping.is_set():
                    await self._reading  # raises the error that ended it
        finally:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def stop_waiting(self) -> None:
        """Stops reading; messages that have arrived are still answered."""
        await self._inbox.close()

    async def wait_for(self, message: Awaitable[T]) -> T:
        """Returns the first part of a message; SilenceError if none comes while no request is being answered."""
        waiting, traffic = asyncio.ensure_future(message), self._host.settings.traffic
        try:
            while True:
                patience = self._patience_s - (time.monotonic() - self._active)
                if patience <= 0 and self._pending is None and not self._inbox.waiting:
                    raise SilenceError(f"silent for {self._patience_s} s")
                # checked repeatedly, since the session may come to rest meanwhile
                done, _ = await asyncio.wait({waiting}, timeout=max(0.05, min(patience, traffic.linger_s)))
                if done:
                    return waiting.result()
        finally:
            waiting.cancel()

    def note(self, code: ErrorCode, message: str) -> None:
        """Logs an error that the transport has already reported to the client."""
        self.session.record(self.session.refuse(code, message, Arrival(time.monotonic())), delivered=True)

    @property
    def _patience_s(self) -> float:
        traffic = self._host.settings.traffic
        return traffic.linger_s if self.session.resting else traffic.idle_s

    def _is_too_fast(self) -> bool:
        """Counts one message and returns whether it exceeds the rate (a token bucket of one second of messages)."""
        rate, now = self._host.settings.traffic.messages_per_s, time.monotonic()
        self._allowance = min(rate, self._allowance + (now - self._last) * rate) - 1
        self._last = now
        if self._allowance < 0:
            self._allowance += 1
            return True
        return False

    async def _read(self, receive: Callable[[], Awaitable[Request]]) -> None:
        """Reads messages into the inbox until there are no more."""
        try:
            while True:
                request = await receive()
                self._active = time.monotonic()
                last = request.refusal is not None
                if not last and self._is_too_fast():
                    request.refusal = ProtocolError("rate", "more messages a second than the limit allows")
                await self._inbox.put(request)
                if last:
                    return
        except Exception:
            self._expire_pending()
            raise
        finally:
            await self._inbox.close()

    def _expire_pending(self) -> None:
        """Marks the client as gone and expires the current request."""
        self._is_gone = True
        if self._pending is not None:
            self._pending.expire("gone")

    async def _answer(self, request: Request, send: Send) -> bool:
        """Answers one message and logs it; returns whether the connection continues.

        Raises:
            OSError: of ``send``, when the client is gone; logged as not delivered.
        """
        self._pending = pending = PendingReply()
        if self._is_gone:
            pending.expire("gone")
        try:
            if request.refusal is not None:
                reply = self.session.refuse(request.refusal.code, str(request.refusal), request.arrival)
            else:
                reply = await self._host.reply(self.session, request, lambda: self._inbox.waiting, pending)
            return await self._deliver(reply, send)
        finally:
            self._pending, self._active = None, time.monotonic()

    async def _deliver(self, reply: Reply, send: Send) -> bool:
        """Sends a reply, then logs it; returns whether the connection continues."""
        try:
            await self._send_and_log(reply, send)
        except (TypeError, ValueError, OverflowError):  # it cannot be encoded, so nothing was sent
            logger.exception("a reply cannot be encoded; the session ends")
            failed = "the server failed on this message; its log has the reason"
            reply = self.session.refuse("internal", failed, Arrival(time.monotonic()))
            await self._send_and_log(reply, send)
        return reply.message.get("code") not in CLOSING

    async def _send_and_log(self, reply: Reply, send: Send) -> None:
        delivered = False
        try:
            if not reply.withheld:
                with reply.stages.measure("reply"):
                    await send(reply)
                delivered = True
        finally:
            self.session.record(reply, delivered=delivered)
            self._host.on_answer(reply)


def computing_thread() -> ThreadPoolExecutor:
    """Returns the executor with the one thread that computes, from loading the checkpoint to the last answer.

    OpenMP creates a thread pool for every computing thread. Once there are more threads than cores, threads stop
    spinning
    between products: a second computing thread, even an idle one, makes denoising on a CPU several times slower
    (libgomp's throttled spin count).
    """
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")


class Host:
    """Serves one robot at a time with one engine.

    Args:
        engine: the policy, warmed up.
        settings: all settings; the guard's workspace is completed from the engine's training range.
        on_answer: called with every reply and its stages once it is logged, for measurements.
        worker: the thread that computes, see :func:`computing_thread`; None to let the host create one.
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
        layout, margin = engine.form.layout, settings.workspace_margin_m
        self.limits = MotionLimits.within(settings.guard, layout, np.asarray(low), np.asarray(high), margin)
        self.token = settings.token()  # read once, so that a later change of the file has no effect
        self.stopping = asyncio.Event()
        self.robot_lock = RobotLock()
        self._worker = worker or computing_thread()
        self._connections: set[Connection] = set()
        self.run_folders: list[Path] = []  # of sessions that have ended

    @asynccontextmanager
    async def connection(self, *, authorized: bool = False) -> AsyncIterator[Connection | None]:
        """Yields a client's connection; None if there are too many."""
        if len(self._connections) >= self.settings.traffic.connections or self.stopping.is_set():
            logger.warning("a connection was closed: %d are open", len(self._connections))
            yield None
            return
        log = self._new_log()
        session = Session(
            self.engine,
            self.settings,
            MotionGuard(self.limits),
            self.robot_lock,
            log,
            token=self.token,
            authorized=authorized,
        )
        connection = Connection(self, session)
        self._connections.add(connection)
        try:
            yield connection
        finally:
            await asyncio.to_thread(session.end)
            self.run_folders += [] if log is None else log.folders
            self._connections.discard(connection)

    async def reply(
        self, session: Session, request: Request, behind: Callable[[], tuple[Request, ...]], pending: PendingReply
    ) -> Reply:
        """Returns the session's reply, or "late" after the deadline; a late answer is canceled, logged and never sent.

        Args:
            session: whose message it is.
            request: the message to answer.
            behind: returns the requests waiting behind it; called from the worker thread.
            pending: decides whether this answer is sent; it expires if the client hangs up.
        """
        arrival, begun = request.arrival, time.monotonic()
        arrival.stages.add("wait", begun - arrival.received)
        if self.robot_lock.holder not in (None, session):
            return session.refuse("busy", "another robot is being served", arrival)
        future = self._worker.submit(session.answer, request, behind, pending)
        waiting = asyncio.wrap_future(future)
        await asyncio.wait({waiting}, timeout=self.settings.deadline_s)
        pending.expire("late")
        if waiting.done() or not pending.expired:
            return await waiting
        late = session.refuse("late", f"no answer within {self.settings.deadline_s} s; no action", arrival)
        late.withheld = pending.outcome == "gone"
        late.line, late.stages = None, Stages()  # the worker logs its result once it is done
        session.late = logged = threading.Event()

        def record(finished: Future[Reply]) -> None:
            if not finished.cancelled():
                session.record(finished.result(), delivered=False)
            logged.set()

        future.add_done_callback(record)
        return late

    async def stop(self) -> None:
        """Finishes current requests, ends the others, and writes the logs."""
        self.stopping.set()
        for _ in range(_LAST_READS):
            await asyncio.sleep(0)
        for connection in tuple(self._connections):
            await connection.stop_waiting()
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
        return {**self.engine.describe(), "guard": self.limits.to_json(), "settings": settings}
