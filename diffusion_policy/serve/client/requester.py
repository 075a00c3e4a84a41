"""Requests that do not keep the control loop waiting: started in one control period, answered in a later one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.moved import former_names
from diffusion_policy.serve.client.clock import Clock
from diffusion_policy.serve.client.connections import LineClient, WebSocketClient
from diffusion_policy.serve.client.messages import Asked, Chunk, ServerError
from diffusion_policy.serve.client.observation_buffer import AlignedObservation
from diffusion_policy.serve.transport.continuation import CONTINUATIONS, Continuation
from diffusion_policy.spec import POSE_GRIPPER, ActionLayout

FloatArray = NDArray[np.float64]
# After these the connection is another one, so the next request begins an episode.
_LOST = frozenset({"silent", "closed", "unreachable", "malformed"})
# What must not change while a robot is moving: another policy behind the same address.
_IDENTITY = ("checkpoint_sha256", "state_names", "cameras", "n_obs_steps", "control_hz")


@dataclass(frozen=True)
class PolicyForm:
    """What a served policy observes and commands, from the server's metadata.

    Attributes:
        layout: of states and actions.
        cameras: keys of its cameras.
        n_obs_steps: steps that it observes.
        n_action_steps: steps of a chunk.
        control_hz: of its steps.
        continuations: kinds of continuation that it has.
    """

    layout: ActionLayout
    cameras: tuple[str, ...]
    n_obs_steps: int
    n_action_steps: int
    control_hz: float
    continuations: tuple[str, ...]

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> PolicyForm:
        """Reads it; ServerError (malformed) where an entry is missing or no number."""
        asked = Asked.of(metadata)
        try:
            counts = [int(metadata[key]) for key in ("n_obs_steps", "n_action_steps")]
            hz = float(metadata["control_hz"])
            offered = tuple(str(mode) for mode in metadata.get(CONTINUATIONS, ()))
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError("malformed", f"the server's metadata lacks what the loop needs: {error!r}") from error
        if min(counts) < 1 or not 0 < hz < 1e6:
            raise ServerError("malformed", f"the server's metadata has n_obs_steps, n_action_steps {counts}, {hz} Hz")
        names = POSE_GRIPPER if asked.state_names is None else asked.state_names
        units = (metadata.get("action_semantics") or {}).get("units")
        layout = ActionLayout.of(names, units if isinstance(units, Mapping) else None)
        return cls(layout, asked.cameras, counts[0], counts[1], hz, offered)


@dataclass(frozen=True)
class ChunkRequest:
    """One request.

    Attributes:
        request_id: its name, in the logs of loop and server.
        observation: what was observed.
        continuation: what remains of the chunk under execution.
    """

    request_id: str
    observation: AlignedObservation
    continuation: Continuation | None = None


class PolicyClient:
    """Asks a server, waiting for its answer. An episode begins with the first query, and after every lost connection.

    Args:
        client: connected.
    """

    def __init__(self, client: LineClient | WebSocketClient) -> None:
        self._client = client
        self._identity = self._identify()
        self._begins = True
        self.form = PolicyForm.of(client.metadata)

    def __call__(self, query: ChunkRequest) -> Chunk:
        """Returns the answer.

        Raises:
            ServerError: there is none, whatever the reason; ``changed``: the server has another policy now.
        """
        try:
            if self._begins:
                self._client.reset()
                self._begins = False
            self._check_identity()
            seen = query.observation
            return self._client.infer(
                seen.images,
                states=seen.states,
                timestamps=seen.timestamps,
                request_id=query.request_id,
                continuation=query.continuation,
                camera_times=seen.captured_at,
            )
        except ServerError as error:
            self._begins = self._begins or error.code in _LOST
            raise

    def interrupt(self) -> None:
        """Ends a call that another thread is in."""
        self._client.interrupt()

    def _identify(self) -> dict[str, Any]:
        return {key: self._client.metadata.get(key) for key in _IDENTITY}

    def _check_identity(self) -> None:
        found = self._identify()
        changed = [key for key, value in self._identity.items() if found[key] != value]
        if changed:
            raise ServerError(
                "changed", f"the server came back with another policy: {', '.join(changed)} differ; start the loop anew"
            )


class Requester(Protocol):
    """One request at a time."""

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way, abandoned or not."""

    def start(self, query: ChunkRequest) -> None:
        """Starts a request; none must be under way."""

    def poll(self) -> Chunk | ServerError | None:
        """Returns the answer of the request under way, once; None: it is not there yet."""

    def abandon(self) -> None:
        """Ends the request under way; ``poll`` returns its error."""

    def close(self) -> None:
        """Ends the request under way and all others."""


class ThreadRequester:
    """Requests in a thread of their own.

    Args:
        ask: answers a query, or raises ServerError.
        interrupt: ends a call of ``ask``; called from the loop's thread.
    """

    def __init__(self, ask: Callable[[ChunkRequest], Chunk], interrupt: Callable[[], None]) -> None:
        self._ask, self._interrupt = ask, interrupt
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="request")
        self._future: Future[Chunk] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way."""
        return self._future is not None

    def start(self, query: ChunkRequest) -> None:
        """Starts a request."""
        assert self._future is None, "one request at a time"
        self._future = self._worker.submit(self._ask, query)

    def poll(self) -> Chunk | ServerError | None:
        """Returns the answer once it is there; what is not a ServerError is raised."""
        if self._future is None or not self._future.done():
            return None
        done, self._future = self._future, None
        try:
            return done.result()
        except ServerError as error:
            return error

    def abandon(self) -> None:
        """Interrupts the request under way."""
        if self._future is not None:
            self._interrupt()

    def close(self) -> None:
        """Interrupts the request under way, and ends the thread."""
        self.abandon()
        self._worker.shutdown(wait=False, cancel_futures=True)


class DelayedRequester:
    """Requests under a virtual clock: computed at once, answered ``delay`` seconds later.

    Args:
        ask: answers a query, or raises ServerError.
        clock: of the loop.
        delay: seconds from the start of the i-th request to its answer.
    """

    def __init__(self, ask: Callable[[ChunkRequest], Chunk], clock: Clock, delay: Callable[[int], float]) -> None:
        self._ask, self._clock, self._delay = ask, clock, delay
        self._count = 0
        self._answer: Chunk | ServerError | None = None
        self._ready_at = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way."""
        return self._answer is not None

    def start(self, query: ChunkRequest) -> None:
        """Computes the answer."""
        assert self._answer is None, "one request at a time"
        self._ready_at = self._clock.now() + self._delay(self._count)
        self._count += 1
        try:
            self._answer = self._ask(query)
        except ServerError as error:
            self._answer = error

    def poll(self) -> Chunk | ServerError | None:
        """Returns the answer once its time has come."""
        if self._answer is None or self._clock.now() < self._ready_at - 1e-9:
            return None
        answer, self._answer = self._answer, None
        return answer

    def abandon(self) -> None:
        """Turns the answer into an error."""
        if self._answer is not None:
            self._answer, self._ready_at = ServerError("silent", "the request was abandoned"), self._clock.now()

    def close(self) -> None:
        """Forgets the answer."""
        self._answer = None


__getattr__ = former_names(__name__, {"Asker": "PolicyClient", "Query": "ChunkRequest"})
