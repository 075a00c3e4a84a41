"""Timing of one request by stage, on one monotonic clock, and whether its reply is still awaited."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# In order. receive: first to last byte of a message; wait: until processing starts; parse: JSON and base64; log:
# queuing the step for its thread.
STAGES = ("receive", "wait", "parse", "decode", "prepare", "encode", "denoise", "guard", "reply", "log")


class GivenUpError(Exception):
    """The reply to this request is no longer awaited, so its computation is canceled."""


class Stages:
    """Milliseconds by stage; times of a stage that is entered twice are added.

    Attributes:
        wanted: returns whether the result is still awaited; called between denoising steps.
    """

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self.wanted: Callable[[], bool] = lambda: True

    def check(self) -> None:
        """Raises GivenUpError if the result is no longer awaited."""
        if not self.wanted():
            raise GivenUpError

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Measures the time of its block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Adds a time that was measured elsewhere."""
        assert name in STAGES, name
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + seconds * 1000
