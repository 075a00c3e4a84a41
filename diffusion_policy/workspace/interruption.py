"""Ctrl-C, SIGTERM and SIGHUP end a run after the current update, with a checkpoint; a second one ends it at once.

Tools that end a job signal all its processes (`scancel`, systemd, `timeout`, a terminal): also loader workers, which
the run still needs for its last update, and torchrun, which then signals the run again. So workers block these signals,
and signals that follow the first SIGTERM or SIGHUP within moments count as the same request.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from diffusion_policy.workspace.processes import Processes

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_MESSAGE = (
    b"\n%s: the update or validation under way is finished, then a checkpoint is saved; "
    b"once more ends the run at once, without saving\n"
)
# `timeout` signals its child, then the child's group; torchrun's agent takes a moment to pass a signal on.
SAME_REQUEST_S = 1.0
SAME_REQUEST_BY_TORCHRUN_S = 5.0
_PR_SET_PDEATHSIG = 1  # from Linux's prctl.h


class StopRequest:
    """Context manager that handles the stop signals, and reports the first one to the user.

    Args:
        reports: whether this process prints messages for the user.

    Attributes:
        signal: the signal that this process received, or None.
        agreed: a signal that any process had received at the last all-gather, or None.
    """

    def __init__(self, *, reports: bool = True) -> None:
        self.signal: signal.Signals | None = None
        self.agreed: signal.Signals | None = None
        self._reporter = os.getpid() if reports else None  # other processes may inherit the handler
        self._previous_handlers: dict[signal.Signals, object] = {}
        self._terminals: list[int] = []
        self._received_at = 0.0

    def ask(self, processes: Processes) -> bool:
        """Whether any process was asked to stop; all processes call this at the same points of the run, and agree."""
        received = [number for number in processes.gather(self.signal) if number is not None]
        self.agreed = received[0] if received else None
        return self.agreed is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            # A run started with nohup ignores SIGHUP and outlives its terminal.
            handled = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
            self._terminals = [descriptor for descriptor in (1, 2) if _is_terminal(descriptor)]
            self._previous_handlers = {number: signal.signal(number, self._on_signal) for number in handled}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self._remember(signal.Signals(number))
        elif not self._is_same_request(signal.Signals(number)):
            self._restore()
            signal.raise_signal(number)

    def _remember(self, number: signal.Signals) -> None:
        self.signal, self._received_at = number, time.monotonic()
        if number == signal.SIGHUP:
            _redirect_to_null(self._terminals)  # the terminal is closed; writing to it would end the run
        elif os.getpid() == self._reporter:
            with contextlib.suppress(OSError):
                os.write(
                    2, STOP_MESSAGE % number.name.encode("ascii")
                )  # a handler must not enter a stream it may interrupt

    def _is_same_request(self, number: signal.Signals) -> bool:
        by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        if number == self.signal == signal.SIGINT and not by_torchrun:
            return False  # Ctrl-C was pressed twice
        return time.monotonic() - self._received_at < (SAME_REQUEST_BY_TORCHRUN_S if by_torchrun else SAME_REQUEST_S)

    def _restore(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous_handlers = {}


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _redirect_to_null(descriptors: list[int]) -> None:
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        for descriptor in descriptors:
            os.dup2(null, descriptor)
        os.close(null)


@contextmanager
def block_stop_signals_in_children() -> Iterator[None]:
    """Block the stop signals while child processes are started, which inherit it; this process gets them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_only_with_parent(parent: int) -> None:
    """In a loader worker that blocks the stop signals: exit only when the parent sends SIGTERM or has ended.

    Args:
        parent: process id of the parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before prctl took effect
            os._exit(1)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_wait_for_parent, args=(parent,), name="stop", daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
