"""diffusion_policy.serve.transport.websocket_server: openpi's own client, unmodified, and ours."""

import logging
import random
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import msgpack
import numpy as np
import pytest
from serve_factory import N_ACTIONS, POSE, FakeEngine, ServerThread, jpeg, parsed, settings
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from diffusion_policy.serve.client import Chunk, LineClient, ServerError, WebSocketClient
from diffusion_policy.serve.engine import PolicyEngine
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.stages import Stages
from diffusion_policy.serve.transport.arrays import pack, unpack
from diffusion_policy.serve.transport.protocol import ProtocolError

FREE = "websocket_port=0"


def request(**changes: object) -> dict[str, object]:
    frames = np.stack([np.full((48, 64, 3), 10 * i, dtype=np.uint8) for i in range(2)])
    poses = np.array([POSE] * 2, dtype=np.float32)
    return {
        "images": frames,
        "poses": poses,
        "grippers": np.ones((2, 1)),
        "timestamps": np.array([0.0, 0.1]),
        **changes,
    }


def test_the_unmodified_openpi_client_is_served() -> None:
    reason = "openpi-client is not installed: pip install --no-deps openpi-client (its pins want numpy < 2)"
    policy_module = pytest.importorskip("openpi_client.websocket_client_policy", reason=reason)
    with ServerThread(FakeEngine(), settings(None, FREE)) as server:
        policy = policy_module.WebsocketClientPolicy("127.0.0.1", server.ports["websocket"])
        assert policy.get_server_metadata()["control_hz"] == 10
        answer = policy.infer(request())
        assert answer["actions"].shape == (N_ACTIONS, 8)
        assert answer["actions"].dtype == np.float32
        assert answer["server_timing"]["infer_ms"] >= 0
        np.testing.assert_allclose(answer["actions"][0], [*POSE, 1.0])
        with pytest.raises(RuntimeError, match="wrong_frames: images has 1 entries"):
            policy.infer(request(images=request()["images"][:1]))  # type: ignore[index]
        assert "actions" in policy.infer(request()), "the session went on"


def test_openpi_client_with_a_key(tmp_path: Path) -> None:
    policy_module = pytest.importorskip("openpi_client.websocket_client_policy", reason="openpi-client not installed")
    (tmp_path / "token").write_text("secret")
    with ServerThread(FakeEngine(), settings(None, FREE, f"token_file={tmp_path / 'token'}")) as server:
        port = server.ports["websocket"]
        policy = policy_module.WebsocketClientPolicy("127.0.0.1", port, api_key="secret")
        assert "actions" in policy.infer(request())
        with pytest.raises(ServerError, match=r"unreachable: .*401"):
            WebSocketClient(f"ws://127.0.0.1:{port}", token="wrong")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
            assert answer.read().strip() == b"OK"


def reset_when_free(client: WebSocketClient, patience_s: float = 5.0) -> None:
    """Resets; the server frees the robot once it has seen that the client before is gone, which may take a moment."""
    last = time.monotonic() + patience_s
    while True:
        try:
            return client.reset()
        except ServerError as error:
            if error.code != "busy" or time.monotonic() > last:
                raise
            time.sleep(0.01)


def test_our_clients_give_the_same_chunk_by_both_transports() -> None:
    images, times = [jpeg(0), jpeg(1)], [100.0, 100.1]
    with ServerThread(FakeEngine(), settings(None, FREE)) as server:
        with LineClient(port=server.ports["line"]) as line:
            line.reset()
            first = line.infer(images, [POSE] * 2, [1, 1], times)
            with pytest.raises(ServerError, match="bad_state"):
                line.infer(images, [[0.0] * 7] * 2, [1, 1], times)
            with pytest.raises(ServerError, match="busy"):
                LineClient(port=server.ports["line"])
        with WebSocketClient(f"ws://127.0.0.1:{server.ports['websocket']}") as socket:
            reset_when_free(socket)
            second = socket.infer(images, [POSE] * 2, [[1], [1]], times)
    np.testing.assert_allclose(first.actions, second.actions, atol=1e-6)
    np.testing.assert_allclose(first.timestamps, 100.1 + np.arange(N_ACTIONS) / 10)


def test_a_late_chunk_skips_what_is_past() -> None:
    chunk = Chunk(np.arange(32.0).reshape(4, 8), np.array([5.0, 5.1, 5.2, 5.3]))
    assert len(chunk.due(4.0)) == 4
    assert chunk.due(5.16)[:, 0].tolist() == [16, 24]
    assert len(chunk.due(6.0)) == 0


