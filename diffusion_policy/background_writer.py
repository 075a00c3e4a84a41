"""Writes items in a separate thread, so that a slow or full disk never delays the caller."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


class BackgroundWriter(Generic[Item]):
    """Writes items in the order in which they are put.

    Args:
        write: writes one item, in the writer's thread; an OSError, ValueError or TypeError that it raises ends the
            writing.
        finish: called at the end in the same thread; its OSError is ignored.
        about: what is written, for messages ("data/logs/serve").
        capacity: number of items that may wait; further ones are left out and counted.

    Attributes:
        dropped: number of items left out.
        stopped: why nothing is written anymore; None while all is well.
    """

    def __init__(
        self, write: Callable[[Item], None], finish: Callable[[], None], about: str, capacity: int = 64
    ) -> None:
        self.dropped = 0
        self.stopped: str | None = None
        self._write, self._finish, self._about = write, finish, about
        self._queue: queue.Queue[Item | None] = queue.Queue(capacity)
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Queues an item; returns at once."""
        if self.stopped:
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.dropped += 1
            if self.dropped.bit_count() == 1:  # at 1, 2, 4, 8, ...: not at every step
                logger.warning("the disk is slower than the robot: %d lines are missing from the log", self.dropped)

    def close(self, timeout: float = 5.0) -> None:
        """Writes what is queued and ends the thread; waits no longer than ``timeout`` for a disk that hangs."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(queue.Full):  # the queue of a writer that has stopped is not emptied
            self._queue.put(None, timeout=0 if self.stopped else timeout)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            logger.error("the log could not be completed within %s s", timeout)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._write(item)
            except (OSError, ValueError, TypeError) as error:  # a full disk, or a line that JSON cannot hold
                self.stopped = f"{self._about}: the log stopped: {error}"
                logger.error("%s; the robot is still served", self.stopped)
                break
        with contextlib.suppress(OSError):  # the file's buffer still holds what the disk refused
            self._finish()
