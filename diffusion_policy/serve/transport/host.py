"""What the transports share: connections, the one worker thread, the deadline, and an orderly end.

The event loop only reads, waits and writes. Parsing, inference and the guard run in one worker thread, one message
after another: there is one policy, one robot, and no race between two answers.

A connection reads on while an answer is computed, so the newest observation is known when the worker is free (older
ones get a ``superseded`` error), and an inference is given up as soon as its client has hung up or was told ``late``.
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
from diffusion_policy.serve.session import Session, Slot
from diffusion_policy.serve.settings import ServeSettings
from diffusion_policy.serve.stages import Stages
from diffusion_policy.serve.transport.inbox import Inbox
from diffusion_policy.serve.transport.protocol import ErrorCode, ProtocolError
from diffusion_policy.serve.transport.request import Arrival, Reply, Request, Ticket

logger = logging.getLogger(__name__)

T = TypeVar("T")
Send = Callable[[Reply], Awaitable[None]]
# Turns of the event loop before the end, in which what has arrived already is read.
_LAST_READS = 10
# Framing or trust is lost: closed at once. After any other end of a session the connection stays open for a client
# that goes on asking: the robot clients of the predecessor never reconnect.
CLOSING = frozenset({"oversized", "unauthorized"})


class SilenceError(TimeoutError):
    """The client has sent nothing for too long."""


class Connection:
    """One client's connection: its session, the messages that wait, its rate."""

    def __init__(self, host: Host, session: Session) -> None:
        self.session = session
        self._host = host
        self._inbox = Inbox(2 * host.settings.limits.message_bytes)
        self._reading: asyncio.Task[None] | None = None
        self._ticket: Ticket | None = None  # of the request under way
        self._hung_up = False
        self._allowance = host.settings.traffic.messages_per_s
        self._last = self._active = time.monotonic()

    async def serve(self, receive: Callable[[], Awaitable[Request]], send: Send) -> None:
        """Read and answer until the client is gone, the session ends for good, or the server stops.

        Args:
            receive: the next message of the transport; a request with a refusal is its last.
            send: a reply to the client.

        Raises:
            Exception: whatever ended ``receive`` (the client is gone, or stuck), or an OSError of ``send``.
        """
        self._reading = asyncio.create_task(self._read(receive))
        try:
            while (request := await self._inbox.take()) is not None:
                if not await self._answer(request, send):
                    break
            else:
                if not self._host.stopping.is_set():
                    await self._reading  # raises what ended it
        finally:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def stop_waiting(self) -> None:
        """No further message is read; those that came before are answered."""
        await self._inbox.close()

    async def wait_for(self, message: Awaitable[T]) -> T:
        """The first part of a message; SilenceError if it does not come while nothing is under way."""
        waiting, traffic = asyncio.ensure_future(message), self._host.settings.traffic
        try:
            while True:
                patience = self._patience_s - (time.monotonic() - self._active)
                if patience <= 0 and self._ticket is None and not self._inbox.waiting:
                    raise SilenceError(f"silent for {self._patience_s} s")
                # looked at again and again, for the session may come to rest meanwhile
                done, _ = await asyncio.wait({waiting}, timeout=max(0.05, min(patience, traffic.linger_s)))
                if done:
                    return waiting.result()
        finally:
            waiting.cancel()

    def note(self, code: ErrorCode, message: str) -> None:
        """Log an error that the transport has told the client in its own way."""
        self.session.record(self.session.refuse(code, message, Arrival(time.monotonic())), delivered=True)

    @property
    def _patience_s(self) -> float:
        traffic = self._host.settings.traffic
        return traffic.linger_s if self.session.resting else traffic.idle_s

    def _is_too_fast(self) -> bool:
        """Count one message; whether it is one too many (a bucket that holds one second of messages)."""
        rate, now = self._host.settings.traffic.messages_per_s, time.monotonic()
        self._allowance = min(rate, self._allowance + (now - self._last) * rate) - 1
        self._last = now
        if self._allowance < 0:
            self._allowance += 1
            return True
        return False

    async def _read(self, receive: Callable[[], Awaitable[Request]]) -> None:
        """Messages into the inbox until there are no more."""
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
            self._hang_up()
            raise
        finally:
            await self._inbox.close()

    def _hang_up(self) -> None:
        """Nobody waits for an answer any more."""
        self._hung_up = True
        if self._ticket is not None:
            self._ticket.expire("gone")

    async def _answer(self, request: Request, send: Send) -> bool:
        """Answer one message and log it; whether the connection goes on.

        Raises:
            OSError: of ``send``, when the client is gone; logged as not delivered.
        """
        self._ticket = ticket = Ticket()
        if self._hung_up:
            ticket.expire("gone")
        try:
            if request.refusal is not None:
                reply = self.session.refuse(request.refusal.code, str(request.refusal), request.arrival)
            else:
                reply = await self._host.reply(self.session, request, lambda: self._inbox.waiting, ticket)
            return await self._deliver(reply, send)
        finally:
            self._ticket, self._active = None, time.monotonic()

    async def _deliver(self, reply: Reply, send: Send) -> bool:
        """Send, then log; whether the connection goes on."""
        try:
            await self._send_and_log(reply, send)
        except (TypeError, ValueError, OverflowError):  # it cannot be written down, so nothing of it has left
            logger.exception("a reply cannot be encoded; the session ends")
            failed = "the server failed on this message; its log says why"
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
        layout, margin = engine.form.layout, settings.workspace_margin_m
        self.limits = MotionLimits.within(settings.guard, layout, np.asarray(low), np.asarray(high), margin)
        self.token = settings.token()  # once: a file that is gone later neither opens the door nor breaks it
        self.stopping = asyncio.Event()
        self.slot = Slot()
        self._worker = worker or computing_thread()
        self._connections: set[Connection] = set()
        self.run_folders: list[Path] = []  # of sessions that have ended

    @asynccontextmanager
    async def connection(self, *, authorized: bool = False) -> AsyncIterator[Connection | None]:
        """A client's connection while it lasts; None if there are too many."""
        if len(self._connections) >= self.settings.traffic.connections or self.stopping.is_set():
            logger.warning("a connection was closed: %d are open", len(self._connections))
            yield None
            return
        log = self._new_log()
        session = Session(
            self.engine,
            self.settings,
            MotionGuard(self.limits),
            self.slot,
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
        self, session: Session, request: Request, behind: Callable[[], tuple[Request, ...]], ticket: Ticket
    ) -> Reply:
        """The session's reply, or "late" once the deadline is over; a late answer is given up, logged and never sent.

        Args:
            session: whose message it is.
            request: the message.
            behind: what waits behind it by now; called from the worker thread.
            ticket: of this answer; expires if the client hangs up.
        """
        arrival, begun = request.arrival, time.monotonic()
        arrival.stages.add("wait", begun - arrival.received)
        if self.slot.holder not in (None, session):
            return session.refuse("busy", "another robot is being served", arrival)
        future = self._worker.submit(session.answer, request, behind, ticket)
        waiting = asyncio.wrap_future(future)
        await asyncio.wait({waiting}, timeout=self.settings.deadline_s)
        ticket.expire("late")
        if waiting.done() or not ticket.expired:
            return await waiting
        late = session.refuse("late", f"no answer within {self.settings.deadline_s} s; no action", arrival)
        late.withheld = ticket.outcome == "gone"
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
