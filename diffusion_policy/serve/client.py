"""Clients of the server, for a robot's machine: no torch, no policy.

    with LineClient("127.0.0.1") as policy:
        policy.reset()
        chunk = policy.infer(images, poses, grippers, timestamps)     # raises ServerError: hold the pose
        for action in chunk.due(time.time()): ...

Both transports give the same :class:`Chunk`. A chunk knows at which time each of its actions was meant, on the client's
own clock, so one that comes late skips what is past instead of jumping back.

Whatever is wrong, with what ``infer`` is given, with the connection or with what comes back, is a ServerError, so that
one ``except`` holds the arm. A connection that was lost is made anew by the next call.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.serve.transport.arrays import pack, unpack
from diffusion_policy.serve.transport.protocol import DEFAULT_PORT, ProtocolError
from diffusion_policy.spec import POSE, POSE_GRIPPER

_FAILURES = (WebSocketException, OSError)  # a timeout is an OSError
# Seconds between two attempts to connect again.
_RETRY_S = 0.5


class ServerError(WorkspaceError):
    """The server answered an error, or not at all: there is no action, so hold the pose. ``code``: see ``protocol``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(frozen=True)
class Chunk:
    """Actions for the arm.

    Attributes:
        actions: (n, 8) absolute pose, metres and xyzw, then gripper, 1 = open.
        timestamps: (n,) when each is meant, seconds on the client's clock.
        reply: everything that the server said.
    """

    actions: NDArray[np.float64]
    timestamps: NDArray[np.float64]
    reply: Mapping[str, Any] = field(default_factory=dict)

    def due(self, now: float) -> NDArray[np.float64]:
        """The actions whose time is not over: (m, 8), m <= n; a step counts until half a step after its time."""
        half = float(np.median(np.diff(self.timestamps))) / 2 if len(self.timestamps) > 1 else 0.0
        return self.actions[self.timestamps + half >= now]


