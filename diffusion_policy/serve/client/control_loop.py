"""The control loop: observes, requests chunks without waiting for them, and commands the arm by absolute time.

    loop = ControlLoop(arm, requester, form, make_strategy("skip", 6), LoopSettings(control_hz=50))
    loop.run(lambda: done)

In every control period one thing happens to the arm: ``move``, if a fresh step of a chunk is due, else ``hold``. On any
doubt (a camera that stopped, a clock that jumped, an answer that is an error, late or missing, a control period that
took too long) what was planned is forgotten at once, the arm holds, and the next chunk is computed from what is
observed afterward. Nothing ends the loop but ``is_done`` and errors of the program; the arm is stopped either way.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.spatial.transform  # noqa: F401  # rotations import it when they need it: not in a control period
from numpy.typing import NDArray

from diffusion_policy.serve.checks.seams import Seam, measure_seam
from diffusion_policy.serve.client.arm import Arm, ArmError
from diffusion_policy.serve.client.arm_log import FORMAT, VERSION, LineSink, LinesInMemory
from diffusion_policy.serve.client.clock import Clock, RealClock
from diffusion_policy.serve.client.command_history import CommandHistory
from diffusion_policy.serve.client.gripper_gate import GripperGate
from diffusion_policy.serve.client.loop_settings import LoopSettings
from diffusion_policy.serve.client.messages import Chunk, ServerError
from diffusion_policy.serve.client.observation_buffer import DoubtCode, DoubtError, ObservationBuffer
from diffusion_policy.serve.client.plan import Plan, TimedChunk
from diffusion_policy.serve.client.requester import ChunkRequest, PolicyForm, Requester
from diffusion_policy.serve.client.smoothing import smoothed
from diffusion_policy.serve.client.strategies import ChunkStrategy, Moment

FloatArray = NDArray[np.float64]
HoldReason = (
    DoubtCode
    | Literal[
        "waiting",  # nothing to execute: the answer is not there yet
        "no_answer",  # a request was not answered in time
        "server_error",  # the answer was an error
        "too_old",  # the step that is due answers an observation that is too old
        "gap",  # a control period took too long
        "arm_error",  # the arm did not answer, or took no command
    ]
)
_DELAYS = 10  # so many of the last answers tell when the next one comes


class _Hold(NamedTuple):
    """Why the arm must hold."""

    reason: HoldReason
    message: str


class ControlLoop:
    """Runs an arm.

    Args:
        arm: the robot, or an adapter of a simulator or recording.
        requester: sends requests.
        form: what the served policy observes and commands.
        strategy: what happens between two chunks.
        settings: limits and rates.
        clock: of arm, requester and loop.
        log: takes what was sent to the arm; see ``arm_log``.
        run_id: the beginning of the names of its requests.
        about: further entries of the log's first line.

    Raises:
        ServerError: ``unsupported``: the policy lacks the continuation that the strategy's requests carry.

    Attributes:
        moves: number of control periods in which the arm was commanded to move.
        holds: number of those in which it was held, by reason.
        missed: number of those that passed without either, because another took too long.
    """

    def __init__(
        self,
        arm: Arm,
        requester: Requester,
        form: PolicyForm,
        strategy: ChunkStrategy,
        settings: LoopSettings,
        *,
        clock: Clock | None = None,
        log: LineSink | None = None,
        run_id: str | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if strategy.mode is not None and strategy.mode not in form.continuations:
            offered = " and ".join(form.continuations) or "none"
            raise ServerError(
                "unsupported",
                f"the strategy {strategy.name} needs a policy that continues chunks by {strategy.mode}; the served one "
                f"offers {offered}: choose wait, skip or ensemble",
            )
        self.moves, self.missed, self.holds = 0, 0, Counter[HoldReason]()
        self._arm, self._requester, self._form = arm, requester, form
        self._strategy, self._settings = strategy, settings
        self._clock = RealClock() if clock is None else clock
        self._log: LineSink = LinesInMemory() if log is None else log
        self._run_id = f"{datetime.now():%m%d%H%M%S}" if run_id is None else run_id
        self._about = {} if about is None else dict(about)
        self._buffer = ObservationBuffer(settings.buffer(form))
        self._gate = GripperGate(form.layout, settings.gripper_blocking_s)
        self._history = CommandHistory(form.layout, settings.period_s)
        self._plan: Plan | None = None
        self._query: ChunkRequest | None = None  # under way, and its answer will be executed
        self._sent_at, self._retry_at, self._still_since, self._last = -math.inf, -math.inf, -math.inf, math.nan
        self._forgot_at = -math.inf
        self._abandoned = False
        self._requests, self._name = 0, ""
        self._delays: deque[float] = deque(maxlen=_DELAYS)
        self._commanded: FloatArray | None = None  # in the last control period
        self._held: HoldReason | None = None

    def run(self, is_done: Callable[[], bool]) -> None:
        """Runs until ``is_done``, which is asked once a control period.

        Raises:
            Exception: an error of the program, of ``is_done``, or of the arm that is no ``ArmError``.
        """
        start = self._clock.now()
        period, ticks = self._settings.period_s, 0
        try:
            self._write_start(start)
            while not is_done():
                self.tick()
                due = math.floor((self._clock.now() - start) / period + 1e-6) + 1
                self.missed += max(0, due - ticks - 1)
                ticks = max(due, ticks + 1)
                self._clock.sleep_until(start + ticks * period)
        finally:
            try:
                self._arm.stop()
            finally:
                self._requester.close()
                ended = {"event": "end", "time": self._clock.now(), "moves": self.moves}
                self._log.write({**ended, "holds": dict(self.holds), "missed": self.missed})
                self._log.close()

    def tick(self) -> None:
        """One control period: moves the arm or holds it."""
        doubt = self._observe()
        now = self._clock.now()
        if doubt is not None:
            self._forget(now)
        doubt = self._collect(now) or doubt  # an answer is taken from its connection in any case
        if doubt is None:
            doubt = self._request(now) or self._act(now)
        if doubt is not None:
            self._hold(doubt)

    # ---- inside ----

    def _observe(self) -> _Hold | None:
        """Takes in a reading; returns why the arm must hold."""
        try:
            reading = self._arm.observe()
        except ArmError as error:
            return _Hold("arm_error", str(error))
        now = self._clock.now()
        gap, self._last = now - self._last, now
        try:
            if gap < 0:
                self._buffer.reset()
                self._history.clear()
                self._sent_at, self._retry_at, self._still_since = now, now, min(now, self._still_since)
                raise DoubtError("clock", f"the loop's clock went back by {-gap:.3f} s")
            self._buffer.add(reading, now)
            if gap > self._settings.gap_s:
                limit = self._settings.gap_s
                return _Hold("gap", f"a control period took {gap:.3f} s; the limit is {limit:g} s")
            self._buffer.check(now)
        except DoubtError as error:
            return _Hold(error.code, str(error))
        return None

    def _act(self, now: float) -> _Hold | None:
        """Commands what is due; returns why the arm must hold."""
        target = None if self._plan is None else self._plan.target(now, self._settings.period_s)
        if target is None:
            return _Hold("waiting", "no step is left; the next answer is not there yet")
        age, limit = now - target.observed_at, self._settings.max_action_age_s
        if age > limit:
            self._forget(now)
            return _Hold("too_old", f"what is due answers what was seen {age:.3f} s ago; the limit is {limit:g} s")
        action = self._gate.passed(target.action, now, self._buffer.newest_state)
        try:
            self._arm.move(action)
        except ArmError as error:
            self._forget(now)
            return _Hold("arm_error", str(error))
        self.moves += 1
        self._history.add(now, action)
        self._held, self._commanded, self._still_since = None, action, now + self._settings.period_s
        moved = {"event": "move", "time": now, "action": action.tolist(), "request_id": target.request_id}
        self._log.write({**moved, "step": target.step, "age_s": age})
        return None

    def _hold(self, hold: _Hold) -> None:
        """Holds the arm for this control period."""
        self._commanded = None
        try:
            self._arm.hold(hold.message)
        except ArmError as error:  # its own watchdog has to hold it now
            hold = _Hold("arm_error", f"{hold.message}; and the arm took no command to hold: {error}")
        self.holds[hold.reason] += 1
        if self._held != hold.reason:
            self._log.write({"event": "hold", "time": self._clock.now(), **hold._asdict()})
        self._held = hold.reason

    def _forget(self, now: float) -> None:
        """Forgets what is planned, and that an answer is waited for; only what is captured from now on counts."""
        self._plan, self._query, self._forgot_at = None, None, now

    def _request(self, now: float) -> _Hold | None:
        """Starts a request, if the strategy wants one and none is under way; returns why the arm must hold."""
        if self._requester.is_busy or now < self._retry_at:
            return None
        delays = self._delays or [self._settings.expected_delay_s]
        known = self._buffer.known_until
        wanted = self._strategy.wants(self._plan, now, statistics.median_low(delays)) and known > self._forgot_at
        if not wanted or known < self._strategy.observe_after(self._plan):
            return None
        try:
            seen = self._buffer.observation(now)
        except DoubtError as error:
            self._forget(now)
            return _Hold(error.code, str(error))
        latest = seen.observed_at + max(delays)
        continued = self._strategy.continuation(self._plan, seen.observed_at, latest, self._history.step)
        query = ChunkRequest(f"{self._run_id}-{self._requests}", seen, continued)
        self._requests += 1
        self._query, self._name, self._sent_at, self._abandoned = query, query.request_id, now, False
        committed = None if continued is None else continued.committed
        asked = {"event": "request", "request_id": query.request_id, "time": now, "observed_at": seen.observed_at}
        self._log.write({**asked, "ages_s": dict(seen.ages_s), "committed": committed})
        self._requester.start(query)
        return self._collect(now)  # of a requester that answers at once

    def _collect(self, now: float) -> _Hold | None:
        """Takes the answer that has come; returns why the arm must hold."""
        answer = self._requester.poll()
        if answer is None:
            waited = now - self._sent_at
            if self._abandoned or not self._requester.is_busy or waited <= self._settings.answer_timeout_s:
                return None
            self._abandoned = True
            self._requester.abandon()
            self._forget(now)
            return _Hold("no_answer", f"{self._name} was not answered for {waited:.3f} s")
        query, self._query = self._query, None
        if isinstance(answer, Chunk) and query is not None:
            answer = self._checked(answer, query)
        if isinstance(answer, ServerError):
            self._retry_at = now + self._settings.retry_s
            self._log_error(now, answer.code, str(answer))
            if query is None:
                return None
            self._forget(now)
            return _Hold("server_error", str(answer))
        if query is None:
            self._log_error(now, "discarded", "it answers what was seen before the arm held")
        else:
            self._take_over(answer, query, now)
        return None

    def _log_error(self, now: float, code: str, message: str) -> None:
        failed = {"event": "error", "request_id": self._name, "time": now}
        self._log.write({**failed, "code": code, "message": message})

    def _checked(self, answer: Chunk, query: ChunkRequest) -> Chunk | ServerError:
        """Refuses a chunk that is not for what was observed."""
        period = 1 / self._form.control_hz
        expected = query.observation.observed_at + period * np.arange(len(answer.actions))
        if np.abs(answer.timestamps - expected).max() > period / 2:
            first, wanted = answer.timestamps[0], expected[0]
            return ServerError("malformed", f"the answer is for {first:.3f} s; expected {wanted:.3f} s")
        norms = np.linalg.norm(self._form.layout.rotations(answer.actions), axis=-1)
        if norms.size and not (norms > 0.5).all():  # the server's guard makes them 1
            return ServerError("malformed", "the answer holds a quaternion that is no rotation")
        return answer

    def _take_over(self, answer: Chunk, query: ChunkRequest, now: float) -> None:
        """Turns an answer into the plan."""
        seen, layout = query.observation.observed_at, self._form.layout
        self._delays.append(now - seen)
        chunk = TimedChunk(seen, answer.actions, 1 / self._form.control_hz, seen, query.request_id)
        start = self._start()
        before = self._plan
        merged = self._strategy.merge(before, chunk, Moment(now, self._still_since, start, layout))
        plan = smoothed(merged, self._settings.smoothing)
        first = plan.first if plan.first < len(plan.chunk.actions) else None
        seam = self._seam(before, plan)
        self._plan = plan
        came = {"event": "answer", "request_id": query.request_id, "time": now, "steps": len(answer.actions)}
        step = answer.reply.get("step")
        self._log.write(
            {
                **came,
                "first": first,
                "server_step": step if isinstance(step, int) else None,
                "seam": None if seam is None else seam.to_json(),
            }
        )

    def _seam(self, before: Plan | None, plan: Plan) -> Seam | None:
        """The jump from what the former plan had for the time of the first new step; None where it had nothing."""
        if before is None or plan.first >= len(plan.chunk.actions):
            return None
        moment = plan.chunk.starts_at + plan.first * plan.chunk.period_s
        planned = before.action_at(moment)
        return None if planned is None else measure_seam(planned, plan.chunk.actions[plan.first], plan.layout)

    def _start(self) -> FloatArray:
        """(D,) where the next movement begins: as commanded in the last period, else as measured."""
        if self._commanded is not None:
            return self._commanded
        return self._gate.held(self._buffer.newest_state)

    def _write_start(self, now: float) -> None:
        self._log.write(
            {
                "event": "start",
                "format": FORMAT,
                "version": VERSION,
                "names": list(self._form.layout.names),
                "control_hz": self._settings.control_hz,
                "policy_hz": self._form.control_hz,
                "strategy": self._strategy.name,
                "settings": asdict(self._settings),
                "clock_start": now,
                "wall_start": time.time(),
                **self._about,
            }
        )
