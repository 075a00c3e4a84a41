"""A robot whose client behaves like the public one: it resends on a timer, ignores errors, and never reconnects."""

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_factory import FakeEngine, OldClient, PublicClient, ServerThread, observation_message, settings, wait_until
from websockets.sync.client import connect

from diffusion_policy.run_log.session_log import read_lines
from diffusion_policy.serve.engine import Inference, PolicyEngine
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.stages import GivenUpError, Stages
from diffusion_policy.serve.transport.arrays import pack, unpack
from diffusion_policy.serve.transport.protocol import Observation

PERIOD = 0.15  # a quarter of the client's 0.6 s; an inference takes as long, up to 0.25 (its 1.0) s


def stamped(count: int, period: float = PERIOD) -> Iterator[dict[str, Any]]:
    """Observations as they are sent: stamped with the time at which each is asked for."""
    for step in range(count):
        now = time.time()
        yield observation_message(step, timestamps=[now - 0.1, now])


class Steps(FakeEngine):
    """Denoises in steps of 20 ms, and counts them; an inference also lasts until `may_end` is set."""

    def __init__(self, durations: Iterator[float]) -> None:
        super().__init__()
        self.durations = durations
        self.begun: list[float] = []
        self.done = 0
        self.given_up = 0
        self.spans: list[tuple[float, float]] = []
        self.may_end = threading.Event()
        self.may_end.set()

    def infer(self, observation: Observation, seed: int, remainder: np.ndarray | None, stages: Stages) -> Inference:
        self.begun.append(float(observation.timestamps[-1]))
        at = time.monotonic()
        try:
            while not self.may_end.wait(0.02):
                stages.check()
            for _ in range(round(next(self.durations) / 0.02)):
                stages.check()
                self.done += 1
                time.sleep(0.02)
        except GivenUpError:
            self.given_up += 1
            raise
        self.spans.append((at, time.monotonic()))
        return super().infer(observation, seed, remainder, stages)

    @contextlib.contextmanager
    def busy_with(self, server: ServerThread, send_first: Callable[[], Any]) -> Iterator[None]:
        """Messages sent inside this block wait at the server while it infers for the first message."""
        self.may_end.clear()
        send_first()
        wait_until(lambda: len(self.begun) == 1, 60)
        yield
        server.has_read()
        self.may_end.set()


def test_a_client_that_sends_faster_than_the_policy_answers_gets_all_that_can_be_computed(tmp_path: Path) -> None:
    engine = Steps(itertools.cycle([0.16, 0.24, 0.2]))
    chosen = settings(tmp_path, "deadline_s=5", "max_age_s=5")
    with ServerThread(engine, chosen) as server, PublicClient(server.ports["line"]) as client:
        client.run(stamped(12), PERIOD)
    assert len(client.replies) == 12, "one reply for each, in order"
    assert set(client.codes) <= {"action", "superseded"}, client.codes
    # An inference takes longer than the client's period, so there is always one to begin with.
    busy, elapsed = sum(end - begin for begin, end in engine.spans), engine.spans[-1][1] - engine.spans[0][0]
    assert busy > 0.8 * elapsed, (busy, elapsed, client.codes)
    assert client.codes[-1] == "action", "the newest is answered"
    (run,) = tmp_path.glob("run_*")
    lines = read_lines(run)[1]
    assert len(lines) == 12
    superseded = [line for line in lines if line.get("code") == "superseded"]
    assert len(superseded) == client.codes.count("superseded") > 0
    assert all(line["input"]["states"] and "client_obs" in line["timing"] for line in superseded)
    answered = [line["timing"]["client_obs"] for line in lines if "action" in line]
    assert engine.begun == answered, "nothing is computed in vain"


def test_over_the_websocket_too() -> None:
    engine = Steps(itertools.cycle([0.0]))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ServerThread(engine, settings(None, "websocket_port=0")))
        uri = f"ws://127.0.0.1:{server.ports['websocket']}"
        client = stack.enter_context(connect(uri, compression=None))
        client.recv()
        messages = stamped(10)
        with engine.busy_with(server, lambda: client.send(pack(next(messages)))):
            for message in messages:
                client.send(pack(message))
        replies = [client.recv(60) for _ in range(10)]
    kinds = ["superseded" if isinstance(reply, str) else "actions" for reply in replies]
    assert all(reply.startswith("superseded: ") for reply in replies if isinstance(reply, str))
    assert kinds[0] == kinds[-1] == "actions"
    assert 2 <= kinds.count("actions") < 9
    newest = unpack(replies[-1])  # type: ignore[arg-type]
    assert newest["timestamps"][0] == engine.begun[-1]


