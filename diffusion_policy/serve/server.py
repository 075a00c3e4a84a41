"""From a checkpoint to a listening server, and to an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from diffusion_policy.serve.engine import Engine, PolicyEngine
from diffusion_policy.serve.host import Host, computing_thread
from diffusion_policy.serve.line_server import start_line_server
from diffusion_policy.serve.request import Reply
from diffusion_policy.serve.settings import ServeSettings
from diffusion_policy.serve.websocket_server import start_websocket_server

logger = logging.getLogger(__name__)

Ports = dict[str, int]


def serve_checkpoint(settings: ServeSettings) -> None:
    """Load, warm up, listen until SIGTERM or SIGINT, finish the request under way, and return.

    Raises:
        WorkspaceError: the settings, the checkpoint or its policy do not allow serving.
        OSError: the port is taken.
    """
    settings.token()  # before the checkpoint is loaded: an open door is refused at once
    worker = computing_thread()
    engine = worker.submit(PolicyEngine.open, settings.ckpt, settings.engine, settings.limits.image_pixels).result()
    worker.submit(engine.warm_up).result()
    asyncio.run(serve(engine, settings, worker))


async def serve(engine: Engine, settings: ServeSettings, worker: ThreadPoolExecutor | None = None) -> None:
    """Listen until SIGTERM or SIGINT.

    Raises:
        OSError: a port is taken.
        WorkspaceError: see ``ServeSettings.token``.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with listening(engine, settings, worker=worker) as (host, ports):
        _announce(host, ports)
        await stop.wait()
        logger.info("stopping: the request under way is answered, the log is written")


@asynccontextmanager
async def listening(
    engine: Engine,
    settings: ServeSettings,
    on_answer: Callable[[Reply], None] = lambda reply: None,
    worker: ThreadPoolExecutor | None = None,
) -> AsyncIterator[tuple[Host, Ports]]:
    """Both transports while the block lasts, then the orderly end; ports are "line" and perhaps "websocket"."""
    host = Host(engine, settings, on_answer, worker)
    line = await start_line_server(host)
    ports: Ports = {"line": line.sockets[0].getsockname()[1]}
    websocket = None
    try:
        if settings.websocket_port is not None:
            websocket = await start_websocket_server(host)
            ports["websocket"] = next(iter(websocket.sockets)).getsockname()[1]
        yield host, ports
    finally:
        line.close()
        await host.stop()
        if websocket is not None:
            websocket.close()
            await websocket.wait_closed()


def _announce(host: Host, ports: Ports) -> None:
    settings, about = host.settings, host.engine.describe()
    logger.info(
        "policy: %s", ", ".join(f"{name} {value}" for name, value in about.items() if name != "action_semantics")
    )
    logger.info("limits: %s", host.guard.describe())
    logger.info("log: %s", settings.log.directory or "none")
    if not settings.is_local and settings.allow_unauthenticated:
        logger.warning("anybody who reaches %s can move the arm: allow_unauthenticated is on", settings.host)
    logger.info("listening on %s", ", ".join(f"{settings.host}:{port} ({kind})" for kind, port in ports.items()))
