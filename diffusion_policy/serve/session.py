"""One robot's session: answers each message with one reply. Both transports share it; it uses no sockets.

States and their transitions (docs/serving.md has a diagram):

    NEW     -- hello with the token, or any message where none is needed, and the robot lock is free --> READY
    READY   -- observation --> an action, or an error; READY
    READY   -- reset, or an observation of a new episode --> READY, a new episode
    any     -- busy, internal, too many errors in a row --> RESTING: the robot lock is free for others
    RESTING -- any valid message, and the robot lock is free --> READY, a new episode
    any     -- oversized, unauthorized, client gone or silent --> ENDED

Every message gets exactly one reply. An action is sent only if all checks passed, and only if the server has not given
up waiting for it: `PendingReply` decides that once, so an answer that was reported as late is never sent later.
"""

from __future__ import annotations

import hmac
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_scale import find_scales
from diffusion_policy.policy.noise import noise_seed
from diffusion_policy.run_log.session_log import Images, SessionLog
from diffusion_policy.serve.checks.cameras import CameraMonitors
from diffusion_policy.serve.checks.freshness import Freshness
from diffusion_policy.serve.checks.motion_guard import GuardedChunk, MotionGuard, MotionRefusedError
from diffusion_policy.serve.checks.seams import Seam, ServedChunk
from diffusion_policy.serve.engine import Engine
from diffusion_policy.serve.settings import ServeSettings
from diffusion_policy.serve.stages import GivenUpError, Stages
from diffusion_policy.serve.step_lines import describe_observation, loggable, times_of, without_step
from diffusion_policy.serve.transport.continuation import CONTINUATIONS, REQUEST_ID, check_supported
from diffusion_policy.serve.transport.inbox import is_superseded
from diffusion_policy.serve.transport.protocol import (
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
from diffusion_policy.serve.transport.request import Arrival, PendingReply, Reply, Request
from diffusion_policy.spec import GRIPPER

logger = logging.getLogger(__name__)

NOT_WAITED_FOR = {"late": "its answer was not waited for", "gone": "its client had hung up before the answer was ready"}


class RobotLock:
    """The lock on the robot; the first session with a valid message holds it until it ends or rests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.holder: Session | None = None

    def take(self, session: Session) -> bool:
        """Takes the lock if it is free; returns whether this session holds it. An ended session cannot take it."""
        with self._lock:
            if self.holder is None and not session.ended:
                self.holder = session
            return self.holder is session

    def release(self, session: Session, *, ended: bool) -> None:
        """Releases the lock; ``ended``: this session can never take it again."""
        with self._lock:
            session.ended = session.ended or ended
            if self.holder is session:
                self.holder = None


class Session:
    """The state of one connection between its messages.

    Args:
        engine: the policy.
        settings: deadline, limits, rates.
        guard: motion guard of this session.
        robot_lock: lock on the robot, shared by all of the server's sessions.
        log: log of this session; None to log nothing.
        token: token that a hello must give; None if none is required.
        authorized: whether the transport has already checked the token.

    Attributes:
        ended: whether its connection is closed.
        resting: whether it has released the lock after an error that ends a session, with its connection still open.
        late: event that is set once the last late answer is in the log; None if there was none.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ServeSettings,
        guard: MotionGuard,
        robot_lock: RobotLock,
        log: SessionLog | None = None,
        *,
        token: str | None = None,
        authorized: bool = False,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._guard = guard
        self._robot_lock = robot_lock
        self._log = log
        self._token = token
        self._authorized = authorized or self._token is None or settings.allow_unauthenticated
        self._freshness = Freshness(settings.max_age_s, 1 / settings.control_hz)
        self._gripper = settings.gripper
        self._grippers: deque[float] = deque(maxlen=1000)  # as measured, to infer their scale
        self._layout = engine.form.layout
        described = engine.describe()
        self._cameras = CameraMonitors.of(described, settings, engine.form)
        self._continuations = tuple(described.get(CONTINUATIONS, ()))
        self._warned: set[str] = set()
        self._served: ServedChunk | None = None
        self._step, self._episode, self._requests = 0, 0, 0
        self._errors_in_a_row = 0
        self.ended = self.resting = False
        self.late: threading.Event | None = None

    def metadata(self) -> dict[str, Any]:
        """Returns the metadata for a new client: names, units, horizon, rate, checkpoint hash, limits."""
        return {
            "type": "metadata",
            **self._engine.describe(),
            "control_hz": self._settings.control_hz,
            "deadline_s": self._settings.deadline_s,
            "gripper_scale": self._gripper.name,
            "guard": self._guard.limits.to_json(),
            "log_stopped": None if self._log is None else self._log.stopped,
        }

    def answer(self, request: Request, behind: Callable[[], Sequence[Request]], pending: PendingReply) -> Reply:
        """Reads a message and answers it. Never raises: every failure becomes an error reply here.

        ``behind`` returns the requests that arrived since; a newer observation among them supersedes this one. Runs in
        the server's one worker thread.
        """
        arrival = request.arrival
        arrival.stages.wanted = lambda: not pending.expired
        try:
            message = request.message()
            if pending.expired:  # it expired while waiting for the worker, and must not take the robot lock
                line = describe_observation(message, arrival) if isinstance(message, Observation) else {}
                return self._give_up(pending, arrival, line)
            self._admit(message)
            if isinstance(message, Observation) and is_superseded(message, behind()):
                return self._supersede(message, arrival)
            reply = self._answer(message, arrival, pending)
        except ProtocolError as error:
            return self.refuse(error.code, str(error), arrival)
        except WorkspaceError as error:
            return self.refuse("bad_state", str(error), arrival)
        except Exception:  # the only broad one: after any failure the arm must get no action
            if self._is_logged():
                logger.exception("the session failed and ends")
            return self.refuse("internal", "the server failed on this message; its log says why", arrival)
        if reply.message["type"] != "error":
            self._errors_in_a_row = 0
        return reply

    def refuse(self, code: ErrorCode, message: str, arrival: Arrival, line: dict[str, Any] | None = None) -> Reply:
        """Returns an error reply, with its line for the log."""
        self._errors_in_a_row += 1
        limit = self._settings.traffic.errors_in_a_row
        ends = code in ENDING or self._errors_in_a_row >= limit
        if self._is_logged():
            logger.warning("%s: %s%s", code, message, "; the session ends" if ends else "")
        if ends:
            self.resting = True
            self._robot_lock.release(self, ended=False)
        return self._error(code, message, arrival, {"in_a_row": self._errors_in_a_row} | (line or {}), ends=ends)

    def _is_logged(self) -> bool:
        """Whether an error is logged: the first ones, then the 32nd, 64th, ..., so that errors cannot fill the disk."""
        count = self._errors_in_a_row
        return count <= self._settings.traffic.errors_in_a_row or count.bit_count() == 1

    def _error(
        self, code: ErrorCode, message: str, arrival: Arrival, line: Mapping[str, Any], *, ends: bool = False
    ) -> Reply:
        event = {"event": "error", "code": code, "message": message, "episode": self._episode, "ends": ends}
        return Reply(error_reply(code, message), ends, {**event, **times_of(arrival), **line}, stages=arrival.stages)

    def record(self, reply: Reply, *, delivered: bool) -> None:
        """Logs a reply after it was sent or could not be sent; rejected connections are not logged."""
        if self._log is None or reply.line is None or reply.line.get("code") in ("busy", "unauthorized"):
            return
        if not self._is_logged():
            return
        timing = {f"{stage}_ms": ms for stage, ms in reply.stages.milliseconds.items()}
        line = {**reply.line, "timing": {**reply.line.get("timing", {}), **timing}, "delivered": delivered}
        with reply.stages.measure("log"):
            self._log.write(line, reply.images)

    def end(self, patience_s: float = 5.0) -> None:
        """Releases the lock and finishes the log; waits up to ``patience_s`` for a late answer to be logged."""
        self._robot_lock.release(self, ended=True)
        if self._guard.totals:
            logger.info("the guard of this session: %s", ", ".join(f"{n} x {k}" for k, n in self._guard.totals.items()))
        if self.late is not None:
            self.late.wait(patience_s)
        self._cameras.close()
        if self._log is not None:
            self._log.close()

    # ---- inside ----

    def _admit(self, message: Message) -> None:
        """Checks the token, then takes the robot lock; raises ProtocolError if either is refused."""
        if isinstance(message, Hello) and self._token is not None and message.token is not None:
            if not hmac.compare_digest(message.token.encode("utf-8", "surrogatepass"), self._token.encode()):
                raise ProtocolError("unauthorized", "wrong token")
            self._authorized = True
        if not self._authorized:
            raise ProtocolError("unauthorized", "this server wants a hello with its token first")
        if not self._robot_lock.take(self):
            raise ProtocolError("busy", "another robot is being served")
        if self.resting:
            self.resting = False
            self._begin_episode()

    def _begin_episode(self) -> None:
        """Forgets the last chunk and the last gripper command, since the arm may have been moved."""
        self._episode, self._requests, self._served = self._episode + 1, 0, None
        self._guard.reset()
        self._cameras.reset()

    def _answer(self, message: Message, arrival: Arrival, pending: PendingReply) -> Reply:
        match message:
            case Hello():
                return Reply(self.metadata(), stages=arrival.stages)
            case Reset():
                self._begin_episode()
                self._freshness.reset()
                event = {"event": "reset", "episode": self._episode}
                return Reply({"type": "reset_ack"}, line=event | times_of(arrival), stages=arrival.stages)
            case Observation():
                scale = self._gripper.measured or self._gripper.command
                observation = self._engine.form.with_grippers(message, scale.to_internal)
                observation = self._engine.form.with_continued(observation, self._gripper.command.to_internal)
                if observation.inspect:
                    return self._inspect(observation, arrival)
                return self._act(observation, arrival, pending)

    def _inspect(self, observation: Observation, arrival: Arrival) -> Reply:
        if not self._settings.allow_inspection:
            raise ProtocolError("unknown_type", "inspect is off; start the server with allow_inspection=true")
        seed = self._settings.engine.seed
        inputs, inference = self._engine.inspect(observation, seed)
        content = {"inputs": inputs, "seed": seed, "actions": inference.actions}
        return Reply({"type": "inspection", **content}, stages=arrival.stages)

    def _act(self, observation: Observation, arrival: Arrival, pending: PendingReply) -> Reply:
        """Answers an observation with an action; every failed check raises an error."""
        stages, hz, now = arrival.stages, self._settings.control_hz, float(observation.timestamps[-1])
        self._freshness.check_unit(observation, arrival.received)
        began = self._freshness.new_episode(observation, arrival.received)
        if began is not None:
            self._begin_episode()
        line = self._describe(observation, arrival)
        try:
            check_supported(observation.continuation, self._continuations)
            age = self._freshness.check(observation, arrival.received, time.monotonic())
            remainder = None if self._served is None else self._served.remainder(now, hz)
            with stages.measure("decode"):
                decoded, warnings = self._cameras.check(observation)
            warnings = [*([] if began is None else [began]), *warnings, *self._warnings(observation)]
            stages.check()
            line["timing"]["infer_start"] = time.monotonic()
            inference = self._engine.infer(decoded, line["seed"], remainder, stages)
            line["timing"]["infer_end"] = time.monotonic()
            line["predicted"] = {"values": loggable(inference.sequence), "first": inference.first}
            if not np.isfinite(inference.sequence).all():
                raise MotionRefusedError("not finite", "the denoised sequence holds NaN or infinity")
            continued = observation.continuation
            committed = continued.committed if continued is not None and continued.mode == "rtc" else 0
            seam = None if self._served is None else self._served.seam(inference.sequence, now, hz, committed)
            with stages.measure("guard"):
                executed = None if self._served is None else self._served.elapsed(now, hz)
                state = observation.states[-1]
                guarded = self._guard.check(inference.actions, state, executed, self._layout.grippers(state))
        except MotionRefusedError as error:
            return self._refuse_observation("refused", f"{error.limit}: {error}", arrival, line, observation)
        except ProtocolError as error:
            return self._refuse_observation(error.code, str(error), arrival, line, observation)
        except GivenUpError:
            return self._give_up(pending, arrival, line, observation.images)
        if not pending.claim():
            return self._give_up(pending, arrival, line, observation.images)
        self._served = ServedChunk(inference.sequence, inference.first, now, self._layout)
        self._guard.accept(guarded)
        if self._settings.engine.warm_start and remainder is not None:
            line["remainder"] = remainder.tolist()
        self._log_warnings(warnings)
        reply = self._action(guarded, observation, seam, warnings, stages)
        line |= {"action": {"values": guarded.actions.tolist()}, "age_s": age, "encoded": inference.encoded}
        line |= {"threads": inference.threads} if inference.threads else {}
        line |= {name: reply[name] for name in ("interventions", "warnings", "seam")}
        self._step += 1
        return Reply(reply, line=line, images=observation.images, stages=stages)

    def _refuse_observation(
        self, code: ErrorCode, message: str, arrival: Arrival, line: dict[str, Any], observation: Observation
    ) -> Reply:
        """Refuses an observation; it is logged for inspection but does not count as a step."""
        reply = self.refuse(code, message, arrival, without_step(line))
        reply.images = observation.images
        return reply

    def _supersede(self, observation: Observation, arrival: Arrival) -> Reply:
        """Refuses a superseded observation; this is not the client's fault and does not count as one of its errors."""
        message = "a newer observation was waiting when this one's turn came; only the newest is answered"
        return self._error("superseded", message, arrival, describe_observation(observation, arrival))

    def _give_up(self, pending: PendingReply, arrival: Arrival, line: Mapping[str, Any], images: Images = ()) -> Reply:
        """Returns a reply for the log only: the client has already received an error, or is gone."""
        reply = self._error("late", NOT_WAITED_FOR[pending.outcome or "late"], arrival, without_step(line))
        reply.images, reply.withheld = images, True
        return reply

    def _action(
        self,
        guarded: GuardedChunk,
        observation: Observation,
        seam: Seam | None,
        warnings: list[str],
        stages: Stages,
    ) -> dict[str, Any]:
        """Returns the reply with actions, the gripper in the robot's scale. Old clients read only "action"."""
        start, hz = float(observation.timestamps[-1]), self._settings.control_hz
        commands = self._gripper.command.from_internal(self._layout.grippers(guarded.actions))
        actions = self._layout.replaced(guarded.actions, grippers=commands)
        return {
            **action_reply(actions),
            **({} if observation.request_id is None else {REQUEST_ID: observation.request_id}),
            "step": self._step,
            "timestamps": [start + i / hz for i in range(len(guarded.actions))],
            "interventions": dict(guarded.interventions),
            "warnings": warnings,
            "seam": None if seam is None else seam.to_json(),
            "server_timing": {f"{name}_ms": round(ms, 3) for name, ms in stages.milliseconds.items()},
        }

    def _warnings(self, observation: Observation) -> list[str]:
        """Returns warnings about an observation; raises ProtocolError where the settings refuse it."""
        result = self._engine.outside_training(observation, self._settings.range_margin)
        self._grippers.extend(self._layout.grippers(observation.states[-1]).tolist())
        if self._settings.gripper_scale is None and any(f"{GRIPPER} is " in sentence for sentence in result):
            advice = find_scales(self._grippers).advice("gripper_scale=")
            result.append(f"if the robot's gripper uses a scale other than 0 closed to 1 open, declare it: {advice}")
        if result and self._settings.on_unseen_state == "refuse":
            raise ProtocolError("bad_state", "; ".join(result))
        spacing = np.diff(observation.timestamps)
        period = 1 / self._settings.control_hz
        if spacing.size and np.abs(spacing / period - 1).max() > 0.5:
            result.append(f"frames are {spacing.tolist()} s apart; expected {period:.3f} s")
        if self._log is not None and self._log.stopped:
            result.append(self._log.stopped)
        return result

    def _log_warnings(self, warnings: Sequence[str]) -> None:
        """Logs each kind of warning once on the server, since old clients do not read them."""
        for warning in warnings:
            kind = re.sub(r"[\d.]+", "", warning)
            if kind not in self._warned:
                self._warned.add(kind)
                logger.warning("warning to the client: %s", warning)

    def _describe(self, observation: Observation, arrival: Arrival) -> dict[str, Any]:
        """Returns the log line of a step, as far as it is known before the policy runs."""
        seed = noise_seed(self._settings.engine.seed, self._episode, self._requests)
        self._requests += 1
        return {
            "step": self._step,
            "episode": self._episode,
            "request": self._requests - 1,
            "seed": seed,
            **describe_observation(observation, arrival),
        }