@pytest.mark.parametrize(
    ("between", "kinds"),
    [
        ([], ["action", "superseded", "action"]),
        ([{"type": "reset"}], ["action", "action", "reset_ack", "action"]),
        ([{"type": "hello"}], ["action", "superseded", "metadata", "action"]),
        ([{"type": "?"}], ["action", "superseded", "unknown_type", "action"]),
        ([observation_message(2, images=["", ""])], ["action", "superseded", "superseded", "action"]),
        ([observation_message(2, poses=[[0.0] * 7] * 2)], ["action", "superseded", "bad_state", "action"]),
    ],
    ids=["nothing", "reset", "hello", "unknown", "an empty picture", "no pose"],
)
def test_what_waits_is_answered_in_order_and_a_reset_parts_episodes(between: list[Any], kinds: list[str]) -> None:
    engine = Steps(itertools.cycle([0.0]))
    with ServerThread(engine, settings()) as server, PublicClient(server.ports["line"]) as client:
        with engine.busy_with(server, lambda: client.send_once(observation_message(0))):
            for message in (observation_message(1), *between, observation_message(3)):
                client.send_once(message)
        wait_until(lambda: client.poll() is not None or len(client.replies) == len(kinds))
    assert client.codes == kinds


def test_an_observation_is_not_superseded_by_one_that_cannot_be_answered() -> None:
    engine = Steps(itertools.cycle([0.0]))
    with ServerThread(engine, settings()) as server, PublicClient(server.ports["line"]) as client:
        with engine.busy_with(server, lambda: client.send_once(observation_message(0))):
            for message in (observation_message(1), observation_message(2, grippers=[["?"], ["?"]])):
                client.send_once(message)
        wait_until(lambda: client.poll() is not None or len(client.replies) == 3)
    assert client.codes == ["action", "action", "malformed"]


def test_a_late_inference_is_given_up_and_the_next_one_answered(tmp_path: Path) -> None:
    engine = Steps(iter([10.0, 0.0]))
    with ServerThread(engine, settings(tmp_path, "deadline_s=1")) as server, server.client() as client:
        assert client.ask(observation_message(0))["code"] == "late"
        assert client.ask(observation_message(1))["type"] == "action", "the policy is free again"
    assert engine.given_up == 1
    assert engine.done < 400, "of 500 steps"
    (run,) = tmp_path.glob("run_*")
    late, step = read_lines(run)[1]
    assert (late["code"], late["delivered"]) == ("late", False)
    assert "infer_start" in late["timing"]
    assert late["input"]["images"]
    assert step["delivered"] is True


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
def test_an_inference_whose_client_has_gone_is_given_up(how: str, tmp_path: Path) -> None:
    engine = Steps(iter([10.0, 0.0]))
    with ServerThread(engine, settings(tmp_path)) as server:
        client = server.client()
        client.send(observation_message(0))
        wait_until(lambda: engine.done > 0)
        if how == "half-close":
            client.socket.shutdown(socket.SHUT_WR)
            assert client.receive() is None
        elif how == "reset":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        client.close()
        wait_until(lambda: engine.given_up == 1)
        with server.client() as other:
            wait_until(lambda: other.ask(observation_message(0))["type"] == "action")
    line = read_lines(min(tmp_path.glob("run_*")))[1][0]
    assert (line["code"], line["delivered"]) == ("late", False)
    assert "hung up" in line["message"]


@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}, {"fast": False}], ids=["fast", "bf16", "plain"])
def test_every_engine_gives_up_between_denoising_steps(options: dict[str, Any], served_checkpoint: Path) -> None:
    engine = PolicyEngine.open(served_checkpoint, EngineSettings(steps=10, **options))
    asked = itertools.count()
    stages = Stages()
    stages.wanted = lambda: next(asked) < 4
    observation = Observation(
        tuple(np.full((48, 64, 3), i, np.uint8) for i in range(2)),
        np.tile([0.5, 0, 0.3, 1, 0, 0, 0], (2, 1)),
        np.ones((2, 1)),
        np.array([0.0, 0.1]),
    )
    with pytest.raises(GivenUpError):
        engine.infer(observation, 0, None, stages)
    assert next(asked) == 5, "asked before each step"
    first, again = (engine.infer(observation, 0, None, Stages()).actions for _ in range(2))
    np.testing.assert_array_equal(first, again), "what was given up leaves nothing behind"


def refusing(observation: Observation) -> np.ndarray | None:
    """A chunk that the guard refuses while the arm is in a forbidden place."""
    return np.full((10, 8), np.nan) if observation.poses[-1, 0] > 0.9 else None


