"""Where the time of one request goes, by name of the stage, on one monotonic clock; and whether anybody still waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# In order. receive: first to last byte of a message; wait: until its turn; parse: JSON and base64; log: handing the
# step to its thread.
STAGES = ("receive", "wait", "parse", "decode", "prepare", "encode", "denoise", "guard", "reply", "log")


class GivenUpError(Exception):
    """Nobody waits for this request any more, so it is not computed to its end."""


class Stages:
    """Milliseconds by stage; a stage that is entered twice adds up.

    Attributes:
        wanted: whether somebody still waits for the result; asked between denoising steps.
    """

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self.wanted: Callable[[], bool] = lambda: True

    def check(self) -> None:
        """Raise GivenUpError if nobody waits any more."""
        if not self.wanted():
            raise GivenUpError

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
