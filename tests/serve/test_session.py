"""diffusion_policy.serve.session and host: how a session ends, and that nothing outlives it."""

import logging
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from serve_factory import POSE, SOON, FakeEngine, OldClient, ServerThread, observation_message, settings, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from diffusion_policy.run_log.session_log import read_lines
from diffusion_policy.serve.server import _announce
from diffusion_policy.serve.transport.arrays import pack
from diffusion_policy.serve.transport.line_server import _keep_alive


class Gate:
    """An engine that waits until it is released."""

    def __init__(self) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self, observation: object) -> None:
        self.calls += 1
        self.entered.set()
        self.leave.wait(20)


def test_a_message_that_outlives_its_session_takes_no_slot(tmp_path: Path) -> None:
    gate = Gate()
    with ServerThread(FakeEngine(gate), settings(tmp_path, "deadline_s=0.2")) as server:
        with server.client() as client:
            codes = [client.ask(observation_message(step))["code"] for step in range(2)]  # the second waits its turn
        assert codes == ["late", "late"]
        gate.leave.set()
        wait_until(lambda: not server.host._connections)
        with server.client() as other:
            assert other.ask({"type": "reset"})["type"] == "reset_ack", "the slot is free"
            wait_until(lambda: other.ask(observation_message())["type"] == "action")
    assert gate.calls < 4, "nobody waited for the second answer, so it was not computed"
    lines = read_lines(min(tmp_path.glob("run_*")))[1]
    assert lines[0]["code"] == "late", "although its client had gone before it was done"
    assert lines[0]["input"]["images"]


def test_late_answers_in_a_row_end_the_session() -> None:
    words = ["deadline_s=0.05", "traffic.errors_in_a_row=2", SOON]
    chosen = settings(None, *words)
    with ServerThread(FakeEngine(lambda observation: time.sleep(0.3)), chosen) as server, server.client() as client:
        assert client.ask(observation_message(0))["code"] == "late"
        assert client.ask(observation_message(1))["code"] == "late"
        assert client.receive() is None


@pytest.mark.parametrize("code", ["refused", "bad_image", "stale"])
def test_errors_that_the_policy_s_side_finds_count_towards_the_end(code: str) -> None:
    def broken(observation: object) -> np.ndarray | None:
        return np.full((10, 8), np.nan) if code == "refused" else None

    changes = {"bad_image": {"images": ["", ""]}, "stale": {"timestamps": [-9.0, -8.9]}}.get(code, {})
    chosen = settings(None, "traffic.errors_in_a_row=3", SOON)
    with ServerThread(FakeEngine(broken), chosen) as server, server.client() as client:
        client.ask(observation_message())
        errors = 3 - (code == "refused")
        replies = [client.ask(observation_message(1, **changes)) for _ in range(errors)]
        assert [reply["code"] for reply in replies] == [code] * errors
        assert client.receive() is None


def test_an_answer_between_two_errors_begins_the_count_anew() -> None:
    with ServerThread(FakeEngine(), settings(None, "traffic.errors_in_a_row=2")) as server, server.client() as client:
        for step in range(4):
            assert client.ask({"type": "?"})["code"] == "unknown_type"
            assert client.ask(observation_message(step))["type"] == "action"


def test_nan_after_the_actions_is_doubt_enough() -> None:
    def half(observation: object) -> np.ndarray:
        sequence = np.tile([*POSE, 1.0], (10, 1))
        sequence[9] = np.nan  # rows 1 to 8 are the actions
        return sequence

    with ServerThread(FakeEngine(half), settings()) as server, server.client() as client:
        reply = client.ask(observation_message())
    assert reply["code"] == "refused"
    assert "denoised sequence holds NaN" in reply["message"]


def test_a_client_that_hung_up_gets_no_action(tmp_path: Path) -> None:
    gate = Gate()
    with ServerThread(FakeEngine(gate), settings(tmp_path)) as server, server.client() as client:
        client.send(observation_message())
        assert gate.entered.wait(10)
        client.socket.shutdown(socket.SHUT_WR)  # what the kernel does for a process that was killed
        time.sleep(0.1)
        gate.leave.set()
        assert client.receive() is None
    (run,) = tmp_path.glob("run_*")
    (line,) = read_lines(run)[1]
    assert line["delivered"] is False


