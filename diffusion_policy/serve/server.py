"""The server process: loads a checkpoint, listens, and shuts down in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from diffusion_policy.command_line import STOP_SIGNALS, Stopped
from diffusion_policy.commands import command
from diffusion_policy.serve.engine import Engine, PolicyEngine
from diffusion_policy.serve.settings import LogSettings, ServeError, ServeSettings
from diffusion_policy.serve.transport.host import Host, computing_thread
from diffusion_policy.serve.transport.line_server import start_line_server
from diffusion_policy.serve.transport.ports import check_ports, why_not
from diffusion_policy.serve.transport.request import Reply
from diffusion_policy.serve.transport.websocket_server import start_websocket_server

logger = logging.getLogger(__name__)

Ports = dict[str, int]


def serve_checkpoint(settings: ServeSettings) -> None:
    """Loads a checkpoint, warms up, and serves until SIGTERM, SIGINT or SIGHUP; the current request is still answered.

    Raises:
        Stopped: ended by SIGINT or SIGHUP; the log is closed.
        WorkspaceError: settings, ports, log folder, checkpoint or policy do not allow serving.
    """
    settings.token()  # before the checkpoint is loaded, so that a wrong setting is refused at once
    check_ports(settings)
    _check_log_folder(settings.log)
    worker = computing_thread()
    engine = worker.submit(PolicyEngine.open, settings.ckpt, settings.engine, settings.limits.image_pixels).result()
    worker.submit(engine.warm_up).result()
    stopped = asyncio.run(serve(engine, settings, worker))
    if stopped is not None:
        raise stopped


def _check_log_folder(log: LogSettings) -> None:
    """Creates the log folder and checks that it is writable."""
    if log.directory is None:
        return
    try:
        Path(log.directory).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=log.directory):
            pass
    except OSError as error:
        raise ServeError(
            f"log.directory {log.directory}: cannot be written ({error.strerror}); name another folder, or "
            "log.directory=null for no log"
        ) from error


async def serve(engine: Engine, settings: ServeSettings, worker: ThreadPoolExecutor | None = None) -> Stopped | None:
    """Serves until SIGTERM, SIGINT or SIGHUP; a second signal ends the process at once.

    Returns:
        what was kept, after an interruption; None after SIGTERM, the usual way to end a server.

    Raises:
        ServeError: a port is taken.
        WorkspaceError: see ``ServeSettings.token``.
    """
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[signal.Signals] = loop.create_future()

    def on_signal(number: signal.Signals) -> None:
        if stop.done():
            os.write(2, b"ended at once\n")
            os._exit(128 + number)
        stop.set_result(number)

    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            loop.add_signal_handler(number, on_signal, number)
    async with listening(engine, settings, worker=worker) as (host, ports):
        _announce(host, ports)
        number = await stop
        logger.info("stopping: answering the current request and writing the log")
    if number != signal.SIGTERM:
        return Stopped(_kept(host), number=number)
    logger.info("stopped; %s", _kept(host))
    return None


def _kept(host: Host) -> str:
    """Returns a sentence about the logs that were kept."""
    if host.settings.log.directory is None:
        return "nothing was logged (log.directory is null)"
    runs = [str(folder) for folder in host.run_folders]
    if not runs:
        return "nothing was logged: no client was served"
    several = f"{len(runs)} runs are" if len(runs) > 1 else "1 run is"
    listed = f"{runs[0]} to {Path(runs[-1]).name}" if len(runs) > 1 else runs[0]
    return f"{several} kept: {listed}; judge with: {command('validate_gripper', *runs[-1:])}"


@asynccontextmanager
async def listening(
    engine: Engine,
    settings: ServeSettings,
    on_answer: Callable[[Reply], None] = lambda reply: None,
    worker: ThreadPoolExecutor | None = None,
) -> AsyncIterator[tuple[Host, Ports]]:
    """Runs the transports within its block, then shuts down in order. Yields the ports: "line" and perhaps "websocket".

    Raises:
        ServeError: a port cannot be listened on.
    """
    host = Host(engine, settings, on_answer, worker)
    try:
        line = await start_line_server(host)
    except OSError as error:
        raise ServeError(why_not(settings.host, "port", settings.port, error)) from error
    ports: Ports = {"line": line.sockets[0].getsockname()[1]}
    websocket = None
    try:
        if settings.websocket_port is not None:
            try:
                websocket = await start_websocket_server(host)
            except OSError as error:
                raise ServeError(why_not(settings.host, "websocket_port", settings.websocket_port, error)) from error
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
    logger.info("limits: %s", host.limits.describe())
    recorded = about.get("trained_on", {}).get("gripper_scale")
    if recorded and settings.gripper_scale is None:
        logger.warning(
            "the recordings' gripper used the scale %s; clients are expected to use 0 (closed) to 1 (open). If "
            "this robot uses the recordings' scale, set gripper_scale=%s",
            ", ".join(recorded),
            recorded[0],
        )
    logger.info("log: %s", settings.log.directory or "none")
    if not settings.is_local and settings.allow_unauthenticated:
        logger.warning("anyone who can reach %s can move the arm: allow_unauthenticated is on", settings.host)
    logger.info("listening on %s", ", ".join(f"{settings.host}:{port} ({kind})" for kind, port in ports.items()))
