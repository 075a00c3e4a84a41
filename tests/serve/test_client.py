"""diffusion_policy.serve.client: what runs on the robot's machine."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_factory import POSE, FakeEngine, ServerThread, jpeg, settings
from websockets.sync.server import serve

from diffusion_policy.serve.client import Chunk, LineClient, ServerError, WebSocketClient
from diffusion_policy.serve.transport.arrays import pack


def test_a_robot_s_machine_needs_no_torch(repository: Path) -> None:
    program = (
        "import sys; from diffusion_policy.serve.client import LineClient, WebSocketClient; "
        "print(sorted({'torch', 'diffusers', 'torchvision', 'zarr'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("now", "first"), [(0.9, 0), (1.0, 0), (1.04, 0), (1.06, 1), (1.31, 3), (2.0, 4)])
def test_a_late_chunk_skips_what_is_over(now: float, first: int) -> None:
    actions = np.arange(32.0).reshape(4, 8)
    due = Chunk(actions, 1.0 + np.arange(4) / 10).due(now)
    np.testing.assert_array_equal(due, actions[first:])


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "closed"),
        (b'{"type": "metadata", "a', "closed"),
        (b"HTTP/1.1 400\r\n", "malformed"),
        (b"[1]\n", "malformed"),
    ],
)
def test_an_invalid_answer_is_an_error_of_the_server(answer: bytes, code: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer_once() -> None:
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as lines:
                lines.readline()
                connection.sendall(answer)

        thread = threading.Thread(target=answer_once, daemon=True)
        thread.start()
        with pytest.raises(ServerError) as caught:
            LineClient(port=listening.getsockname()[1])
        thread.join(10)
    assert caught.value.code == code


GIVEN: dict[str, tuple[str, dict[str, Any]]] = {
    "NaN in a pose": ("bad_state", {"poses": [[0.5, np.nan, 0.3, 1, 0, 0, 0]] * 2}),
    "infinity in a gripper": ("bad_state", {"grippers": [[np.inf], [1.0]]}),
    "NaN as a time": ("bad_state", {"timestamps": [np.nan, 0.1]}),
    "no pose": ("malformed", {"poses": None}),
    "poses of text": ("malformed", {"poses": [["x"] * 7] * 2}),
    "a pose of six": ("malformed", {"poses": [[0.5] * 6] * 2}),
    "ragged poses": ("malformed", {"poses": [[0.5] * 7, [0.5]]}),
    "one pose for two times": ("malformed", {"poses": [POSE]}),
    "grippers of two": ("malformed", {"grippers": [[1, 1], [1, 1]]}),
    "no time": ("malformed", {"timestamps": []}),
    "a time alone": ("malformed", {"timestamps": 1.0}),
    "a camera without a picture": ("bad_image", {"images": [jpeg(0), None]}),
    "a path as a picture": ("bad_image", {"images": ["frame.jpg", "frame.jpg"]}),
    "one picture": ("wrong_frames", {"images": [jpeg(0)]}),
    "one picture, not in a list": ("malformed", {"images": jpeg(0)}),
    "no pictures": ("malformed", {"images": None}),
}


@pytest.mark.parametrize("kind", ["line", "websocket"])
@pytest.mark.parametrize(("code", "changes"), GIVEN.values(), ids=GIVEN.keys())
def test_whatever_is_measured_wrongly_is_a_server_error_and_nothing_is_sent(
    code: str, changes: dict[str, Any], kind: str, served: dict[str, Any]
) -> None:
    good = {"images": [jpeg(0), jpeg(1)], "poses": [POSE] * 2, "grippers": [[1.0]] * 2, "timestamps": [0.0, 0.1]}
    with pytest.raises(ServerError, match="not sent: ") as caught:
        served[kind].infer(**{**good, **changes})
    assert caught.value.code == code
    served[kind].reset()
    assert len(served[kind].infer(**good).actions) == 8, "and the connection lives"


@pytest.fixture(scope="module")
def served() -> Iterator[dict[str, Any]]:
    """A client of each transport, each with its own server."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(ServerThread(FakeEngine(), settings(None, "websocket_port=0"))) for _ in "12"]
        line = stack.enter_context(LineClient(port=servers[0].ports["line"]))
        socket_ = stack.enter_context(WebSocketClient(f"ws://127.0.0.1:{servers[1].ports['websocket']}"))
        yield {"line": line, "websocket": socket_}