def test_a_reply_that_cannot_be_encoded_is_an_error_and_no_silence() -> None:
    class Talkative(FakeEngine):
        def describe(self) -> dict[str, object]:
            return {"epoch": object()}

    with ServerThread(Talkative(), settings(None, "websocket_port=0", SOON)) as server:
        with server.client() as client:
            assert client.ask({"type": "hello"})["code"] == "internal"
            assert client.receive() is None
        with server.client() as client:
            wait_until(lambda: server.host.robot_lock.holder is None)
            assert client.ask(observation_message())["type"] == "action"


def test_who_is_turned_away_leaves_no_run(tmp_path: Path) -> None:
    with ServerThread(FakeEngine(), settings(tmp_path)) as server, server.client() as robot:
        assert robot.ask(observation_message())["type"] == "action"
        for _ in range(3):
            with server.client() as other:
                assert other.ask(observation_message())["code"] == "busy"
    assert len(list(tmp_path.glob("run_*"))) == 1


def test_a_silent_websocket_ends_and_a_type_may_be_anything() -> None:
    words = ["websocket_port=0", "traffic.idle_s=0.4", "limits.message_bytes=5000"]
    with ServerThread(FakeEngine(), settings(None, *words)) as server:
        uri = f"ws://127.0.0.1:{server.ports['websocket']}"
        with connect(uri, compression=None) as client:
            client.recv()
            client.send(pack({"type": np.arange(3)}))
            assert client.recv() == "unknown_type: type is ndarray; expected observation, reset or hello"
            started = time.monotonic()
            with pytest.raises(ConnectionClosed, match=r"1000|1001"):
                client.recv(timeout=10)
            assert time.monotonic() - started < 5


def test_an_oversized_websocket_message_is_in_the_log(tmp_path: Path) -> None:
    chosen = settings(tmp_path, "websocket_port=0", "limits.message_bytes=2000")
    with ServerThread(FakeEngine(), chosen) as server:
        client = connect(f"ws://127.0.0.1:{server.ports['websocket']}", compression=None)
        client.recv()
        client.send(b"x" * 9000)
        with pytest.raises(ConnectionClosed, match="1009"):
            client.recv(timeout=10)
        client.close()
        wait_until(lambda: not server.host._connections)
    (run,) = tmp_path.glob("run_*")
    assert [line["code"] for line in read_lines(run)[1]] == ["oversized"]


def test_a_token_that_is_not_text_is_a_wrong_one(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    chosen = settings(None, f"token_file={tmp_path / 'token'}")
    with ServerThread(FakeEngine(), chosen) as server, server.client() as client:
        assert client.ask(b'{"type": "hello", "token": "\\ud800"}\n')["code"] == "unauthorized"


def test_a_robot_without_power_frees_the_slot_even_with_an_answer_on_its_way() -> None:
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("this system has no TCP_USER_TIMEOUT")
    with socket.socket() as connection:
        _keep_alive(connection)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000


def test_an_open_server_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "diffusion_policy")
    with ServerThread(FakeEngine(), settings(None, "host=0.0.0.0", "allow_unauthenticated=true")) as server:
        with OldClient(server.ports["line"]) as client:
            assert client.ask(observation_message())["type"] == "action"
        _announce(server.host, server.ports)
    assert "anyone who can reach 0.0.0.0 can move the arm" in caplog.text
    assert "limits: at most 0.04 m and 0.1 rad a step (clip)" in caplog.text


def test_a_clock_that_jumps_to_the_end_of_time_is_survived() -> None:
    with ServerThread(FakeEngine(), settings()) as server, server.client() as client:
        assert client.ask(observation_message(0))["type"] == "action"
        assert client.ask(observation_message(1, timestamps=[1e308, 1e308]))["type"] == "action", "the chunk is over"
        assert client.ask(observation_message(2))["code"] == "stale"


def test_a_token_file_that_is_gone_neither_opens_nor_stops_the_server(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    with ServerThread(FakeEngine(), settings(None, f"token_file={tmp_path / 'token'}")) as server:
        (tmp_path / "token").unlink()
        with server.client() as client:
            assert client.ask({"type": "hello", "token": "other"})["code"] == "unauthorized"
        with server.client() as client:
            assert client.ask({"type": "hello", "token": "secret"})["type"] == "metadata"
