"""diffusion_policy.serve.client: what runs on the robot's machine."""

import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from diffusion_policy.serve.client import Chunk, LineClient, ServerError


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
def test_an_answer_that_is_none_is_an_error_of_the_server(answer: bytes, code: str) -> None:
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
