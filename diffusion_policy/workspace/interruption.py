"""Ctrl-C and SIGTERM end a run after the update under way, with a checkpoint; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAID = (
    b"\n%s: the update or validation under way is finished, then a checkpoint is saved; "
    b"once more ends the run at once, without saving\n"
)


class StopRequest:
    """Listens for signals while it is entered, and says so when one came.

    Args:
        says: whether this process talks to the user.

    Attributes:
        signal: the one that came, or None.
    """

    def __init__(self, *, says: bool = True) -> None:
        self.signal: signal.Signals | None = None
        self._speaker = os.getpid() if says else None  # loader workers inherit the handler and get the signal too
        self._before: dict[signal.Signals, object] = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()
        if os.getpid() == self._speaker:
            os.write(2, SAID % self.signal.name.encode("ascii"))  # a handler must not enter a stream it may interrupt

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
