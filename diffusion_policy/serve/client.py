"""Clients of the server, for a robot's machine: no torch, no policy.

    with LineClient("127.0.0.1") as policy:
        policy.reset()
        chunk = policy.infer(images, poses, grippers, timestamps)     # raises ServerError: hold the pose
        for action in chunk.due(time.time()): ...

Both transports give the same :class:`Chunk`. A chunk knows at which time each of its actions was meant, on the client's
own clock, so one that comes late skips what is past instead of jumping back.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from diffusion_policy.serve.arrays import pack, unpack
from diffusion_policy.serve.protocol import DEFAULT_PORT
from diffusion_policy.spec import WorkspaceError

_FAILURES = (WebSocketException, OSError)  # a timeout is an OSError


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


class LineClient:
    """The line protocol over TCP.

    Raises:
        ServerError: no connection ("unreachable"), a wrong token, or no answer within ``timeout`` ("silent").
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = DEFAULT_PORT, token: str | None = None, timeout: float = 5.0
    ) -> None:
        try:
            self._socket = socket.create_connection((host, port), timeout)
        except OSError as error:
            raise ServerError("unreachable", f"{host}:{port}: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines = self._socket.makefile("rb")
        try:
            self.metadata = self.ask({"type": "hello", "token": token})
        except ServerError:
            self.close()
            raise

    def reset(self) -> None:
        """Begin an episode."""
        self.ask({"type": "reset"})

    def infer(self, images: Sequence[bytes], poses: ArrayLike, grippers: ArrayLike, timestamps: ArrayLike) -> Chunk:
        """Ask for actions.

        Args:
            images: To encoded JPEGs, oldest first.
            poses: (To, 7); grippers: (To, 1); timestamps: (To,) seconds on this machine's clock.

        Raises:
            ServerError: no action.
        """
        reply = self.ask(observation("observation", images, poses, grippers, timestamps))
        return Chunk(np.asarray(reply["action"]), np.asarray(reply["timestamps"]), reply)

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """One message, one reply; ServerError if it is an error or does not come."""
        try:
            self._socket.sendall(json.dumps(message, allow_nan=False).encode() + b"\n")
            line = self._lines.readline()
        except OSError as error:
            self.close()  # an answer that comes later must not be taken for the next one
            raise ServerError("silent", f"no answer: {error}; the connection is closed") from error
        if not line.endswith(b"\n"):  # nothing, or the beginning of an answer
            self.close()
            raise ServerError("closed", "the server closed the connection")
        reply = _read_reply(line)
        if reply.get("type") == "error":
            raise ServerError(reply["code"], reply["message"])
        return reply

    def close(self) -> None:
        """Free the server for the next robot."""
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _read_reply(line: bytes) -> dict[str, Any]:
    """One line as an object; ServerError if it is none, which no server of this protocol sends."""
    try:
        reply = json.loads(line)
    except ValueError as error:
        raise ServerError("malformed", f"the answer is not JSON: {error}") from error
    if not isinstance(reply, dict):
        raise ServerError("malformed", f"the answer is {type(reply).__name__}; expected an object")
    return reply


class WebSocketClient:
    """The second transport: msgpack over WebSocket, arrays without base64.

    Raises:
        ServerError: as :class:`LineClient`.
    """

    def __init__(self, uri: str, token: str | None = None, timeout: float = 5.0) -> None:
        self._timeout = timeout
        self._open = contextlib.ExitStack()
        headers = {} if token is None else {"Authorization": f"Api-Key {token}"}
        try:
            self._socket = self._open.enter_context(
                connect(uri, compression=None, max_size=None, additional_headers=headers)
            )
        except _FAILURES as error:
            raise ServerError("unreachable", f"{uri}: {error}") from error
        self.metadata = self._receive()

    def reset(self) -> None:
        """Begin an episode."""
        self.ask({"type": "reset"})

    def infer(
        self, images: Sequence[bytes | NDArray[np.uint8]], poses: ArrayLike, grippers: ArrayLike, timestamps: ArrayLike
    ) -> Chunk:
        """As :meth:`LineClient.infer`; images may also be raw RGB frames (H, W, 3) uint8."""
        arrays = {"poses": poses, "grippers": grippers, "timestamps": timestamps}
        numbers = {name: np.asarray(value, dtype=np.float64) for name, value in arrays.items()}
        reply = self.ask({"type": "observation", "images": list(images), "send_timestamp": time.time(), **numbers})
        return Chunk(np.asarray(reply["actions"], dtype=np.float64), np.asarray(reply["timestamps"]), reply)

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """One message, one reply; ServerError if it is an error or does not come."""
        try:
            self._socket.send(pack(message))
        except _FAILURES as error:
            raise ServerError("closed", f"the message could not be sent: {error}") from error
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        try:
            answer = self._socket.recv(self._timeout)
        except _FAILURES as error:
            self.close()
            raise ServerError("silent", f"no answer: {error}; the connection is closed") from error
        if isinstance(answer, str):
            code, _, message = answer.partition(": ")
            raise ServerError(code, message)
        reply: dict[str, Any] = unpack(answer)
        return reply

    def close(self) -> None:
        """Free the server for the next robot."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def observation(
    kind: str, images: Sequence[bytes], poses: ArrayLike, grippers: ArrayLike, timestamps: ArrayLike
) -> dict[str, Any]:
    """A message of the line protocol: "observation", or "inspect"."""
    return {
        "type": kind,
        "images": [base64.b64encode(image).decode("ascii") for image in images],
        "poses": np.asarray(poses, dtype=np.float64).tolist(),
        "grippers": np.asarray(grippers, dtype=np.float64).reshape(-1, 1).tolist(),
        "timestamps": np.asarray(timestamps, dtype=np.float64).tolist(),
        "send_timestamp": time.time(),
    }
