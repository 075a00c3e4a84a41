"""The entry point that all scripts share: it reads arguments, and prints one result, error or interruption message.

A script declares its arguments, defines the function that does the work, and passes both to `run_command`:

    def add_arguments(parser):
        parser.add_argument("dataset", type=Path)
        parser.add_argument("--json", type=Path, metavar="OUT")

    def work(arguments):
        from diffusion_policy.some.package import function  # heavy imports come after the arguments are read

        result = function(arguments.dataset)
        return CommandResult(result.table(), result.exit_status, result.to_json())

    def main(argv=None):
        return run_command(__doc__, add_arguments, work, argv)

Exit status: that of the result; 2 for an error, with one message on stderr; 128 + N ended by signal N (130: Ctrl-C),
with one line that states what was saved and which command continues; 141 the reader of the output has closed it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.moved import former_names
from diffusion_policy.storage import write_json
from diffusion_policy.tables import Printable

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Environment variable: set for a command that another command runs, which then reports interruptions itself.
_REPORTED_BY_CALLER = "DIFFUSION_POLICY_STOPS_ARE_TOLD"
REFUSED = 2
OUTPUT_CLOSED = 128 + signal.SIGPIPE


class Stopped(KeyboardInterrupt):
    """An interruption that states what was saved. Work with partial results raises it instead of KeyboardInterrupt.

    Args:
        kept: what is left of the work, such as "3 of 9 episodes are kept in DIR".
        added: arguments with which the same command continues, such as "--resume"; if an option is given twice,
            the last one applies.
        done: arguments of the same command that are finished and left out.
        command: the command that continues, where it is a different one.
        number: the signal, where the work handles signals itself.

    Without `added`, `done` and `command`, the same command starts again from the beginning.
    """

    def __init__(
        self,
        kept: str,
        added: Sequence[str] = (),
        done: Sequence[str | Path] = (),
        command: str | None = None,
        number: signal.Signals | None = None,
    ):
        super().__init__(kept)
        self.kept, self.added, self.command, self.number = kept, tuple(added), command, number
        self.done = [Path(word) for word in done]
        self.continues = bool(added or done or command)


@dataclass(frozen=True)
class CommandResult:
    """The result of a script.

    Attributes:
        output: printed on stdout, once.
        status: exit status.
        document: plain JSON, written to the file of `--json`.
    """

    output: Printable | Sequence[Printable] = ()
    status: int = 0
    document: Any = None


def run_command(
    description: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    work: Callable[[argparse.Namespace], CommandResult],
    argv: Sequence[str] | None = None,
    *,
    outputs: Sequence[str] = (),
) -> int:
    """Reads the arguments, does the work and prints its result; returns the exit status.

    Args:
        description: printed by -h as it is: purpose, examples, exit statuses.
        add_arguments: declares the arguments; with `--json`, the document of the result is written to its file.
        work: does the work. It must leave no unfinished file when it is interrupted.
        argv: arguments; None: those of the process.
        outputs: names of arguments that are output files, for the line about an interruption.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    before: dict[Path, tuple[int, int] | None] = {}
    with StopSignals(keep=argv is None) as stop:
        try:
            add_arguments(parser)
            arguments = parser.parse_args(argv)
            before = {path: _signature(path) for path in _files(arguments, ("json", *outputs))}
            result = work(arguments)
            if result.document is not None and getattr(arguments, "json", None) is not None:
                write_json(arguments.json, result.document)
            from diffusion_policy.terminal import show  # after the arguments: -h needs none of it

            show(result.output)
            return result.status
        except (KeyboardInterrupt, Exception) as error:
            # A library may turn an interruption into an error of its own.
            if stop.signal is not None or isinstance(error, KeyboardInterrupt):
                written = [path for path, signature in before.items() if _signature(path) != signature]
                again = same_command(parser, argv)
                if written and getattr(arguments, "overwrite", True) is False:
                    again.append("--overwrite")  # without it, the output that exists now would be refused
                return _stopped(error, stop.signal, written, again)
            if isinstance(error, BrokenPipeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
                return OUTPUT_CLOSED
            if isinstance(error, (WorkspaceError, OSError)):
                return refuse(error)
            raise


@contextmanager
def progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a progress bar on stderr; yields the function to call with (done, total)."""
    from diffusion_policy.terminal import ProgressBar  # after the arguments: -h needs none of it

    with ProgressBar(unit, on_stderr=True) as bar:
        yield lambda done, total: bar.update(done, total, after=f"{bar.per_second:.0f}/s")


def whole_number(word: str, least: int = 0) -> int:
    """A whole number, as the type of an argument.

    Raises:
        ArgumentTypeError: it is none, or below `least`.
    """
    if not word.isdecimal() or int(word) < least:
        raise argparse.ArgumentTypeError(f"{word!r}; expected a whole number, {least} or more")
    return int(word)


def seed_number(word: str) -> int:
    """A seed, as `whole_number`: random generators and environments take none below 0."""
    return whole_number(word)


def positive_number(word: str) -> int:
    """A count, as `whole_number` of 1 or more."""
    return whole_number(word, least=1)


def refuse(error: WorkspaceError | OSError) -> int:
    """Writes the message of an error to stderr; returns its exit status."""
    text = str(error)
    if not isinstance(error, WorkspaceError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    sys.stderr.write(f"error: {text}\n")
    return REFUSED


def same_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> list[str]:
    """Returns the words of the running command, so that it can be started again."""
    if argv is not None:
        return [parser.prog, *argv]
    typed = list(sys.orig_argv)
    program = Path(sys.argv[0])
    if len(typed) > 1 and typed[1] == sys.argv[0] and program.suffix != ".py":  # an entry point, by its first line
        on_path = shutil.which(program.name)
        known = on_path is not None and Path(on_path).absolute() == program.absolute()
        return [program.name if known else sys.argv[0], *typed[2:]]
    return typed


class StopSignals:
    """Turns Ctrl-C, SIGTERM and SIGHUP into a KeyboardInterrupt in its block; a second one ends the process at once.

    Signals that the process was started to ignore (nohup, a shell's background jobs) stay ignored.

    Args:
        keep: after an interruption, a further signal ends the process also after the block.

    Attributes:
        signal: the signal that was received, or None.
    """

    def __init__(self, *, keep: bool = False):
        self.signal: signal.Signals | None = None
        self._keep = keep
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            handled = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._first) for number in handled}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.signal is not None and self._keep:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _first(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for handled in self._before:
            signal.signal(handled, _end_at_once)
        raise KeyboardInterrupt


def _end_at_once(number: int, frame: FrameType | None) -> None:
    for child in _children:
        child.kill()
    os.write(2, b"\nended at once\n")
    os._exit(128 + number)


_children: list[subprocess.Popen[bytes]] = []


def run_child(words: Sequence[str], folder: Path) -> int:
    """Runs a command of this project, passes an interruption on to it once, and waits for it; returns its exit status.

    The child has its own process group: Ctrl-C in a terminal reaches it through this process alone, so that one Ctrl-C
    does not count as two.
    """
    child = subprocess.Popen(words, cwd=folder, process_group=0, env=os.environ | {_REPORTED_BY_CALLER: "1"})
    _children.append(child)
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)
        child.wait()
        raise
    finally:
        _children.remove(child)


def _stopped(
    error: BaseException, number: signal.Signals | None, written: Sequence[Path], command: Sequence[str]
) -> int:
    """Writes the line about an interruption; returns the exit status."""
    number = number or getattr(error, "number", None) or signal.SIGINT
    if isinstance(error, Stopped):
        again = error.command or shlex.join(_continued(command, error))
        line = f"{error.kept}; {'go on' if error.continues else 'start it again'} with: {again}"
    else:
        kept = f"written: {', '.join(map(str, written))}" if written else "nothing was written"
        line = f"{kept}; start it again with: {shlex.join(command)}"
    tell_stop(f"stopped by {number.name}: {line}")
    return 128 + number


def tell_stop(line: str) -> None:
    """Writes the line about an interruption to stderr, unless a command that runs this one does."""
    if _REPORTED_BY_CALLER not in os.environ:
        after_ctrl_c = "\n" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{after_ctrl_c}{line}\n")


def _continued(command: Sequence[str], stopped: Stopped) -> list[str]:
    words, done = [], list(stopped.done)
    for word in command:
        if Path(word) in done:
            done.remove(Path(word))
        else:
            words.append(word)
    return words if len(stopped.added) == 1 and stopped.added[0] in words else [*words, *stopped.added]


def _files(arguments: argparse.Namespace, names: Sequence[str]) -> list[Path]:
    return [Path(path) for name in names if (path := getattr(arguments, name, None)) is not None]


def _signature(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


__getattr__ = former_names(__name__, {"Answer": "CommandResult"})
