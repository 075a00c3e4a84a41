"""The second transport: WebSocket and msgpack, the protocol of openpi's clients.

On connect the server sends its metadata, as those clients expect. A request is a map with the entries of the line
protocol (``images`` as encoded bytes or raw RGB frames, ``poses``, ``grippers`` or ``states``, ``timestamps``); without
"type" it is an observation. The answer is a map with ``actions`` (n_action_steps, D) and the line protocol's extra
entries; an error is a text frame, "code: message", after which openpi's client raises. ``GET /healthz`` answers OK.
"""

from __future__ import annotations

import functools
import hmac
import http
import logging
import time
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as serve_websocket
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from diffusion_policy.serve.stages import Stages
from diffusion_policy.serve.transport.arrays import pack, unpack
from diffusion_policy.serve.transport.host import Host
from diffusion_policy.serve.transport.protocol import Limits, Message, MessageForm, ProtocolError, parse_message
from diffusion_policy.serve.transport.request import Arrival, Reply, Request

logger = logging.getLogger(__name__)

_TOO_BIG = 1009  # the close code with which ``websockets`` itself answers more than ``max_size`` bytes


async def start_websocket_server(host: Host) -> Server:
    """Starts listening on ``websocket_port``; a dead peer is detected by pings."""
    settings = host.settings
    return await serve_websocket(
        functools.partial(_serve, host),
        settings.host,
        settings.websocket_port,
        process_request=functools.partial(_admit, host),
        origins=[None],  # only web pages send an origin; robots do not
        compression=None,
        max_size=settings.limits.message_bytes,
        max_queue=2,
        ping_interval=5,
        ping_timeout=10,
        close_timeout=1,
    )


def _admit(host: Host, connection: ServerConnection, request: HttpRequest) -> Response | None:
    """Answers health checks, and refuses a wrong key before anything else is read."""
    if request.path == "/healthz":
        return connection.respond(http.HTTPStatus.OK, "OK\n")
    token = host.token
    given = request.headers.get("Authorization", "").removeprefix("Api-Key ").strip()
    if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
        logger.warning("a connection without the token was refused")
        return connection.respond(http.HTTPStatus.UNAUTHORIZED, "unauthorized: expected Authorization: Api-Key TOKEN\n")
    return None


async def _serve(host: Host, websocket: ServerConnection) -> None:
    async def send(reply: Reply) -> None:
        try:
            await websocket.send(_encode(reply.message))
        except ConnectionClosed as error:
            raise ConnectionError(str(error)) from error

    async with host.connection(authorized=True) as connection:
        if connection is None:
            return

        async def receive() -> Request:
            data = await connection.wait_for(websocket.recv())
            read = functools.partial(_parse, data, host.engine.form, host.settings.limits)
            return Request(read, Arrival(time.monotonic(), Stages()), len(data))

        try:
            await websocket.send(pack(connection.session.metadata()))
            await connection.serve(receive, send)
        except (ConnectionClosed, OSError) as error:
            if isinstance(error, ConnectionClosed) and error.sent is not None and error.sent.code == _TOO_BIG:
                connection.note("oversized", f"more than {host.settings.limits.message_bytes} bytes in a message")
            logger.info("%s is gone: %s", websocket.remote_address, error or type(error).__name__)


def _parse(data: str | bytes, form: MessageForm, limits: Limits) -> Message:
    if isinstance(data, str):
        raise ProtocolError("malformed", "a text frame; expected binary msgpack")
    message = unpack(data)
    if isinstance(message, dict):
        message = {"type": "observation", **message}
    return parse_message(message, form, limits)


def _encode(message: dict[str, Any]) -> str | bytes:
    """Encodes a reply for openpi's clients."""
    if message["type"] == "error":
        return f"{message['code']}: {message['message']}"
    if message["type"] == "action":
        timing = {**message["server_timing"], "infer_ms": sum(message["server_timing"].values())}
        rest = {name: value for name, value in message.items() if name != "action"}
        return pack({**rest, "actions": np.asarray(message["action"], dtype=np.float32), "server_timing": timing})
    return pack(message)
