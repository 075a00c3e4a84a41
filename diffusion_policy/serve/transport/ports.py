"""Checks, before a checkpoint is loaded, that the ports are free, and finds the process that uses a taken one."""

from __future__ import annotations

import contextlib
import errno
import shlex
import socket
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

from diffusion_policy.serve.settings import ServeError, ServeSettings

PROC = Path("/proc")
# Number of ports above a taken one that are searched for a free one.
_LOOK = 100
_LISTENS = "0A"  # state of a socket in /proc/net/tcp (proc_pid_net(5), include/net/tcp_states.h)


def check_ports(settings: ServeSettings) -> None:
    """Binds to each port of the settings, and releases it.

    Raises:
        ServeError: a port is taken (the message names the process, and a free port), not allowed, or used twice, or
            the host is not an address of this machine.
    """
    wanted = {"port": settings.port, "websocket_port": settings.websocket_port}
    if settings.port and settings.port == settings.websocket_port:
        raise ServeError(f"port and websocket_port are both {settings.port}; expected two different ones")
    for name, port in wanted.items():
        if port is not None:
            try:
                _try(settings.host, port)
            except OSError as error:
                others = {number for number in wanted.values() if number}
                raise ServeError(why_not(settings.host, name, port, error, others)) from error


def _try(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a port in TIME_WAIT is free
        probe.bind(address)
        probe.listen(1)


def why_not(host: str, name: str, port: int, error: OSError, others: Collection[int] = ()) -> str:
    """Returns why the server cannot listen on a port, and the remedy."""
    if isinstance(error, socket.gaierror):
        return f"host {host!r} does not resolve on this machine ({error.strerror}); expected one of its own addresses"
    if error.errno == errno.EADDRINUSE:
        holder = holder_of(port)
        by = f" by {holder}" if holder else ""
        free = next((number for number in range(port + 1, port + _LOOK) if _is_free(host, number, others)), None)
        instead = f", or serve on a free port: {name}={free}" if free is not None else ""
        return f"{name} {port} on {host} is taken{by}; stop that{instead}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host {host} is not an address of this machine; expected 127.0.0.1, or one that `hostname -I` shows"
    if error.errno == errno.EACCES:
        return f"{name} {port} is not allowed for this user; expected 1024 or more, such as {name}={port + 8000}"
    return f"{name} {port} on {host}: {error.strerror or error}"


def _is_free(host: str, port: int, others: Collection[int]) -> bool:
    if port in others or port > 65535:
        return False
    try:
        _try(host, port)
    except OSError:
        return False
    return True


def holder_of(port: int) -> str | None:
    """Returns the process that listens on a port, as "process 12 (its command line)"; None if unknown."""
    sockets = set(_listening(port))
    for folder in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # other users' processes, and those that have just ended
            for link in (folder / "fd").iterdir():
                if str(link.readlink()) in sockets:
                    words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    return f"process {folder.name} ({shlex.join(word for word in words if word)[:160]})"
    return None


def _listening(port: int) -> Iterator[str]:
    """Yields the names of the sockets that listen on a port, as in the links of /proc/PID/fd."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                (number,) = struct.unpack(">H", bytes.fromhex(fields[1].rpartition(":")[2]))
                if number == port and fields[3] == _LISTENS:
                    yield f"socket:[{fields[9]}]"
