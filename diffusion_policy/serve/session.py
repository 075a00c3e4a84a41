"""One robot's session: a message in, a reply out. No sockets here; both transports share it.

State, and what leads out of it (docs/serving.md draws it):

    NEW    -- hello with the token, or any message where none is needed, and the slot is free --> READY
    READY  -- observation --> an action, or an error; READY
    READY  -- reset --> READY, a new episode
    any    -- oversized, busy, unauthorized, internal, too many errors in a row --> ENDED

Exactly one reply leaves for a message. An action leaves only if nothing was in doubt, and only if the server has not
given up waiting for it: the ticket decides that once, so an answer that was called late is never sent later.
"""

from __future__ import annotations

import hmac
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from diffusion_policy.serve.engine import Engine, FloatArray, Inference
from diffusion_policy.serve.freshness import Freshness
from diffusion_policy.serve.motion_guard import GuardedChunk, MotionGuard, MotionRefusedError
from diffusion_policy.serve.protocol import (
    ENDING,
    ErrorCode,
    Hello,
    Message,
    Observation,
    ProtocolError,
    Reset,
    action_reply,
    error_reply,
)
from diffusion_policy.serve.seams import Seam, ServedChunk
from diffusion_policy.serve.session_log import Images, SessionLog
from diffusion_policy.serve.settings import ServeSettings
from diffusion_policy.serve.stages import Stages
from diffusion_policy.spec import WorkspaceError

logger = logging.getLogger(__name__)


class Ticket:
    """Decides once whether an answer leaves (the session claims it) or not (the server lets it expire)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decided: str | None = None

    def claim(self) -> bool:
        """Whether the answer may leave."""
        return self._decide("claimed")

    @property
    def expired(self) -> bool:
        """Whether nobody waits any more."""
        return self._decided == "expired"

    def expire(self) -> bool:
        """Whether nobody claimed it before; then nobody can any more."""
        return self._decide("expired")

    def _decide(self, outcome: str) -> bool:
        with self._lock:
            if self._decided is None:
                self._decided = outcome
            return self._decided == outcome


class Slot:
    """The one place at the robot: the first session with a valid message has it until it ends, and not afterwards."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.holder: Session | None = None

    def take(self, session: Session) -> bool:
        """Whether this session has it now; one that has ended, with a message still waiting, gets it no more."""
        with self._lock:
            if self.holder is None and not session.ended:
                self.holder = session
            return self.holder is session

    def release(self, session: Session) -> None:
        """Free for the next one; the session has ended."""
        with self._lock:
            session.ended = True
            if self.holder is session:
                self.holder = None


@dataclass
class Reply:
    """What goes back, what is logged once it has gone, and whether the connection ends."""

    message: dict[str, Any]
    ends: bool = False
    line: dict[str, Any] | None = None
    images: Images = ()
    stages: Stages = field(default_factory=Stages)


@dataclass
class Arrival:
    """When a message was complete, on the server's monotonic clock, and where time went so far."""

    received: float
    stages: Stages = field(default_factory=Stages)