class _Client:
    """What both transports share: when a connection is made again, and what a chunk is made from."""

    metadata: dict[str, Any]

    def __init__(self) -> None:
        self._tried = -math.inf
        self._closed = False

    def reset(self) -> None:
        """Begin an episode; ServerError as for :meth:`infer`."""
        self.ask({"type": "reset"})

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """One message, one reply."""
        raise NotImplementedError

    def _disconnect(self) -> None:
        """Drop the connection, so that an answer that comes later is not taken for the next one."""
        raise NotImplementedError

    def close(self) -> None:
        """Free the server for the next robot; nothing can be asked afterwards."""
        self._closed = True
        self._disconnect()

    def _may_connect(self) -> None:
        """Count an attempt; ServerError if the last one was just now, or the client was closed."""
        if self._closed:
            raise ServerError("closed", "this client was closed")
        now = time.monotonic()
        if now - self._tried < _RETRY_S:
            raise ServerError("unreachable", f"the connection was lost; tried again every {_RETRY_S} s")
        self._tried = now

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class LineClient(_Client):
    """The line protocol over TCP.

    Args:
        host: of the server.
        port: of its line protocol.
        token: if the server wants one.
        timeout: seconds for an answer.

    Attributes:
        metadata: what the server says of itself (units, horizon, rate, limits, checkpoint).

    Raises:
        ServerError: unreachable, unauthorized, or busy.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = DEFAULT_PORT, token: str | None = None, timeout: float = 5.0
    ) -> None:
        super().__init__()
        self._where, self._token, self._timeout = (host, port), token, timeout
        self._socket: socket.socket | None = None
        self._connect()

    def infer(self, images: Sequence[bytes], poses: ArrayLike, grippers: ArrayLike, timestamps: ArrayLike) -> Chunk:
        """Ask for actions.

        Args:
            images: To encoded JPEGs, oldest first.
            poses: (To, 7); grippers: (To, 1); timestamps: (To,) seconds on this machine's clock.

        Raises:
            ServerError: no action: the server refuses, is not there, or what was given or came back is none.
        """
        reply = self.ask(observation("observation", images, poses, grippers, timestamps))
        return _chunk(reply, "action")

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """One message, one reply; ServerError if it is an error or does not come."""
        try:
            data = json.dumps(message, allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise ServerError("malformed", f"not sent: {error}") from error
        if self._socket is None:
            self._connect()
        return self._exchange(data)

    def _connect(self) -> None:
        self._may_connect()
        host, port = self._where
        try:
            self._socket = socket.create_connection(self._where, self._timeout)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (OSError, OverflowError, TypeError) as error:
            raise ServerError("unreachable", f"{host}:{port}: {error}") from error
        self._lines = self._socket.makefile("rb")
        try:
            self.metadata = self._exchange(json.dumps({"type": "hello", "token": self._token}).encode() + b"\n")
        except ServerError:
            self._disconnect()
            raise

    def _exchange(self, data: bytes) -> dict[str, Any]:
        assert self._socket is not None
        try:
            self._socket.sendall(data)
            line = self._lines.readline()
        except OSError as error:
            self._disconnect()
            raise ServerError("silent", f"no answer: {error}; the connection is closed") from error
        if not line.endswith(b"\n"):  # nothing, or the beginning of an answer
            self._disconnect()
            raise ServerError("closed", "the server closed the connection")
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ServerError("malformed", f"the answer is not JSON: {error}") from error
        if not isinstance(reply, dict):
            raise ServerError("malformed", f"the answer is {type(reply).__name__}; expected an object")
        if reply.get("type") == "error":
            raise ServerError(str(reply.get("code", "unknown")), str(reply.get("message", "without a message")))
        return reply

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._lines.close()
            self._socket.close()
        self._socket = None


class WebSocketClient(_Client):
    """The second transport: msgpack over WebSocket, arrays without base64.

    Raises:
        ServerError: as :class:`LineClient`.
    """

    def __init__(self, uri: str, token: str | None = None, timeout: float = 5.0) -> None:
        super().__init__()
        self._uri, self._token, self._timeout = uri, token, timeout
        self._open = contextlib.ExitStack()
        self._socket: ClientConnection | None = None
        self._connect()

    def infer(
        self, images: Sequence[bytes | NDArray[np.uint8]], poses: ArrayLike, grippers: ArrayLike, timestamps: ArrayLike
    ) -> Chunk:
        """As :meth:`LineClient.infer`; images may also be raw RGB frames (H, W, 3) uint8."""
        numbers = _numbers(poses, grippers, timestamps)
        frames = _frames(images, (bytes, np.ndarray), len(numbers["timestamps"]))
        reply = self.ask({"type": "observation", "images": frames, "send_timestamp": time.time(), **numbers})
        return _chunk(reply, "actions")

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """One message, one reply; ServerError if it is an error or does not come."""
        try:
            data = pack(message)
        except (TypeError, ValueError, OverflowError) as error:
            raise ServerError("malformed", f"not sent: {error}") from error
        if self._socket is None:
            self._connect()
        assert self._socket is not None
        try:
            self._socket.send(data)
        except _FAILURES as error:
            self._disconnect()
            raise ServerError("closed", f"the message could not be sent: {error}") from error
        return self._receive()

    def _connect(self) -> None:
        self._may_connect()
        headers = {} if self._token is None else {"Authorization": f"Api-Key {self._token}"}
        options: dict[str, Any] = {"compression": None, "max_size": None, "additional_headers": headers}
        try:
            self._socket = self._open.enter_context(connect(self._uri, **options))
        except (*_FAILURES, ValueError, TypeError) as error:
            raise ServerError("unreachable", f"{self._uri}: {error}") from error
        self.metadata = self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self._socket is not None
        try:
            answer = self._socket.recv(self._timeout)
        except _FAILURES as error:
            self._disconnect()
            raise ServerError("silent", f"no answer: {error}; the connection is closed") from error
        if isinstance(answer, str):
            code, _, message = answer.partition(": ")
            raise ServerError(code, message)
        try:
            reply = unpack(answer)
        except ProtocolError as error:
            raise ServerError("malformed", f"the answer is no msgpack: {error}") from error
        if not isinstance(reply, dict):
            raise ServerError("malformed", f"the answer is {type(reply).__name__}; expected a map")
        return reply

    def _disconnect(self) -> None:
        self._open.close()
        self._socket = None


def observation(
    kind: str, images: Sequence[bytes], poses: ArrayLike, grippers: ArrayLike, timestamps: ArrayLike
) -> dict[str, Any]:
    """A message of the line protocol: "observation", or "inspect".

    Raises:
        ServerError: what was measured is no observation; it is not sent.
    """
    numbers = _numbers(poses, grippers, timestamps)
    return {
        "type": kind,
        "images": [
            base64.b64encode(image).decode("ascii") for image in _frames(images, (bytes,), len(numbers["timestamps"]))
        ],
        **{name: value.tolist() for name, value in numbers.items()},
        "send_timestamp": time.time(),
    }


def _numbers(poses: ArrayLike, grippers: ArrayLike, timestamps: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Poses (To, 7), grippers (To, 1) and timestamps (To,), finite; ServerError otherwise."""
    found: dict[str, NDArray[np.float64]] = {}
    for name, value in (("timestamps", timestamps), ("poses", poses), ("grippers", grippers)):
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ServerError("malformed", f"not sent: {name} are no numbers: {error}") from error
        count = len(found["timestamps"]) if found else array.shape[0] if array.ndim else 0
        shape = {"timestamps": (count,), "poses": (count, len(POSE)), "grippers": (count, 1)}[name]
        if name == "grippers" and array.size == count:
            array = array.reshape(shape)
        if array.shape != shape or count == 0:
            raise ServerError("malformed", f"not sent: {name} have shape {array.shape}; expected {shape}")
        if not np.isfinite(array).all():
            raise ServerError("bad_state", f"not sent: {name} hold NaN or infinity: {array.tolist()}")
        found[name] = array
    return {name: found[name] for name in ("poses", "grippers", "timestamps")}


