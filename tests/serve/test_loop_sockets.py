"""The control loop over real sockets, through a failing network: it holds, reconnects, and continues."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from loop_factory import NumericArm
from serve_factory import DescribedEngine, ServerThread, jpeg, settings

from diffusion_policy.serve.client import (
    Chunk,
    ChunkRequest,
    ControlLoop,
    LineClient,
    LinesInMemory,
    LoopSettings,
    Picture,
    PolicyClient,
    Reading,
    RealClock,
    ServerError,
    ThreadRequester,
    WebSocketClient,
    make_strategy,
)
from diffusion_policy.serve.client.observation_buffer import AlignedObservation

PATIENCE_S = 30.0  # on a busy machine; a test ends as soon as the arm moves again


class SeeingArm(NumericArm):
    """Its camera's frames differ from each other."""

    def observe(self) -> Reading:
        found, now = super().observe(), self.clock.now()
        return Reading(found.state, now, {"image": Picture(jpeg(int(now * 10) % 50), now)})


class Network:
    """Passes everything on between a client and a server, unless ``fault`` is set.

    Attributes:
        fault: "stall": nothing comes back; "half": the next answer is cut in the middle and the connection is closed;
            "drip": a byte comes back every 20 ms; "cut": connections are closed and refused.
        connections: number of connections so far.
    """

    def __init__(self, port: int) -> None:
        self.fault, self.connections, self._port = "", 0, port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                if self.fault == "cut":
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._port))
                self.connections += 1
                self._open += [near, far]
                for source, target, answers in ((near, far, False), (far, near, True)):
                    threading.Thread(target=self._pump, args=(source, target, answers), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                while answers and self.fault == "stall":
                    time.sleep(0.01)
                if answers and self.fault == "half":
                    target.sendall(data[: len(data) // 2])
                    break
                for index in range(len(data)) if answers and self.fault == "drip" else ():
                    target.sendall(data[index : index + 1])
                    time.sleep(0.02)
                    if self.fault != "drip":
                        data = data[index + 1 :]
                        break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self.fault = "cut"
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        self._listening.close()


@dataclass
class Running:
    """A loop on a real clock behind a network."""

    loop: ControlLoop
    arm: SeeingArm
    log: LinesInMemory
    network: Network

    def until(self, condition: Callable[[], bool]) -> Callable[[], bool]:
        end = time.monotonic() + PATIENCE_S

        def is_done() -> bool:
            assert time.monotonic() < end, [line for line in self.log.lines if line["event"] != "move"][-12:]
            return condition()

        return is_done

    def lines(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log.lines if line["event"] == event]


@contextlib.contextmanager
def running(kind: str, server: ServerThread, answer_timeout_s: float = 1.0) -> Iterator[Running]:
    network = Network(server.ports["line" if kind == "line" else "websocket"])
    client: Any = (
        LineClient(port=network.port, timeout=60)
        if kind == "line"
        else WebSocketClient(f"ws://127.0.0.1:{network.port}", timeout=60)
    )
    clock, log = RealClock(), LinesInMemory()
    arm, policy_client = SeeingArm(clock), PolicyClient(client)  # type: ignore[arg-type]
    limits = LoopSettings(
        20.0, answer_timeout_s, longest_gap_s=5.0, camera_max_age_s=5.0, state_max_age_s=5.0, max_action_age_s=5.0
    )
    requester = ThreadRequester(policy_client, policy_client.interrupt)
    loop = ControlLoop(arm, requester, policy_client.form, make_strategy("skip", 4), limits, clock=clock, log=log)
    try:
        yield Running(loop, arm, log, network)
    finally:
        client.close()
        network.close()


@pytest.fixture(autouse=True)
def connects_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion_policy.serve.client.connections._RETRY_S", 0.05)


FAULTS = {"stall": {"no_answer"}, "half": {"server_error"}, "drip": {"no_answer"}, "cut": {"server_error"}}
# On the websocket, silence is noticed as on the line: by the loop, whatever it talks through.
FURTHER = {("stall", "websocket"), ("drip", "websocket")}


@pytest.mark.parametrize(
    ("fault", "reasons", "kind"),
    [
        pytest.param(fault, reasons, kind, marks=[pytest.mark.exhaustive] * ((fault, kind) in FURTHER))
        for fault, reasons in FAULTS.items()
        for kind in ("line", "websocket")
    ],
)
def test_a_network_that_fails(fault: str, reasons: set[str], kind: str) -> None:
    with ServerThread(DescribedEngine(), settings(None, "websocket_port=0")) as server, running(kind, server) as run:

        def fails() -> bool:
            if run.loop.moves >= 2 and not run.network.fault and not run.lines("hold")[1:]:
                run.network.fault = fault
                if fault == "cut":
                    run.network.cut()
            trouble = [line for line in run.lines("hold") if line["reason"] in reasons]
            if trouble and run.network.fault:
                run.network.fault = ""
            return bool(trouble) and "move" in {line["event"] for line in run.log.lines[-1:]}

        run.loop.run(run.until(fails))
        [trouble, *_] = [line for line in run.lines("hold") if line["reason"] in reasons]
        later = [line for line in run.lines("move") if line["time"] > trouble["time"]]
        seen = {line["request_id"]: line["observed_at"] for line in run.lines("request")}
        assert later
        assert all(seen[line["request_id"]] > trouble["time"] - 0.06 for line in later), "nothing from before"
        assert run.network.connections >= 2, "it connected again"
        assert run.arm.stopped == 1


def test_a_server_that_is_killed_and_started_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    chosen = settings(None, f"port={port}", "traffic.linger_s=0.1")
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(ServerThread(DescribedEngine(), chosen))
        run = stack.enter_context(running("line", first, answer_timeout_s=PATIENCE_S))
        second: list[ServerThread] = []

        def restarts() -> bool:
            if run.loop.moves >= 2 and not second:
                run.network.cut()
                first.stop()
                second.append(stack.enter_context(ServerThread(DescribedEngine(), chosen)))
                run.network.fault = ""
                run.loop.moves = 0
            return bool(second) and run.loop.moves >= 2 and bool(second[0].host.robot_lock.holder)

        run.loop.run(run.until(restarts))
        reasons = {line["reason"] for line in run.lines("hold")}
        assert "server_error" in reasons
        assert reasons <= {"waiting", "server_error", "camera_uneven"}, "the last, as this test kept the loop waiting"
        assert any(line["code"] in ("closed", "silent") for line in run.lines("error"))


def test_another_policy_behind_the_same_address_is_not_obeyed() -> None:
    with (
        ServerThread(DescribedEngine(), settings()) as one,
        ServerThread(DescribedEngine(sha256="1" * 64), settings()) as other,
    ):
        network = Network(one.ports["line"])
        with LineClient(port=network.port) as client:
            policy_client = PolicyClient(client)
            images = {"image": [jpeg(0), jpeg(1)]}
            states = np.tile([0.5, 0.0, 0.3, 1.0, 0.0, 0.0, 0.0, 1.0], (2, 1))
            query = ChunkRequest("a", AlignedObservation(np.array([0.0, 0.1]), states, images, {"image": 0.0}))
            assert isinstance(policy_client(query), Chunk)
            network.cut()
            network.fault, network._port = "", other.ports["line"]
            codes = []
            for _ in range(4):
                with pytest.raises(ServerError) as caught:
                    policy_client(query)
                codes.append(caught.value.code)
                time.sleep(0.06)
            assert codes[0] in ("closed", "silent")
            assert set(codes[1:]) == {"changed"}
        network.close()
