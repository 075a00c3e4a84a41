"""Where the time of one request goes, by name of the stage, on one monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

# In order. receive: first to last byte of a message; parse: JSON and base64; log: handing the step to its thread.
STAGES = ("receive", "parse", "decode", "prepare", "encode", "denoise", "guard", "reply", "log")


class Stages:
    """Milliseconds by stage; a stage that is entered twice adds up."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add a time that was taken elsewhere."""
        assert name in STAGES, name
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + seconds * 1000
