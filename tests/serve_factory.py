"""A server in a thread, an engine without a network, and a client written only from the protocol's documentation."""

import asyncio
import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from diffusion_policy.serve.engine import Inference
from diffusion_policy.serve.server import listening
from diffusion_policy.serve.settings import ServeSettings, read_settings
from diffusion_policy.serve.stages import Stages
from diffusion_policy.serve.transport.images import decode_image
from diffusion_policy.serve.transport.protocol import MessageForm, Observation

POSE = [0.5, 0.0, 0.3, 1.0, 0.0, 0.0, 0.0]
N_OBS, N_ACTIONS = 2, 8


class FakeEngine:
    """Answers that the arm stays where it is, unless ``mischief``, called first, raises, waits or returns a chunk."""

    n_obs_steps = N_OBS
    n_action_steps = N_ACTIONS
    form = MessageForm(N_OBS)

    def __init__(self, mischief: Callable[[Observation], np.ndarray | None] = lambda observation: None) -> None:
        self.mischief = mischief
        self.remainders: list[np.ndarray | None] = []

    def infer(self, observation: Observation, seed: int, remainder: np.ndarray | None, stages: Stages) -> Inference:
        with stages.measure("decode"):
            for image in observation.images:
                decode_image(image, 10**7, "images")
        self.remainders.append(remainder)
        chunk = self.mischief(observation)
        if chunk is None:
            chunk = np.tile(observation.states[-1], (N_OBS + N_ACTIONS, 1))
        return Inference(chunk[1 : 1 + N_ACTIONS], chunk, 1, N_OBS)

    def inspect(self, observation: Observation, seed: int) -> tuple[dict[str, Any], Inference]:
        return {"robot_eef_pose": observation.poses.astype(np.float32)}, self.infer(observation, seed, None, Stages())

    def outside_training(self, observation: Observation, margin: float) -> list[str]:
        return ["x is 2.0000; training saw 0 to 1"] if observation.poses[-1, 0] > 1 else []

    def action_range(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array([0, -1, 0, -1, -1, -1, -1, 0.0]), np.ones(8)

    def describe(self) -> dict[str, Any]:
        return {"checkpoint": "fake.ckpt", "checkpoint_sha256": "0" * 64, "action_semantics": {"names": ["x"]}}


class DescribedEngine(FakeEngine):
    """Describes what a control loop needs to know."""

    def __init__(self, checkpoint: str = "fake.ckpt", sha256: str = "0" * 64) -> None:
        super().__init__()
        self._identity = {"checkpoint": checkpoint, "checkpoint_sha256": sha256}

    def describe(self) -> dict[str, Any]:
        counts = {"n_obs_steps": self.n_obs_steps, "n_action_steps": self.n_action_steps}
        return {**super().describe(), **counts, **self._identity}


class ServerThread:
    """A listening server in its own thread; leaving the block shuts it down in order."""

    def __init__(self, engine: Any, settings: ServeSettings, worker: ThreadPoolExecutor | None = None) -> None:
        self.engine = engine
        self.worker = worker
        self.settings = settings
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with listening(self.engine, self.settings, worker=self.worker) as (self.host, self.ports):
            self._ready.set()
            await self._stop.wait()

    def __enter__(self) -> "ServerThread":
        self._thread.start()
        assert self._ready.wait(20), "the server did not start"
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not stop"

    def has_read(self) -> None:
        """Waits until the server has read what was sent to it so far: its loop has looked at its sockets many times."""

        async def look() -> None:
            for _ in range(20):
                await asyncio.sleep(0.002)

        asyncio.run_coroutine_threadsafe(look(), self._loop).result(60)

    def client(self, timeout: float = 20.0) -> "OldClient":
        return OldClient(self.ports["line"], timeout)


class OldClient:
    """What a robot's client does: one JSON object per line, one line back."""

    def __init__(self, port: int, timeout: float = 20.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self._lines = self.socket.makefile("rb")

    def send(self, message: Mapping[str, Any] | bytes, piece: int = 2**20) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
        for start in range(0, len(data), piece):
            self.socket.sendall(data[start : start + piece])

    def receive(self) -> dict[str, Any] | None:
        """The next reply; None if the server has closed the connection."""
        line = self._lines.readline()
        return json.loads(line) if line else None

    def ask(self, message: Mapping[str, Any] | bytes) -> dict[str, Any] | None:
        self.send(message)
        return self.receive()

    def close(self) -> None:
        self._lines.close()
        self.socket.close()

    def __enter__(self) -> "OldClient":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class PublicClient(OldClient):
    """The public robot client, as observed: it sends whenever its timer fires, answered or not, checks
    its socket without waiting, acts only on actions, commands every step of a chunk at once, and never reconnects.

    Attributes:
        replies: all of them, in order; the client itself knows only of ``chunks``.
        chunks: actions (n, 8) that it executed.
        dead: how often it found its socket closed.
    """

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.socket.settimeout(0)
        self.replies: list[dict[str, Any]] = []
        self.chunks: list[np.ndarray] = []
        self.dead = 0
        self._rest = b""

    def send_once(self, message: Mapping[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with contextlib.suppress(OSError):  # it does not check
            self.socket.settimeout(5)
            self.socket.sendall(data)
        self.socket.settimeout(0)

    def poll(self) -> None:
        try:
            data = self.socket.recv(2**20)
        except OSError:  # nothing there, or reset: it does not care
            return
        self.dead += data == b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            reply = json.loads(line)
            self.replies.append(reply)
            if reply["type"] in ("action", "action_sequence"):
                self.chunks.append(np.array(reply["action"]))

    def run(self, messages: Iterable[Mapping[str, Any]], period: float, patience: float = 5.0) -> None:
        """Sends one every ``period`` seconds, then checks until there is a reply for each, or a timeout."""
        expected = len(self.replies)
        for message in messages:
            self.send_once(message)
            expected += 1
            begun = time.monotonic()
            while time.monotonic() - begun < period:
                self.poll()
                time.sleep(0.002)
        begun = time.monotonic()
        while len(self.replies) < expected and time.monotonic() - begun < patience:
            self.poll()
            time.sleep(0.002)

    @property
    def codes(self) -> list[str]:
        """Returns for each reply the code of an error, else its type."""
        return [reply.get("code", reply["type"]) for reply in self.replies]


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def jpeg(step: int = 0, size: tuple[int, int] = (64, 48)) -> bytes:
    coarse = np.random.default_rng(step).integers(0, 255, (9, 16, 3), dtype=np.uint8)
    frame = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def observation_message(step: int = 0, size: tuple[int, int] = (64, 48), **changes: Any) -> dict[str, Any]:
    """A valid observation of step ``step``; None as a change leaves the entry out."""
    times = [step / 10, (step + 1) / 10]
    message = {
        "type": "observation",
        "images": [base64.b64encode(jpeg(step + i, size)).decode() for i in range(N_OBS)],
        "poses": [POSE] * N_OBS,
        "grippers": [[1.0]] * N_OBS,
        "timestamps": times,
        "send_timestamp": time.time(),
        **changes,
    }
    return {key: value for key, value in message.items() if value is not None}


def parsed(step: int = 0, size: tuple[int, int] = (64, 48), pose: list[float] = POSE) -> Observation:
    images = tuple(jpeg(step + i, size) for i in range(N_OBS))
    times = np.array([step / 10, (step + 1) / 10])
    return Observation(images, np.array([pose] * N_OBS), np.ones((N_OBS, 1)), times)


# A session that has ended is closed at once; without it, only after two seconds.
SOON = "traffic.linger_s=0.1"


def settings(tmp_path: Path | None = None, *overrides: str) -> ServeSettings:
    """Free ports, and a log only where a folder is given."""
    log = "null" if tmp_path is None else str(tmp_path)
    words = ["ckpt=none.ckpt", "port=0", f"log.directory={log}", "max_age_s=30", "deadline_s=10", *overrides]
    return read_settings(None, words)
