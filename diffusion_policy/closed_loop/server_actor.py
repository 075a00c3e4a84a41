"""The real server between policy and simulator: its protocol, its preprocessing, its motion guard, its deadline.

The simulator's clock stands still while an answer is awaited, so times of observations are simulated ones and the check
of their age is off; everything else is as a robot meets it. Latency is measured from the client's call to its return.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from diffusion_policy.env_runner.actors import Answer, Question
from diffusion_policy.env_runner.simulator import FloatArray, Simulator, SimulatorError
from diffusion_policy.serve.client import LineClient, ServerError
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.engine.wire import Wire
from diffusion_policy.serve.server import listening
from diffusion_policy.serve.settings import ServeSettings, read_settings
from diffusion_policy.serve.transport.host import computing_thread
from diffusion_policy.sim.recorder import encode_jpeg
from diffusion_policy.spec import SpecError

# What a simulated clock makes necessary. The port is a free one.
_SIMULATED = ("port=0", "websocket_port=null", "max_age_s=1e9", "traffic.idle_s=1e9", "log.directory=null")
_PATIENCE_S = 60.0


def serve_settings(checkpoint: Path, config: Path | None, words: Sequence[str]) -> ServeSettings:
    """Settings of the server: a file, then ``key=value`` words, then what a simulated clock makes necessary.

    Raises:
        WorkspaceError: an unknown key or a wrong value.
    """
    fast = ["traffic.messages_per_s=1e6"]  # a simulator asks as fast as it can
    return read_settings(config, [f"ckpt={checkpoint}", *fast, *words, *_SIMULATED])


class ServerActor:
    """Asks a server for one episode at a time.

    Args:
        engine: of the server; tells what the policy reads.
        simulator: gives the frames and the rate.
        port: of the server on this machine.
    """

    def __init__(self, engine: PolicyEngine, simulator: Simulator, port: int) -> None:
        self.spec = engine.policy.spec.robot
        self.n_obs_steps, self.n_action_steps = engine.n_obs_steps, engine.n_action_steps
        self._period, self._port = 1 / simulator.control_hz, port
        self._wire, self._form = Wire(self.spec, engine.semantics), engine.form
        self._client: LineClient | None = None
        self._scene: int | None = None
        self._start = 0.0

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer for each; an error of the server is a refusal."""
        return [self._ask(question) for question in questions]

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _ask(self, question: Question) -> Answer:
        images = {camera: [encode_jpeg(step[camera]) for step in question.history] for camera in self._form.cameras}
        states = self._states(question)
        try:
            client = self._connected(question)
            began = time.perf_counter()
            chunk = client.infer(images, states=states, timestamps=self._times(question))
            latency = time.perf_counter() - began
        except ServerError as error:
            if error.code in ("silent", "closed", "unreachable"):
                self.close()
            return Answer(None, str(error))
        limited = {str(name): int(count) for name, count in chunk.reply.get("interventions", {}).items()}
        return Answer(self._wire.policy_actions(chunk.actions), limited=limited, latency_s=latency)

    def _connected(self, question: Question) -> LineClient:
        """The client, at the start of an episode with a reset before it."""
        if self._client is None:
            self._client = LineClient(port=self._port, timeout=_PATIENCE_S)
        if question.scene != self._scene:
            self._client.reset()
            self._scene, self._start = question.scene, time.time()
        return self._client

    def _times(self, question: Question) -> FloatArray:
        """Simulated times (To,) of the history."""
        steps = question.step + np.arange(1 - self.n_obs_steps, 1)
        return np.asarray(self._start + self._period * steps, dtype=np.float64)

    def _states(self, question: Question) -> FloatArray:
        """(To, D) as messages carry them."""
        observed = {
            entry.key: np.stack([np.asarray(step[entry.key], dtype=np.float64) for step in question.history])
            for entry in self.spec.low_dim
        }
        try:
            return self._wire.measured(observed)
        except SpecError as error:
            raise SimulatorError(str(error)) from error


@contextmanager
def served(settings: ServeSettings, simulator: Simulator) -> Iterator[tuple[ServerActor, PolicyEngine]]:
    """A server of a checkpoint in a thread of this process, and who asks it, while the block lasts.

    Raises:
        WorkspaceError: the checkpoint cannot be served.
    """
    worker = computing_thread()
    engine = worker.submit(PolicyEngine.open, settings.ckpt, settings.engine, settings.limits.image_pixels).result()
    worker.submit(engine.warm_up).result()
    loop, stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    found: dict[str, int] = {}

    async def run() -> None:
        async with listening(engine, settings, worker=worker) as (_, ports):
            found.update(ports)
            ready.set()
            await stop.wait()

    def serve() -> None:
        try:
            loop.run_until_complete(run())
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=serve, name="server", daemon=True)
    thread.start()
    ready.wait()
    if not found:
        raise SimulatorError("the server did not start; its message is above")
    actor = ServerActor(engine, simulator, found["line"])
    told = logging.getLogger("diffusion_policy.serve")
    level = told.level
    told.setLevel(logging.ERROR)  # refusals are counted, not told one by one
    try:
        yield actor, engine
    finally:
        told.setLevel(level)
        actor.close()
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        worker.shutdown()
