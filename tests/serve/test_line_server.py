"""diffusion_policy.serve.transport.line_server: the old robot clients, unchanged, over real sockets."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import warm_process
from serve_factory import SOON, FakeEngine, OldClient, ServerThread, observation_message, settings, wait_until

from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.replay import replay
from diffusion_policy.serve.settings import EngineSettings

LOOSE = "guard.quaternion_tolerance=0.9"  # the policy in these tests is untrained


def test_an_old_client_is_served_by_a_real_policy(served_checkpoint: Path) -> None:
    engine = PolicyEngine.open(served_checkpoint, EngineSettings(steps=2))
    engine.warm_up()
    with ServerThread(engine, settings(None, LOOSE)) as server:
        with server.client() as client:
            assert client.ask({"type": "reset"}) == {"type": "reset_ack"}
            client.send(observation_message(0, (1280, 720)), piece=4096)
            reply = client.receive()
            assert reply["type"] == "action", reply
            assert np.shape(reply["action"]) == (4, 8)
            assert np.isfinite(reply["action"]).all()
            # Several messages in one packet, a reset in the middle: one reply each, in order.
            lines = [observation_message(1), {"type": "reset"}, observation_message(0)]
            client.send(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            assert [client.receive()["type"] for _ in lines] == ["action", "reset_ack", "action"]
        with server.client() as again:
            assert again.ask(observation_message(0))["type"] == "action", "a client may reconnect"


def test_nothing_is_sent_unasked_and_a_hello_is_answered() -> None:
    with ServerThread(FakeEngine(), settings()) as server, server.client(timeout=0.3) as client:
        with pytest.raises(TimeoutError):
            client.socket.recv(1)
        client.socket.settimeout(20)
        reply = client.ask({"type": "hello"})
    assert reply["type"] == "metadata"
    assert reply["checkpoint"] == "fake.ckpt"
    assert reply["control_hz"] == 10
    assert reply["guard"]["max_step_m"] == 0.04
    assert reply["guard"]["workspace_low"] == [-0.05, -1.05, -0.05], "the training range, widened by 0.05 m"


def test_one_robot_at_a_time() -> None:
    with ServerThread(FakeEngine(), settings(None, SOON)) as server, server.client() as first:
        assert first.ask({"type": "reset"})["type"] == "reset_ack"
        with server.client() as second:
            assert second.ask({"type": "reset"})["code"] == "busy"
            assert second.receive() is None, "and the connection is closed"
        assert first.ask(observation_message())["type"] == "action"
        first.close()
        with server.client() as third:
            wait_until(lambda: server.host.robot_lock.holder is None)
            assert third.ask({"type": "reset"})["type"] == "reset_ack"


def test_half_open_and_silent_connections_end() -> None:
    with ServerThread(FakeEngine(), settings(None, "traffic.message_s=0.2", "traffic.idle_s=0.5")) as server:
        with server.client() as client:
            client.send(b'{"type": ')
            started = time.monotonic()
            assert client.receive() is None
            assert time.monotonic() - started < 5
        with server.client() as client:
            assert client.receive() is None


def test_too_many_connections_are_closed() -> None:
    with ServerThread(FakeEngine(), settings(None, "traffic.connections=1")) as server, server.client() as first:
        assert first.ask({"type": "reset"})
        with server.client() as second:
            assert second.receive() is None


def test_too_many_messages_a_second_are_refused_and_the_session_continues() -> None:
    with ServerThread(FakeEngine(), settings(None, "traffic.messages_per_s=5")) as server, server.client() as client:
        kinds = [client.ask({"type": "reset"}) for _ in range(8)]
        assert [kind.get("code") for kind in kinds[-2:]] == ["rate", "rate"]
        time.sleep(0.5)
        assert client.ask({"type": "reset"})["type"] == "reset_ack"


def test_an_oversized_line_ends_the_session() -> None:
    with ServerThread(FakeEngine(), settings(None, "limits.message_bytes=5000")) as server, server.client() as client:
        client.send(b"x" * 20000)
        assert client.receive()["code"] == "oversized"
        assert client.receive() is None


def test_a_new_client_needs_the_token_and_an_old_one_permission(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    token = f"token_file={tmp_path / 'token'}"
    with ServerThread(FakeEngine(), settings(None, token)) as server:
        for message in ({"type": "reset"}, observation_message(), {"type": "hello"}, {"type": "hello", "token": "no"}):
            with server.client() as client:
                assert client.ask(message)["code"] == "unauthorized"
                assert client.receive() is None
        with server.client() as client:
            assert client.ask({"type": "hello", "token": "secret"})["type"] == "metadata"
            assert client.ask(observation_message())["type"] == "action"
    open_to_old = settings(None, token, "allow_unauthenticated=true")
    with ServerThread(FakeEngine(), open_to_old) as server, server.client() as client:
        assert client.ask(observation_message())["type"] == "action"


def test_stopping_answers_the_request_under_way() -> None:
    entered = threading.Event()

    def slowly(observation: object) -> None:
        entered.set()
        time.sleep(0.5)

    server = ServerThread(FakeEngine(slowly), settings())
    with server, server.client() as client, server.client() as silent:
        client.send(observation_message())
        assert entered.wait(10)
        server.stop()
        assert client.receive()["type"] == "action"
        assert client.receive() is None
        assert silent.receive() is None
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.ports["line"]), timeout=1)


@contextlib.contextmanager
def served_process(
    repository: Path, checkpoint: Path, log: Path, python: str = sys.executable
) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """Yields a server in a separate process: the process, its port, and its output until it listened."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = [f"ckpt={checkpoint}", f"port={port}", f"log.directory={log}", LOOSE, "max_age_s=30", "deadline_s=30"]
    process = subprocess.Popen(
        [python, "scripts/serve.py", "--config", "config/serve.yaml", *words, "guard.on_workspace=clip"],
        cwd=repository, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)},
    )  # fmt: skip
    assert process.stderr is not None
    output = ""
    for line in process.stderr:
        output += line
        if "listening on" in line and "limits" in output:
            break
    try:
        yield process, port, output
    finally:
        process.kill()
        process.wait(20)
        process.stderr.close()


def test_sigterm_ends_the_process_in_order(repository: Path, served_checkpoint: Path, tmp_path: Path) -> None:
    with served_process(repository, served_checkpoint, tmp_path, warm_process.python()) as (process, port, output):
        assert "at most 0.04 m and 0.1 rad a step" in output, "the limits are said at the start"
        with OldClient(port) as client:
            client.send(observation_message())
            time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert client.receive()["type"] == "action"
        assert process.wait(60) == 0
    (steps,) = tmp_path.glob("run_*/steps.jsonl")
    assert len(steps.read_text().splitlines()) == 1


def test_a_killed_server_leaves_a_log_that_replays(repository: Path, served_checkpoint: Path, tmp_path: Path) -> None:
    with served_process(repository, served_checkpoint, tmp_path) as (process, port, _), OldClient(port) as client:
        for step in range(4):
            assert client.ask(observation_message(step))["type"] == "action"
        process.kill()
        process.wait(20)
    (run,) = tmp_path.glob("run_*")
    report = replay(run, served_checkpoint)
    assert report.steps >= 3, "at most the last one is lost"
    assert report.largest < 1e-6
