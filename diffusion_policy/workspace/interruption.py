"""Ctrl-C, SIGTERM and SIGHUP end a run after the update under way, with a checkpoint; a second one ends it at once.

Whoever ends a job signals all its processes (`scancel`, systemd, `timeout`, a terminal): loader workers, which the run
still needs for its last update, and torchrun, which then signals the run again. So workers do not listen, and what
comes within moments of the first SIGTERM or SIGHUP is the same request.
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
SAID = (
    b"\n%s: the update or validation under way is finished, then a checkpoint is saved; "
    b"once more ends the run at once, without saving\n"
)
# `timeout` signals its child, then the child's group; torchrun's agent takes a moment to pass a signal on.
SAME_REQUEST_S = 1.0
SAME_REQUEST_BY_TORCHRUN_S = 5.0
_PR_SET_PDEATHSIG = 1  # of Linux' prctl.h


class StopRequest:
    """Listens for signals while it is entered, and says so when one came.

    Args:
        says: whether this process talks to the user.

    Attributes:
        signal: the one that came to this process, or None.
        agreed: the one that came to any process, as of the last time that all were asked; or None.
    """

    def __init__(self, *, says: bool = True) -> None:
        self.signal: signal.Signals | None = None
        self.agreed: signal.Signals | None = None
        self._speaker = os.getpid() if says else None  # other processes may inherit the handler
        self._before: dict[signal.Signals, object] = {}
        self._terminals: list[int] = []
        self._came = 0.0

    def ask(self, processes: Processes) -> bool:
        """Whether someone asked any process to stop; all processes ask at the same points of the run, and agree."""
        heard = [number for number in processes.gather(self.signal) if number is not None]
        self.agreed = heard[0] if heard else None
        return self.agreed is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            # nohup: a run that was started to outlive its terminal does
            heard = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
            self._terminals = [descriptor for descriptor in (1, 2) if _is_terminal(descriptor)]
            self._before = {number: signal.signal(number, self._on_signal) for number in heard}
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
        self.signal, self._came = number, time.monotonic()
        if number == signal.SIGHUP:
            _write_nowhere(self._terminals)  # they are gone, and writing to them would end the run
        elif os.getpid() == self._speaker:
            with contextlib.suppress(OSError):
                os.write(2, SAID % number.name.encode("ascii"))  # a handler must not enter a stream it may interrupt

    def _is_same_request(self, number: signal.Signals) -> bool:
        by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        if number == self.signal == signal.SIGINT and not by_torchrun:
            return False  # two times Ctrl-C
        return time.monotonic() - self._came < (SAME_REQUEST_BY_TORCHRUN_S if by_torchrun else SAME_REQUEST_S)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _write_nowhere(descriptors: list[int]) -> None:
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in descriptors:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started meanwhile do not hear the signals that stop a run; this one hears them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def listen_to_parent_only(parent: int) -> None:
    """In a loader worker that was started deaf: end when its parent says so or is gone, and at no other time.

    Args:
        parent: process that started it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # gone before that
            os._exit(1)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_wait_for_parent, args=(parent,), name="stop", daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