class Session:
    """What is remembered between the messages of one connection.

    Args:
        engine: the policy.
        settings: deadline, limits, rates.
        guard: the session's own; its limits are those of the start-up message.
        slot: shared by all sessions of a server.
        log: of this session; None: nothing is logged.
        token: that a hello must name; None: everybody may come.
        authorized: whether the transport has checked the token already.

    Attributes:
        ended: its connection is closed.
        late: set once the last message that was called late is in the log; None if there was none.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ServeSettings,
        guard: MotionGuard,
        slot: Slot,
        log: SessionLog | None = None,
        *,
        token: str | None = None,
        authorized: bool = False,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._guard = guard
        self._slot = slot
        self._log = log
        self._token = token
        self._authorized = authorized or self._token is None or settings.allow_unauthenticated
        self._freshness = Freshness(settings.max_age_s)
        self._served: ServedChunk | None = None
        self._step, self._episode, self._requests = 0, 0, 0
        self._errors_in_a_row = 0
        self.ended = False
        self.late: threading.Event | None = None

    def metadata(self) -> dict[str, Any]:
        """What a new client is told: names, units, horizon, rate, checkpoint hash, limits."""
        return {
            "type": "metadata",
            **self._engine.describe(),
            "control_hz": self._settings.control_hz,
            "deadline_s": self._settings.deadline_s,
            "guard": asdict(self._guard.settings),
            "log_stopped": None if self._log is None else self._log.stopped,
        }

    def answer(self, read: Callable[[], Message], arrival: Arrival, ticket: Ticket) -> Reply:
        """Read a message and answer it. Never raises: this is the border at which every failure becomes an error reply.

        ``read`` parses what the transport received. Runs in the server's one worker thread.
        """
        try:
            with arrival.stages.measure("parse"):
                message = read()
            self._admit(message)
            reply = self._answer(message, arrival, ticket)
        except ProtocolError as error:
            return self.refuse(error.code, str(error), arrival)
        except WorkspaceError as error:
            return self.refuse("bad_state", str(error), arrival)
        except Exception:  # the one broad one: whatever failed, the arm must get no action
            logger.exception("session failed; it ends")
            return self.refuse("internal", "the server failed on this message; its log says why", arrival)
        if reply.message["type"] != "error":
            self._errors_in_a_row = 0
        return reply

    def refuse(self, code: ErrorCode, message: str, arrival: Arrival, line: dict[str, Any] | None = None) -> Reply:
        """The reply without an action, and its line in the log."""
        self._errors_in_a_row += 1
        ends = code in ENDING or self._errors_in_a_row >= self._settings.traffic.errors_in_a_row
        logger.warning("%s: %s%s", code, message, "; the session ends" if ends else "")
        return self._error(code, message, arrival, line or {}, ends=ends)

    def _error(
        self, code: ErrorCode, message: str, arrival: Arrival, line: Mapping[str, Any], *, ends: bool = False
    ) -> Reply:
        event = {"event": "error", "code": code, "message": message, "episode": self._episode, "ends": ends}
        return Reply(error_reply(code, message), ends, {**event, **self._times(arrival), **line}, stages=arrival.stages)

    def record(self, reply: Reply, *, delivered: bool) -> None:
        """Log a reply after it has left, or failed to. Who was turned away at the door is no part of any run."""
        if self._log is None or reply.line is None or reply.line.get("code") in ("busy", "unauthorized"):
            return
        timing = {f"{stage}_ms": ms for stage, ms in reply.stages.milliseconds.items()}
        line = {**reply.line, "timing": {**reply.line.get("timing", {}), **timing}, "delivered": delivered}
        with reply.stages.measure("log"):
            self._log.write(line, reply.images)

    def end(self, patience_s: float = 5.0) -> None:
        """Give the slot back and finish the log, which waits so long for an answer that was called late."""
        self._slot.release(self)
        if self._guard.totals:
            logger.info("the guard of this session: %s", ", ".join(f"{n} x {k}" for k, n in self._guard.totals.items()))
        if self.late is not None:
            self.late.wait(patience_s)
        if self._log is not None:
            self._log.close()

    # ---- inside ----

    def _admit(self, message: Message) -> None:
        """Authorise, then take the slot; ProtocolError if either is refused."""
        if isinstance(message, Hello) and self._token is not None and message.token is not None:
            if not hmac.compare_digest(message.token.encode("utf-8", "surrogatepass"), self._token.encode()):
                raise ProtocolError("unauthorized", "wrong token")
            self._authorized = True
        if not self._authorized:
            raise ProtocolError("unauthorized", "this server wants a hello with its token first")
        if not self._slot.take(self):
            raise ProtocolError("busy", "another robot is being served")

    def _answer(self, message: Message, arrival: Arrival, ticket: Ticket) -> Reply:
        match message:
            case Hello():
                return Reply(self.metadata(), stages=arrival.stages)
            case Reset():
                self._episode, self._requests, self._served = self._episode + 1, 0, None
                self._guard.reset()
                self._freshness.reset()
                event = {"event": "reset", "episode": self._episode}
                return Reply({"type": "reset_ack"}, line=event | self._times(arrival), stages=arrival.stages)
            case Observation(inspect=True):
                return self._inspect(message, arrival)
            case Observation():
                return self._act(message, arrival, ticket)

    def _inspect(self, observation: Observation, arrival: Arrival) -> Reply:
        if not self._settings.allow_inspection:
            raise ProtocolError("unknown_type", "inspect is off; start the server with allow_inspection=true")
        seed = self._settings.engine.seed
        inputs, inference = self._engine.inspect(observation, seed)
        said = {"inputs": inputs, "seed": seed, "actions": inference.actions}
        return Reply({"type": "inspection", **said}, stages=arrival.stages)

    def _act(self, observation: Observation, arrival: Arrival, ticket: Ticket) -> Reply:
        """An observation's way to an action; whatever is in doubt raises on it."""
        stages, hz, now = arrival.stages, self._settings.control_hz, float(observation.timestamps[-1])
        line = self._describe(observation, arrival)
        try:
            age = self._freshness.check(observation, arrival.received)
            remainder = None if self._served is None else self._served.remainder(now, hz)
            if ticket.expired:
                return self._late(arrival, line, observation)
            line["timing"]["infer_start"] = time.monotonic()
            inference = self._engine.infer(observation, line["seed"], remainder, stages)
            line["timing"]["infer_end"] = time.monotonic()
            line["predicted"] = {"values": _loggable(inference.sequence), "first": inference.first}
            if not np.isfinite(inference.sequence).all():
                raise MotionRefusedError("not finite", "the denoised sequence holds NaN or infinity")
            seam = None if self._served is None else self._served.seam(inference.sequence, now, hz)
            with stages.measure("guard"):
                executed = None if self._served is None else self._served.elapsed(now, hz)
                pose, gripper = observation.poses[-1], float(observation.grippers[-1, 0])
                guarded = self._guard.check(inference.actions, pose, executed, gripper)
            warnings = self._warnings(observation)
        except MotionRefusedError as error:
            return self._refuse_observation("refused", f"{error.limit}: {error}", arrival, line, observation)
        except ProtocolError as error:
            return self._refuse_observation(error.code, str(error), arrival, line, observation)
        if not ticket.claim():
            return self._late(arrival, line, observation)
        self._served = ServedChunk(inference.sequence, inference.first, now)
        self._guard.accept(guarded)
        if self._settings.engine.warm_start and remainder is not None:
            line["remainder"] = remainder.tolist()
        reply = self._action(inference, guarded, observation, seam, warnings, stages)
        line |= {"action": {"values": guarded.actions.tolist()}, "age_s": age, "encoded": inference.encoded}
        line |= {name: reply[name] for name in ("interventions", "warnings", "seam")}
        self._step += 1
        return Reply(reply, line=line, images=observation.images, stages=stages)

    def _refuse_observation(
        self, code: ErrorCode, message: str, arrival: Arrival, line: dict[str, Any], observation: Observation
    ) -> Reply:
        """With the observation in the log, so that it can be looked at; it is no step."""
        reply = self.refuse(code, message, arrival, _no_step(line))
        reply.images = observation.images
        return reply

    def _late(self, arrival: Arrival, line: Mapping[str, Any], observation: Observation) -> Reply:
        """For the log alone: the client has had its error."""
        reply = self._error("late", "its answer was not waited for", arrival, _no_step(line))
        reply.images = observation.images
        return reply

    def _action(
        self,
        inference: Inference,
        guarded: GuardedChunk,
        observation: Observation,
        seam: Seam | None,
        warnings: list[str],
        stages: Stages,
    ) -> dict[str, Any]:
        """The reply that moves the arm. Old clients read "action" alone."""
        start, hz = float(observation.timestamps[-1]), self._settings.control_hz
        return {
            **action_reply(guarded.actions),
            "step": self._step,
            "timestamps": [start + i / hz for i in range(len(guarded.actions))],
            "interventions": dict(guarded.interventions),
            "warnings": warnings,
            "seam": None if seam is None else asdict(seam),
            "server_timing": {f"{name}_ms": round(ms, 3) for name, ms in stages.milliseconds.items()},
        }

    def _warnings(self, observation: Observation) -> list[str]:
        found = self._engine.outside_training(observation, self._settings.range_margin)
        spacing = np.diff(observation.timestamps)
        period = 1 / self._settings.control_hz
        if spacing.size and np.abs(spacing / period - 1).max() > 0.5:
            found.append(f"frames are {spacing.tolist()} s apart; expected {period:.3f} s")
        if self._log is not None and self._log.stopped:
            found.append(self._log.stopped)
        return found

    def _describe(self, observation: Observation, arrival: Arrival) -> dict[str, Any]:
        """The line of a step, as far as it is known before the policy has run."""
        states = observation.states
        seen = {"state": states[-1].tolist(), "states": states.tolist(), "timestamps": observation.timestamps.tolist()}
        times = self._times(arrival)
        times["timing"]["client_obs"] = float(observation.timestamps[-1])
        if observation.send_timestamp is not None:
            times["timing"]["client_send"] = observation.send_timestamp
        entropy = [self._settings.engine.seed, self._episode, self._requests]
        self._requests += 1
        return {
            "step": self._step,
            "episode": self._episode,
            "request": self._requests - 1,
            "seed": int(np.random.SeedSequence(entropy).generate_state(1)[0]),
            "input": seen,
            **times,
        }

    def _times(self, arrival: Arrival) -> dict[str, Any]:
        return {"timing": {"server_recv": arrival.received}}


def _no_step(line: Mapping[str, Any]) -> dict[str, Any]:
    """An observation's line without the number that only answered ones have."""
    return {name: value for name, value in line.items() if name != "step"}


def _loggable(sequence: FloatArray) -> list[list[float | None]]:
    """Numbers for JSON, which has no NaN: None in its place."""
    return [[value if math.isfinite(value) else None for value in row] for row in sequence.tolist()]
