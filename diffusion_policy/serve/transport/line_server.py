"""The line protocol over TCP, the protocol of all existing robot clients (``protocol``).

The server only replies. A vanished client is detected by keep-alive probes within about 15 s, one that stops in the
middle of a message by ``traffic.message_s``, and a silent one by ``traffic.idle_s``. A client that has closed its side
of the connection is gone and gets no action.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import time

from diffusion_policy.serve.stages import Stages
from diffusion_policy.serve.transport.host import Connection, Host
from diffusion_policy.serve.transport.protocol import ProtocolError, encode_line, parse_line
from diffusion_policy.serve.transport.request import Arrival, Reply, Request

logger = logging.getLogger(__name__)

# The last one, in milliseconds, is for a client that vanished while an answer was in flight, when no probes are sent.
_KEEP_ALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 2), ("TCP_USER_TIMEOUT", 15_000))


async def start_line_server(host: Host) -> asyncio.Server:
    """Starts to listen on the port of the settings, or on a free one if it is 0."""
    settings = host.settings
    return await asyncio.start_server(
        functools.partial(_serve, host), settings.host, settings.port, limit=settings.limits.message_bytes
    )


async def _serve(host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    _keep_alive(writer.get_extra_info("socket"))
    peer = writer.get_extra_info("peername")

    async def send(reply: Reply) -> None:
        if reply.message["type"] == "action" and reader.at_eof():
            raise ConnectionAbortedError("it hung up before its action was ready")
        writer.write(encode_line(reply.message))
        async with asyncio.timeout(host.settings.traffic.message_s):
            await writer.drain()

    async with host.connection() as connection:
        try:
            if connection is not None:
                logger.info("%s connected", peer)
                await connection.serve(functools.partial(_receive, host, connection, reader), send)
        except asyncio.IncompleteReadError as error:
            logger.info("%s hung up%s", peer, " in the middle of a message" if error.partial else "")
        except OSError as error:  # also if it was silent or stuck for too long
            logger.info("%s is gone: %s", peer, error or type(error).__name__)
        finally:
            writer.close()


async def _receive(host: Host, connection: Connection, reader: asyncio.StreamReader) -> Request:
    """Reads the next message.

    Raises:
        TimeoutError, IncompleteReadError, OSError: the client is gone, or has stopped in the middle.
    """
    limits = host.settings.limits
    line = await connection.wait_for(reader.readexactly(1))
    stages, started, refusal = Stages(), time.perf_counter(), None
    try:
        if line != b"\n":
            async with asyncio.timeout(host.settings.traffic.message_s):
                line += await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        refusal = ProtocolError("oversized", f"more than {limits.message_bytes} bytes in a line")
    stages.add("receive", time.perf_counter() - started)
    read = functools.partial(parse_line, line, host.engine.form, limits)
    return Request(read, Arrival(time.monotonic(), stages), len(line), refusal)


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _KEEP_ALIVE:
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