def _frames(images: Sequence[Any], kinds: tuple[type, ...], count: int) -> list[Any]:
    """One picture for each timestamp; ServerError otherwise."""
    if not isinstance(images, Sequence | np.ndarray) or isinstance(images, str | bytes):
        raise ServerError("malformed", f"not sent: images are {type(images).__name__}; expected {count} pictures")
    if len(images) != count:
        raise ServerError("wrong_frames", f"not sent: {len(images)} images for {count} timestamps")
    frames = [bytes(image) if isinstance(image, bytearray | memoryview) else image for image in images]
    for index, image in enumerate(frames):
        if not isinstance(image, kinds):
            expected = " or ".join(
                {"bytes": "an encoded JPEG or PNG (bytes)"}.get(k.__name__, "a frame") for k in kinds
            )
            raise ServerError("bad_image", f"not sent: images[{index}] is {type(image).__name__}; expected {expected}")
    return frames


def _chunk(reply: Mapping[str, Any], key: str) -> Chunk:
    """What a reply commands; ServerError unless it is finite poses and grippers, each with its time."""
    try:
        actions, times = (np.asarray(reply[name], dtype=np.float64) for name in (key, "timestamps"))
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError("malformed", f"the answer holds no chunk of actions with their times: {error!r}") from error
    if (
        actions.ndim != 2
        or len(actions) == 0
        or actions.shape[1] != len(POSE_GRIPPER)
        or times.shape != (len(actions),)
    ):
        raise ServerError("malformed", f"the answer's actions are {actions.shape}, their times {times.shape}")
    if not (np.isfinite(actions).all() and np.isfinite(times).all()):
        raise ServerError("malformed", "the answer's actions or times hold NaN or infinity")
    return Chunk(actions, times, reply)