ANSWERS: dict[str, dict[str, Any]] = {
    "no actions": {"timestamps": [0.1]},
    "no times": {"action": [[0.0] * 8]},
    "too few times": {"action": [[0.0] * 8] * 2, "timestamps": [0.1]},
    "an empty chunk": {"action": [], "timestamps": []},
    "seven numbers": {"action": [[0.0] * 7], "timestamps": [0.1]},
    "ragged": {"action": [[0.0] * 8, [0.0]], "timestamps": [0.1, 0.2]},
    "text": {"action": [["x"] * 8], "timestamps": [0.1]},
    "nothing": {"action": None, "timestamps": None},
    "an action too large for JSON": {"action": [[1e999] + [0.0] * 7], "timestamps": [0.1]},
    "NaN as a time": {"action": [[0.0] * 8], "timestamps": [float("nan")]},
    "an error without its entries": {"type": "error"},
    "a list": [],  # type: ignore[dict-item]
}


@pytest.mark.parametrize("kind", ["line", "websocket"])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_whatever_comes_back_wrongly_is_a_server_error(answer: Any, kind: str) -> None:
    with contextlib.ExitStack() as stack:
        if kind == "line":
            client: Any = stack.enter_context(LineClient(port=stack.enter_context(answering_lines(answer))))
        else:
            uri = f"ws://127.0.0.1:{stack.enter_context(answering_frames(answer))}"
            client = stack.enter_context(WebSocketClient(uri))
        with pytest.raises(ServerError) as caught:
            client.infer([jpeg(0), jpeg(1)], [POSE] * 2, [1, 1], [0.0, 0.1])
    assert caught.value.code in ("malformed", "unknown")


@contextlib.contextmanager
def answering_lines(answer: Any) -> Iterator[int]:
    """A server that says hello and answers one line."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer_all() -> None:
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as lines:
                for reply in ({"type": "metadata"}, answer):
                    lines.readline()
                    connection.sendall(json.dumps(reply).encode() + b"\n")
                lines.readline()

        thread = threading.Thread(target=answer_all, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
    thread.join(10)


@contextlib.contextmanager
def answering_frames(answer: Any) -> Iterator[int]:
    """The same by WebSocket."""
    named = answer
    if isinstance(answer, dict) and "action" in answer:
        named = {"actions": answer["action"], "timestamps": answer["timestamps"]} if "timestamps" in answer else {}

    def handle(connection: Any) -> None:
        connection.send(pack({"type": "metadata"}))
        connection.recv()
        connection.send(pack(named))

    with serve(handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
    thread.join(10)


@pytest.mark.parametrize("kind", ["line", "websocket"])
def test_a_client_connects_again_when_the_server_is_back(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion_policy.serve.client.connections._RETRY_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as line, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [probe.getsockname()[1] for probe in (line, other)]
    chosen = settings(None, f"port={ports[0]}", f"websocket_port={ports[1]}")

    def infer() -> Any:
        return client.infer([jpeg(0), jpeg(1)], [POSE] * 2, [1, 1], [0.0, 0.1])

    with ServerThread(FakeEngine(), chosen):
        client: Any = LineClient(port=ports[0]) if kind == "line" else WebSocketClient(f"ws://127.0.0.1:{ports[1]}")
        assert len(infer().actions) == 8
    codes = []
    for _ in range(8):
        with pytest.raises(ServerError) as caught:
            infer()
        codes.append(caught.value.code)
        time.sleep(0.05)
    assert codes[0] in ("closed", "silent")
    assert set(codes[1:]) == {"unreachable"}
    with ServerThread(FakeEngine(), chosen):
        time.sleep(0.15)
        assert len(infer().actions) == 8
        client.close()
        with pytest.raises(ServerError, match="this client was closed"):
            infer()


def test_the_loop_of_the_readme_holds_the_arm_on_every_error(repository: Path) -> None:
    """The README's own lines, run with an arm that measures invalid values."""
    blocks = (repository / "README.md").read_text().split("```")
    block = next(text for text in blocks if "from diffusion_policy.serve.client" in text)
    good = ([jpeg(0), jpeg(1)], [POSE] * 2, [1.0, 1.0], [0.0, 0.1])

    class Arm:
        done = False

        def __init__(self) -> None:
            order = ("images", "poses", "grippers", "timestamps")
            bad = [[changes.get(name, good[i]) for i, name in enumerate(order)] for _, changes in GIVEN.values()]
            self.measured = [good, *bad]
            self.held: list[str] = []

        def observe(self) -> Any:
            measured = self.measured.pop(0)
            self.done = not self.measured
            return measured

        def hold(self, error: ServerError) -> None:
            self.held.append(error.code)

        def move(self, action: np.ndarray) -> None:
            raise AssertionError("the times of these actions are over")

    with ServerThread(FakeEngine(), settings()) as server:
        arm = Arm()
        program = block.removeprefix("python").replace('"127.0.0.1"', f"port={server.ports['line']}")
        exec(compile(program, "README.md", "exec"), {"arm": arm})  # noqa: S102
    assert arm.held == [code for code, _ in GIVEN.values()]
