"""An actor that asks the real server: with its protocol, preprocessing, motion guard and deadline.

The simulator's clock stands still while a reply is awaited, so observations carry simulated timestamps, and the check
of their age is off; everything else is as for a robot. Latency is measured from the client's call to its return.
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

from diffusion_policy.env_runner.actors import ActionReply, ActionRequest
from diffusion_policy.env_runner.simulator import FloatArray, Simulator, SimulatorError
from diffusion_policy.serve.client import LineClient, ServerError
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.engine.wire import Wire
from diffusion_policy.serve.server import listening
from diffusion_policy.serve.settings import ServeSettings, read_settings
from diffusion_policy.serve.transport.host import computing_thread
from diffusion_policy.sim.recorder import encode_jpeg
from diffusion_policy.spec import SpecError

# Settings that a simulated clock requires; port 0 means any free port.
_SIMULATED = ("port=0", "websocket_port=null", "max_age_s=1e9", "traffic.idle_s=1e9", "log.directory=null")
REPLY_TIMEOUT_S = 60.0


def serve_settings(checkpoint: Path, config: Path | None, words: Sequence[str]) -> ServeSettings:
    """Reads settings of the server: a file, then ``key=value`` words, then those that a simulated clock requires.

    Raises:
        WorkspaceError: a key is unknown or a value is wrong.
    """
    fast = ["traffic.messages_per_s=1e6"]  # a simulator asks as fast as it can
    return read_settings(config, [f"ckpt={checkpoint}", *fast, *words, *_SIMULATED])


class ServerActor:
    """Asks a server for one episode at a time.

    Args:
        engine: engine of the server, with the policy's observation keys.
        simulator: the source of frames, and of the control rate.
        port: port of the server on this machine.

    Attributes:
        wire: the numbers of the policy's messages.
        port: as given.
    """

    def __init__(self, engine: PolicyEngine, simulator: Simulator, port: int) -> None:
        self.spec = engine.policy.spec.robot
        self.n_obs_steps, self.n_action_steps = engine.n_obs_steps, engine.n_action_steps
        self._period, self.port = 1 / simulator.control_hz, port
        self.wire, self._form = Wire(self.spec, engine.semantics), engine.form
        self._client: LineClient | None = None
        self._scene: int | None = None
        self._start = 0.0

    def answer(self, requests: Sequence[ActionRequest]) -> list[ActionReply]:
        """Returns one reply for each request; an error of the server is a refusal."""
        return [self._ask(request) for request in requests]

    def close(self) -> None:
        """Closes the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _ask(self, request: ActionRequest) -> ActionReply:
        images = {camera: [encode_jpeg(step[camera]) for step in request.history] for camera in self._form.cameras}
        states = self._states(request)
        try:
            client = self._connected(request)
            began = time.perf_counter()
            chunk = client.infer(images, states=states, timestamps=self._times(request))
            latency = time.perf_counter() - began
        except ServerError as error:
            if error.code in ("silent", "closed", "unreachable"):
                self.close()
            return ActionReply(None, str(error))
        limited = {str(name): int(count) for name, count in chunk.reply.get("interventions", {}).items()}
        return ActionReply(self.wire.policy_actions(chunk.actions), limited=limited, latency_s=latency)

    def _connected(self, request: ActionRequest) -> LineClient:
        """Returns the connected client, after a reset if an episode starts."""
        if self._client is None:
            self._client = LineClient(port=self.port, timeout=REPLY_TIMEOUT_S)
        if request.scene != self._scene:
            self._client.reset()
            self._scene, self._start = request.scene, time.time()
        return self._client

    def _times(self, request: ActionRequest) -> FloatArray:
        """Returns simulated timestamps (To,) of the history."""
        steps = request.step + np.arange(1 - self.n_obs_steps, 1)
        return np.asarray(self._start + self._period * steps, dtype=np.float64)

    def _states(self, request: ActionRequest) -> FloatArray:
        """Returns states (To, D) in the order of the protocol."""
        observed = {
            entry.key: np.stack([np.asarray(step[entry.key], dtype=np.float64) for step in request.history])
            for entry in self.spec.low_dim
        }
        try:
            return self.wire.measured(observed)
        except SpecError as error:
            raise SimulatorError(str(error)) from error


@contextmanager
def served(settings: ServeSettings, simulator: Simulator) -> Iterator[tuple[ServerActor, PolicyEngine]]:
    """Runs a server of a checkpoint in a thread of this process; yields an actor that asks it, and its engine.

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
        raise SimulatorError("the server did not start; its error message is printed above")
    actor = ServerActor(engine, simulator, found["line"])
    server_logger = logging.getLogger("diffusion_policy.serve")
    level = server_logger.level
    server_logger.setLevel(logging.ERROR)  # refusals are counted, not logged one by one
    try:
        yield actor, engine
    finally:
        server_logger.setLevel(level)
        actor.close()
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        worker.shutdown()
