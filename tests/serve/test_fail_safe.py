"""In doubt no action leaves: one test for every line of the error table, and a fuzz test over a real socket."""

import base64
import json
import logging
import random
import resource
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import wrap
from typing import Any

import cv2
import numpy as np
import pytest
from serve_factory import (
    POSE,
    SOON,
    FakeEngine,
    OldClient,
    ServerThread,
    jpeg,
    observation_message,
    parsed,
    settings,
)

from diffusion_policy.images import decode_image
from diffusion_policy.run_log.session_log import read_lines
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.transport.protocol import ENDING, Observation
from diffusion_policy.spec import SpecError

GOOD = [base64.b64encode(jpeg(i)).decode() for i in range(2)]


def png_of_size(width: int, height: int) -> bytes:
    """The header of a huge image, and the bytes of a small one."""
    data = bytearray(cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(data)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


BAD: dict[str, tuple[str, Any]] = {
    "not JSON": ("malformed", b"{'type': 'reset'}\n"),
    "an empty line": ("malformed", b"\n"),
    "not UTF-8": ("malformed", b'{"type": "\xff"}\n'),
    "a list": ("malformed", b"[1, 2]\n"),
    "a deep nest": ("malformed", b"[" * 100_000 + b"\n"),
    "an integer of many digits": ("malformed", b'{"type": ' + b"9" * 10_000 + b"}\n"),
    "another type": ("unknown_type", {"type": "shutdown"}),
    "no type": ("unknown_type", {"kind": "reset"}),
    "an unhashable type": ("unknown_type", {"type": ["reset"]}),
    "inspection, which is off": ("unknown_type", observation_message(type="inspect")),
    "one image": ("wrong_frames", observation_message(images=GOOD[:1])),
    "three poses": ("wrong_frames", observation_message(poses=[POSE] * 3)),
    "no grippers": ("malformed", observation_message(grippers=None)),
    "a pose of six": ("malformed", observation_message(poses=[POSE[:6]] * 2)),
    "a pose of text": ("malformed", observation_message(poses=[["a"] * 7] * 2)),
    "true as a number": ("malformed", observation_message(grippers=[[True], [1.0]])),
    "NaN": ("bad_state", observation_message(poses=[[float("nan"), *POSE[1:]]] * 2)),
    "infinity": ("bad_state", observation_message(grippers=[[float("inf")]] * 2)),
    "beyond float": ("bad_state", json.dumps(observation_message()).replace("0.5,", "1e999,").encode() + b"\n"),
    "a quaternion of norm 2": ("bad_state", observation_message(poses=[[0.5, 0, 0.3, 2, 0, 0, 0]] * 2)),
    "times running backwards": ("bad_state", observation_message(timestamps=[1.0, 0.5])),
    "an image that is no base64": ("bad_image", observation_message(images=["&&&", GOOD[0]])),
    "an image that is a number": ("malformed", observation_message(images=[1, 2])),
    "an image as a data: URI": ("bad_image", observation_message(images=["data:image/jpeg;base64," + GOOD[0]] * 2)),
    "an image of many lines": ("bad_image", observation_message(images=["\n".join(wrap(GOOD[0]))] * 2)),
    "an image with blanks": ("bad_image", observation_message(images=[" " + GOOD[0]] * 2)),
    "url-safe base64": ("bad_image", observation_message(images=["-_" + GOOD[0][2:]] * 2)),
    "base64 without its padding": ("bad_image", observation_message(images=["YQ"] * 2)),
    "base64 with a letter of another alphabet": ("bad_image", observation_message(images=["\u00e9" + GOOD[0]] * 2)),
    "an image of noise": ("bad_image", observation_message(images=[encoded(b"noise" * 99)] * 2)),
    "an image cut off": ("bad_image", observation_message(images=[encoded(jpeg()[:-200])] * 2)),
    "an empty image": ("bad_image", observation_message(images=["", ""])),
    "an intervention of text": ("malformed", observation_message(intervention="yes")),
    "an intervention of a number": ("malformed", observation_message(intervention=1)),
    "a send time of text": ("malformed", observation_message(send_timestamp="now")),
    "an image of many pixels": ("oversized", observation_message(images=[encoded(png_of_size(60000, 60000))] * 2)),
    "an image of many bytes": ("oversized", observation_message(images=["A" * 6_000_000] * 2)),
}


@pytest.mark.parametrize(("code", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_message_gets_a_typed_error_and_the_session_continues_by_the_table(code: str, message: Any) -> None:
    with ServerThread(FakeEngine(), settings()) as server, server.client() as client:
        reply = client.ask(message)
        assert (reply["type"], reply["code"]) == ("error", code), reply
        assert "action" not in reply
        if code in ENDING:
            assert client.receive() is None
        else:
            assert client.ask(observation_message())["type"] == "action"


def answers(mischief: Callable[[Any], np.ndarray | None], tmp_path: Path, *overrides: str) -> list[dict[str, Any]]:
    """Returns replies to three observations from a misbehaving engine, then the log's lines."""
    engine = FakeEngine(mischief)
    with ServerThread(engine, settings(tmp_path, *overrides)) as server, server.client() as client:
        replies = [client.ask(observation_message(step)) for step in range(2)]
    (folder,) = tmp_path.glob("run_*")
    return [*replies, *read_lines(folder)[1]]


def chunk_of(value: float) -> np.ndarray:
    return np.tile([*POSE[:3], *([value] * 5)], (10, 1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 2.0])
def test_an_invalid_chunk_is_refused_and_logged(value: float, tmp_path: Path) -> None:
    first, second, *lines = answers(lambda observation: chunk_of(value), tmp_path)
    assert [first["code"], second["code"]] == ["refused", "refused"]
    assert [line["code"] for line in lines] == ["refused", "refused"]
    shown = lines[0]["predicted"]["values"][0]
    assert shown == [*POSE[:3], *([value if np.isfinite(value) else None] * 5)], "the log shows what was refused"


def test_an_exception_ends_the_session_and_reveals_no_internals(tmp_path: Path) -> None:
    def fail(observation: object) -> None:
        raise ZeroDivisionError("a detail of the server")

    with ServerThread(FakeEngine(fail), settings(tmp_path, SOON)) as server, server.client() as client:
        reply = client.ask(observation_message())
        assert reply["code"] == "internal"
        assert "detail" not in reply["message"]
        assert client.receive() is None


def test_what_the_policy_refuses_is_a_bad_state(tmp_path: Path) -> None:
    def refuse(observation: object) -> None:
        raise SpecError("the state is not one")

    first, _, line, _ = answers(refuse, tmp_path)
    assert first["code"] == line["code"] == "bad_state"


def test_a_late_answer_is_never_sent(tmp_path: Path) -> None:
    delays = iter([0.6, 0.0, 0.0])

    def slowly(observation: object) -> None:
        time.sleep(next(delays))

    with ServerThread(FakeEngine(slowly), settings(tmp_path, "deadline_s=0.2")) as server, server.client() as client:
        assert client.ask(observation_message(0))["code"] == "late"
        time.sleep(0.7)
        reply = client.ask(observation_message(7))
        assert reply["type"] == "action"
        assert reply["timestamps"][0] == pytest.approx(0.8), "the answer to the second observation, not the first"
        assert reply["step"] == 0, "the late one was no step"
    (folder,) = tmp_path.glob("run_*")
    late, step = read_lines(folder)[1]
    assert (late["code"], late["delivered"]) == ("late", False)
    assert step["step"] == 0


def test_a_client_that_is_gone_gets_no_action_and_frees_the_slot(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait(observation: object) -> None:
        entered.set()
        leave.wait(5)

    with ServerThread(FakeEngine(wait), settings(tmp_path)) as server:
        with server.client() as client:
            client.send(observation_message())
            assert entered.wait(5)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        time.sleep(0.1)  # the reset of the connection arrives
        leave.set()
        with server.client() as other:
            deadline = time.monotonic() + 5
            while server.host.robot_lock.holder is not None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert other.ask({"type": "reset"})["type"] == "reset_ack"
    first = min(tmp_path.glob("run_*"))
    (line, *_) = read_lines(first)[1]
    assert line["delivered"] is False


def test_stale_observations_are_refused_until_a_reset() -> None:
    with ServerThread(FakeEngine(), settings(None, "max_age_s=0.5")) as server, server.client() as client:
        now = time.time()
        assert client.ask(observation_message(timestamps=[now - 0.1, now]))["type"] == "action"
        assert client.ask(observation_message(timestamps=[now - 2.1, now - 2]))["code"] == "stale", "out of order"
        time.sleep(0.7)
        reply = client.ask(observation_message(timestamps=[now, now + 0.1]))
        assert reply["code"] == "stale", "more than half a second slower than the first"
        assert client.ask({"type": "reset"})["type"] == "reset_ack"
        assert client.ask(observation_message(timestamps=[now - 5.1, now - 5]))["type"] == "action"


def test_a_client_that_only_errs_is_sent_away() -> None:
    chosen = settings(None, "traffic.errors_in_a_row=3", SOON)
    with ServerThread(FakeEngine(), chosen) as server, server.client() as client:
        for _ in range(3):
            assert client.ask({"type": "?"})["code"] == "unknown_type"
        assert client.receive() is None


def test_far_outside_the_training_range_there_is_a_warning(tmp_path: Path) -> None:
    with ServerThread(FakeEngine(), settings(tmp_path, "guard.on_workspace=clip")) as server, server.client() as client:
        far = client.ask(observation_message(poses=[[2.0, *POSE[1:]]] * 2))
        assert far["warnings"] == ["x is 2.0000; training saw 0 to 1"]
        assert far["type"] == "action"
        slow = client.ask(observation_message(timestamps=[5.0, 5.8]))
        assert "frames are [0.7" in slow["warnings"][0]
    (run,) = tmp_path.glob("run_*")
    assert [line["warnings"] for line in read_lines(run)[1]] == [far["warnings"], slow["warnings"]]


def test_the_engine_warns_of_states_that_training_has_not_seen(served_checkpoint: Path) -> None:
    engine = PolicyEngine.open(served_checkpoint, EngineSettings(steps=1))
    low, high = engine.action_range()
    inside = observation((low + high) / 2)
    assert engine.outside_training(inside, 0.1) == []
    outside = observation((low + high) / 2 + np.array([1.0, 0, 0, 0, 0, 0, 0, 0]))
    (warning,) = engine.outside_training(outside, 0.1)
    assert warning.startswith("robot_eef_pose x is ")


def observation(state: np.ndarray) -> Observation:
    unit = np.concatenate([state[:3], state[3:7] / np.linalg.norm(state[3:7])])
    return parsed(pose=unit.tolist())


def mutated(rng: random.Random, line: bytes) -> bytes:
    """Returns a message corrupted in one of several ways, without newlines inside."""
    data = bytearray(line)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if not data:
            break
        at = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randrange(1, 40)]
            case 2:
                data[at:at] = rng.choice([b"-", b"[", b"}", b'"', b"1e999", b"NaN", b"null", b"[[[["])
            case 3:
                data = data[: at + 1]
            case _:
                other = rng.randrange(len(data))
                data[at], data[other] = data[other], data[at]
    return bytes(data).replace(b"\n", b" ") or b" "


def test_ten_thousand_mutated_messages_bring_nothing_down(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "diffusion_policy")
    tiny = [base64.b64encode(jpeg(i, (8, 8))).decode() for i in range(2)]
    line = json.dumps(observation_message(images=tiny, send_timestamp=None)).encode()
    good = json.loads(line)
    rng = random.Random(7)
    permissive = settings(None, "traffic.errors_in_a_row=1000000", "traffic.messages_per_s=1e9", "deadline_s=30")
    replies: dict[str, int] = {}
    with ServerThread(FakeEngine(), permissive) as server:
        client = server.client()
        before = 0
        for count in range(100):
            if count == 20:  # after the allocator's first growth
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            lines = [mutated(rng, line) for _ in range(100)]
            client.send(b"".join(entry + b"\n" for entry in lines))
            for entry in lines:
                reply = client.receive()
                if reply is None:  # the table ended the session: what was sent after it is lost
                    client = reconnected(server, client)
                    break
                assert reply.get("code") != "internal", entry
                replies[reply["type"]] = replies.get(reply["type"], 0) + 1
                if reply["type"] == "action":
                    assert says_the_same(entry, good), entry
        assert client.ask({"type": "reset"})["type"] == "reset_ack", "the server lives"
        client.close()
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < 30, f"{grown_mb:.0f} MB more after 8,000 messages"
    assert replies["error"] > 5000, replies


def reconnected(server: ServerThread, client: OldClient) -> OldClient:
    client.close()
    deadline = time.monotonic() + 5
    while server.host.robot_lock.holder is not None and time.monotonic() < deadline:
        time.sleep(0.005)
    return server.client()


def says_the_same(line: bytes, good: dict[str, Any]) -> bool:
    """Whether a mutated line is still a valid observation: finite numbers, complete images, right shapes."""
    message = json.loads(line)
    poses, grippers = np.array(message["poses"], float), np.array(message["grippers"], float)
    images = [base64.b64decode(image, validate=True) for image in message["images"]]
    return (
        poses.shape == (2, 7)
        and grippers.shape == (2, 1)
        and bool(np.isfinite(poses).all() and np.isfinite(grippers).all())
        and bool((np.abs(np.linalg.norm(poses[:, 3:], axis=1) - 1) <= 0.05).all())
        and len(message["timestamps"]) == 2
        and all(decode_image(image, "image").frame.shape == (8, 8, 3) for image in images)
        and good.keys() >= {"type"}
    )