def send_each_after_the_last_reply(client: PublicClient, messages: Iterable[dict[str, Any]]) -> None:
    for number, message in enumerate(messages, len(client.replies) + 1):
        client.send_once(message)
        wait_until(lambda number=number: client.poll() is not None or len(client.replies) == number)


FAR = [[0.95, 0.0, 0.3, 1.0, 0.0, 0.0, 0.0]] * 2


def test_twenty_errors_in_a_row_and_the_arm_is_served_again_on_the_same_connection(tmp_path: Path) -> None:
    with ServerThread(FakeEngine(refusing), settings(tmp_path)) as server:
        with PublicClient(server.ports["line"]) as client:
            send_each_after_the_last_reply(client, (observation_message(step, poses=FAR) for step in range(40)))
            assert client.codes == ["refused"] * 40, "each is answered"
            assert server.host.robot_lock.holder is None, "another robot could be served"
            send_each_after_the_last_reply(client, (observation_message(step) for step in range(40, 43)))
        assert client.codes[-1] == "action"
        assert client.dead == 0
    (run,) = tmp_path.glob("run_*")
    codes = [line.get("code", "action") for line in read_lines(run)[1]]
    assert codes == ["refused"] * 21 + ["action"] * 3, "20, the 32nd, and the answers"
    episodes = [line["episode"] for line in read_lines(run)[1]]
    assert episodes[0] == 0
    assert episodes[-1] > 0, "another episode: the arm was moved meanwhile"


def test_a_robot_that_was_turned_away_is_served_when_the_first_one_leaves() -> None:
    with ServerThread(FakeEngine(), settings(None, "traffic.linger_s=0.2")) as server:
        first, second = server.client(), PublicClient(server.ports["line"])
        with first, second:
            assert first.ask(observation_message(0))["type"] == "action"
            second.run((observation_message(step) for step in range(4)), 0.1)
            assert second.codes == ["busy"] * 4, "beyond linger_s: it goes on asking"
            first.close()
            wait_until(lambda: server.host.robot_lock.holder is None)
            second.run((observation_message(step) for step in range(4, 8)), 0.05)
            assert second.codes[-1] == "action"
            assert second.dead == 0


def test_an_engine_that_failed_once_is_asked_again() -> None:
    failures = iter([True, False, True, False])

    def sometimes(observation: Observation) -> None:
        if next(failures):
            raise ZeroDivisionError

    with ServerThread(FakeEngine(sometimes), settings()) as server, PublicClient(server.ports["line"]) as client:
        send_each_after_the_last_reply(client, (observation_message(step) for step in range(4)))
    assert client.codes == ["internal", "action", "internal", "action"]


def test_while_a_session_rests_another_robot_is_served_and_the_first_is_told() -> None:
    chosen = settings(None, "traffic.errors_in_a_row=2")
    with ServerThread(FakeEngine(refusing), chosen) as server, server.client() as first, server.client() as second:
        assert [first.ask(observation_message(step, poses=FAR))["code"] for step in range(2)] == ["refused"] * 2
        assert second.ask(observation_message(0))["type"] == "action"
        assert first.ask(observation_message(3))["code"] == "busy"
        second.close()
        wait_until(lambda: server.host.robot_lock.holder is None)
        assert first.ask(observation_message(4))["type"] == "action"


def test_a_session_that_rests_and_falls_silent_is_closed() -> None:
    chosen = settings(None, "traffic.errors_in_a_row=2", "traffic.linger_s=0.3")
    with ServerThread(FakeEngine(refusing), chosen) as server, server.client() as client:
        for step in range(2):
            assert client.ask(observation_message(step, poses=FAR))["code"] == "refused"
        begun = time.monotonic()
        assert client.receive() is None
        assert 0.2 < time.monotonic() - begun < 5


def test_a_flood_is_read_with_bounds_and_the_newest_answered() -> None:
    """With more than the inbox holds, reading pauses and then continues."""
    engine = Steps(itertools.cycle([0.05]))
    small = settings(None, "limits.message_bytes=20000", "traffic.messages_per_s=10000")
    with ServerThread(engine, small) as server, OldClient(server.ports["line"]) as client:
        for step in range(200):
            client.send(observation_message(step))
        replies = [client.receive() for _ in range(200)]
    kinds = [reply.get("code", reply["type"]) for reply in replies if reply]
    assert len(kinds) == 200
    assert set(kinds) == {"action", "superseded"}
    assert kinds[-1] == "action"
    assert kinds.count("action") < 60
