"""diffusion_policy.serve.transport.ports: unusable addresses are reported before a checkpoint is loaded."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_factory import FakeEngine, settings

from diffusion_policy.serve.server import listening, serve_checkpoint
from diffusion_policy.serve.settings import ServeError
from diffusion_policy.serve.transport.ports import check_ports, holder_of, why_not


@contextlib.contextmanager
def taken(host: str = "127.0.0.1") -> Iterator[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("name", ["port", "websocket_port"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_taken_port_names_its_holder_and_a_free_one(name: str, host: str) -> None:
    with contextlib.ExitStack() as stack:
        try:
            port = stack.enter_context(taken("::1" if host == "::1" else "127.0.0.1"))
        except OSError:
            pytest.skip("this machine has no IPv6")
        with pytest.raises(ServeError, match=rf"^{name} {port} on {host} is taken") as caught:
            check_ports(settings(None, f"host='{host}'", f"{name}={port}"))
        if Path("/proc/net/tcp").exists():
            assert f"by process {os.getpid()} (" in str(caught.value)
        free = int(str(caught.value).rpartition("=")[2])
        check_ports(settings(None, f"host='{host}'", f"{name}={free}"))


def test_a_free_port_is_not_one_that_the_other_transport_needs() -> None:
    with taken() as port:
        with pytest.raises(ServeError) as caught:
            check_ports(settings(None, f"port={port}", f"websocket_port={port + 1}"))
        assert f"port={port + 1}" not in str(caught.value)


def test_a_port_in_time_wait_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        server, _ = listener.accept()
        server.close()
        client.close()
    check_ports(settings(None, f"port={port}"))
    assert holder_of(port) is None


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["port=8123", "websocket_port=8123"], "are both 8123"),
        (["host=nowhere.invalid", "allow_unauthenticated=true"], "does not resolve on this machine"),
        (["host=192.0.2.1", "allow_unauthenticated=true"], "not an address of this machine"),
    ],
)
def test_what_can_never_be_listened_on(words: list[str], match: str) -> None:
    with pytest.raises(ServeError, match=match):
        check_ports(settings(None, *words))


def test_other_reasons_are_reported() -> None:
    assert "port 80 is not allowed for this user" in why_not("127.0.0.1", "port", 80, OSError(errno.EACCES, "denied"))
    assert "such as port=8080" in why_not("127.0.0.1", "port", 80, OSError(errno.EACCES, "denied"))
    assert "port 9 on h: Too many" in why_not("h", "port", 9, OSError(errno.EMFILE, "Too many open files"))


def test_the_port_is_checked_before_the_checkpoint_is_loaded() -> None:
    with taken() as port, pytest.raises(ServeError, match="is taken"):
        serve_checkpoint(settings(None, f"port={port}", "ckpt=absent.ckpt"))


@pytest.mark.parametrize("name", ["port", "websocket_port"])
def test_a_port_that_is_taken_meanwhile_is_the_same_error(name: str) -> None:
    async def listen(port: int) -> None:
        async with listening(FakeEngine(), settings(None, f"{name}={port}")):
            raise AssertionError("it listens")

    with taken() as port, pytest.raises(ServeError, match=rf"{name} {port} on 127\.0\.0\.1 is taken"):
        asyncio.run(listen(port))


@pytest.mark.parametrize("folder", ["/proc/nothing", "file"])
def test_a_folder_for_logs_that_cannot_be_written(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServeError, match=r"log\.directory .* cannot be written .*log\.directory=null"):
        serve_checkpoint(settings(tmp_path / folder if folder == "file" else Path(folder)))
