"""Clients of the server by line and by WebSocket; both return the same ``Chunk``.

Any failure, of the arguments of ``infer``, of the connection or of the reply, is a ServerError, so that one ``except``
holds the arm. After a lost connection the next call connects again.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import time
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from diffusion_policy.serve.client.messages import (
    Asked,
    Chunk,
    Frames,
    Images,
    Measured,
    ServerError,
    extra_entries,
    line_observation,
    read_chunk,
)
from diffusion_policy.serve.transport.arrays import pack, unpack
from diffusion_policy.serve.transport.continuation import Continuation
from diffusion_policy.serve.transport.protocol import DEFAULT_PORT, ProtocolError

_FAILURES = (WebSocketException, OSError)  # a timeout is an OSError
# Seconds between two attempts to connect again.
_RETRY_S = 0.5


class _Client:
    """The base of both clients: asks for chunks, and reconnects.

    Attributes:
        metadata: the server's description of itself (units, horizon, rate, limits, checkpoint).
    """

    metadata: dict[str, Any]
    _PICTURES: tuple[type, ...]  # that a message takes
    _ACTIONS: str  # the key of a reply's actions

    def __init__(self) -> None:
        self._tried = -math.inf
        self._closed = False

    def reset(self) -> None:
        """Starts an episode; ServerError as for :meth:`infer`."""
        self.ask({"type": "reset"})

    def infer(
        self,
        images: Images,
        poses: ArrayLike | None = None,
        grippers: ArrayLike | None = None,
        timestamps: ArrayLike | None = None,
        *,
        states: ArrayLike | None = None,
        request_id: str | None = None,
        continuation: Continuation | None = None,
        camera_times: Mapping[str, float] | None = None,
    ) -> Chunk:
        """Requests an action chunk.

        Args:
            images: To encoded JPEGs, oldest first, by WebSocket also raw RGB frames (H, W, 3) uint8; of several
                cameras a mapping of key to images.
            poses: (To, 7) meters and quaternion xyzw, robot base frame.
            grippers: (To, 1), 1 = open.
            timestamps: (To,) seconds on this machine's clock.
            states: (To, D) instead of poses and grippers, in the order of the metadata's ``state_names``.
            request_id: name of this request, by which logs of client and server are joined.
            continuation: what remains of the chunk under execution, for a policy that continues it.
            camera_times: when the newest frame of each camera was captured, seconds on the clock of ``timestamps``.

        Raises:
            ServerError: there is no action: the server refuses or is unreachable, or arguments or reply are invalid.
        """
        asked = Asked.of(self.metadata)
        measured = asked.numbers(poses, grippers, timestamps, states)
        frames = asked.frames(images, self._PICTURES, len(measured["timestamps"]))
        reply = self.ask(self._observation(frames, measured, extra_entries(request_id, continuation, camera_times)))
        return read_chunk(reply, self._ACTIONS, asked.width)

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a message and returns the reply."""
        raise NotImplementedError

    def _observation(self, frames: Frames, measured: Measured, extras: Mapping[str, Any]) -> dict[str, Any]:
        """The message of an observation that was checked."""
        raise NotImplementedError

    def _disconnect(self) -> None:
        """Closes the connection, so that a late reply is not taken for the next one."""
        raise NotImplementedError

    def interrupt(self) -> None:
        """Ends a call that waits in another thread, which raises ServerError; the next call connects again."""
        waiting = self._raw_socket()
        if waiting is not None:
            with contextlib.suppress(OSError):  # it was closed meanwhile
                waiting.shutdown(socket.SHUT_RDWR)

    def _raw_socket(self) -> socket.socket | None:
        """The socket of the connection, if there is one."""
        raise NotImplementedError

    def close(self) -> None:
        """Frees the server for the next robot; the client cannot be used afterward."""
        self._closed = True
        self._disconnect()

    def _may_connect(self) -> None:
        """Registers an attempt to connect; ServerError if the last one was too recent, or the client is closed."""
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
        host: host of the server.
        port: port of its line protocol.
        token: token, if the server requires one.
        timeout: seconds to wait for a reply.

    Raises:
        ServerError: the server is unreachable or busy, or the token is wrong.
    """

    _PICTURES = (bytes,)
    _ACTIONS = "action"

    def __init__(
        self, host: str = "127.0.0.1", port: int = DEFAULT_PORT, token: str | None = None, timeout: float = 5.0
    ) -> None:
        super().__init__()
        self._where, self._token, self._timeout = (host, port), token, timeout
        self._socket: socket.socket | None = None
        self._connect()

    def _observation(self, frames: Frames, measured: Measured, extras: Mapping[str, Any]) -> dict[str, Any]:
        return line_observation("observation", frames, measured, extras)

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a message and returns the reply; ServerError if it is an error or does not come."""
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

    def _raw_socket(self) -> socket.socket | None:
        return self._socket

    def _disconnect(self) -> None:
        opened, self._socket = self._socket, None  # another thread may be in a call, or closing, too
        if opened is not None:
            self._lines.close()
            opened.close()


class WebSocketClient(_Client):
    """The second transport: msgpack over WebSocket, arrays without base64.

    Args:
        uri: such as ws://10.0.0.2:8008.
        token: token, if the server requires one.
        timeout: seconds to wait for a reply.

    Raises:
        ServerError: as :class:`LineClient`.
    """

    _PICTURES = (bytes, np.ndarray)
    _ACTIONS = "actions"

    def __init__(self, uri: str, token: str | None = None, timeout: float = 5.0) -> None:
        super().__init__()
        self._uri, self._token, self._timeout = uri, token, timeout
        self._open = contextlib.ExitStack()
        self._socket: ClientConnection | None = None
        self._connect()

    def _observation(self, frames: Frames, measured: Measured, extras: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": "observation", "images": frames, "send_timestamp": time.time(), **measured, **extras}

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a message and returns the reply; ServerError if it is an error or does not come."""
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

    def _raw_socket(self) -> socket.socket | None:
        return None if self._socket is None else self._socket.socket

    def _disconnect(self) -> None:
        self._open.close()
        self._socket = None