def test_without_a_server_the_client_says_so() -> None:
    with pytest.raises(ServerError, match=r"unreachable: 127\.0\.0\.1:1"):
        LineClient(port=1)


def test_raw_frames_and_png_give_the_same_actions(served_checkpoint: Path) -> None:
    engine = PolicyEngine.open(served_checkpoint, EngineSettings(steps=2))
    images = parsed()
    frames = tuple(engine.decode(images, step) for step in range(2))
    raw = type(images)(frames, images.poses, images.grippers, images.timestamps)
    encoded = engine.infer(images, 1, None, Stages())
    np.testing.assert_array_equal(encoded.actions, engine.infer(raw, 1, None, Stages()).actions)


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({b"__ndarray__": True, b"data": b"12", b"dtype": "O", b"shape": [2]}, "dtype 'O'"),
        ({b"__ndarray__": True, b"data": b"12", b"dtype": "<c8", b"shape": [2]}, "expected numbers"),
        ({b"__ndarray__": True, b"data": b"12", b"dtype": "<f4", b"shape": [2**40]}, "does not fit its bytes"),
        ({b"__ndarray__": True, b"data": b"12", b"dtype": "<f4", b"shape": [-1]}, "has the shape"),
        ({b"__ndarray__": True, b"data": b"12", b"dtype": ["<f4"], b"shape": [1]}, "expected numbers"),
        ({b"__npgeneric__": True, b"data": "text", b"dtype": "<f4"}, "not a single msgpack message"),
    ],
)
def test_arrays_from_the_network_are_numbers_of_their_size(entry: dict[bytes, object], match: str) -> None:
    with pytest.raises(ProtocolError, match=match):
        unpack(msgpack.packb({"images": entry}))


def test_invalid_msgpack_is_refused_and_objects_are_not_sent() -> None:
    with pytest.raises(ProtocolError, match="not a single msgpack message"):
        unpack(b"\xc1")
    with pytest.raises(TypeError, match="cannot be sent"):
        pack({"a": np.array([object()])})


def test_a_text_frame_and_an_oversized_one() -> None:
    limited = settings(None, FREE, "limits.message_bytes=2000")
    with ServerThread(FakeEngine(), limited) as server:
        uri = f"ws://127.0.0.1:{server.ports['websocket']}"
        with connect(uri, compression=None) as socket:
            socket.recv()
            socket.send("reset")
            assert str(socket.recv()).startswith("malformed: ")
            socket.send(b"x" * 5000)
            with pytest.raises(ConnectionClosed, match="1009"):
                socket.recv()


def test_the_client_runs_without_torch() -> None:
    program = "import sys, diffusion_policy.serve.client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_mutated_msgpack_gets_an_error_or_is_a_whole_observation(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "diffusion_policy")
    whole, rng = pack(request(images=[jpeg(0, (8, 8)), jpeg(1, (8, 8))])), random.Random(3)
    words = [FREE, "traffic.errors_in_a_row=1000000", "traffic.messages_per_s=1e9", "deadline_s=30"]
    seen = {"error": 0, "actions": 0}
    with ServerThread(FakeEngine(), settings(None, *words)) as server:
        uri = f"ws://127.0.0.1:{server.ports['websocket']}"
        with connect(uri, compression=None) as socket:
            socket.recv()
            for _ in range(2000):
                data = bytearray(whole)
                for _ in range(rng.choice([1, 1, 2, 8])):
                    at = rng.randrange(len(data))
                    data[at : at + rng.choice([0, 1, 1, 30])] = bytes([rng.randrange(256)])
                socket.send(bytes(data))
                answer = socket.recv(20)
                if isinstance(answer, str):
                    assert not answer.startswith("internal"), bytes(data)
                    seen["error"] += 1
                else:
                    assert np.isfinite(unpack(answer)["actions"]).all()
                    seen["actions"] += 1
            socket.send(pack({"type": "reset"}))
            assert unpack(socket.recv(20))["type"] == "reset_ack", "the session lives"  # type: ignore[arg-type]
    assert seen["error"] > 500, seen


def test_a_page_in_a_browser_cannot_take_the_slot() -> None:
    with ServerThread(FakeEngine(), settings(None, FREE)) as server:
        uri = f"ws://127.0.0.1:{server.ports['websocket']}"
        with pytest.raises(InvalidStatus, match="403"), connect(uri, origin="http://example.org"):  # type: ignore[arg-type]
            pass
