"""Runs scripts in their own processes with torch and the package already loaded, which is half of a command's time.

One process loads them and waits; each command is a copy of it that runs the script like `python SCRIPT ...`, to its
end except for the teardown of modules. It has no threads when it is copied. `python()` is a program that stands in
for the interpreter: on command lines, in launchers, and for the commands that a command starts. Tests of
a process's start (what is loaded, how long it takes, signals meanwhile) or of its id (its group,
SIGKILL) need a new interpreter.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

SHARED = "TESTS_WARM_PYTHON"  # environment variable: the program that processes which run tests together use
statuses: list[int] = []  # exit status of a copy of this process, once known
LOADED = (  # what most commands load, also when they are at work: torch's optimizers load its compiler
    "diffusion_policy.adapt.files",
    "diffusion_policy.closed_loop.evaluation",
    "diffusion_policy.convert",
    "diffusion_policy.diagnose",
    "diffusion_policy.report.report_page",
    "diffusion_policy.serve.server",
    "diffusion_policy.sim.recorder",
    "diffusion_policy.sim.tabletop",
    "diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace",
    "hydra.main",
    "matplotlib.figure",
    "multiprocessing.spawn",
    "rich.progress",
    "torch._dynamo",
    "torch.utils.tensorboard",
)


def run(
    words: Sequence[object], cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a Python script with arguments in a folder, in its own session; returns status and output."""
    return subprocess.run(
        [python(), *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600,
        start_new_session=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


@cache
def python() -> str:
    """Returns the path of the program that stands in for the interpreter, with its name.

    Processes that run tests together share one (`start_shared`).
    """
    return os.environ.get(SHARED) or start()


def start_shared() -> None:
    """Starts one for this process and those that it starts; they need not wait until everything is loaded."""
    os.environ[SHARED] = start()


def start() -> str:
    """Starts a process that loads everything and then answers requests; returns its program."""
    folder = Path(tempfile.mkdtemp(prefix="warm_"))
    address, program = folder / "socket", folder / "python"
    client = [sys.executable, "-IS", Path(__file__).with_name("warm_python.py"), address, sys.executable]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, client))} "$@"\n')
    program.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(address))
        listening.listen(128)  # whoever asks from now on waits for the answer
        server = subprocess.Popen(
            [sys.executable, __file__, str(listening.fileno()), program], stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, start_new_session=True, pass_fds=[listening.fileno()],
        )  # fmt: skip
    atexit.register(server.kill)
    return str(program)


def requested(listening: socket.socket) -> dict[str, Any]:
    """Answers each request with a copy of this process; returns in each copy what to run.

    This process ends with the one that started it, whose end closes stdin.
    """
    with listening:
        while sys.stdin not in select.select([sys.stdin, listening], [], [])[0]:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            connection, _ = listening.accept()
            with connection:
                if os.fork() == 0:
                    listening.close()
                    return accompanied(connection)
    sys.exit()


def accompanied(connection: socket.socket) -> dict[str, Any]:
    """Copies this process once more, and sends the requester its id and status; returns in the copy."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("r", encoding="utf-8") as asked:
        request: dict[str, Any] = json.loads(asked.readline())
        worker = os.fork()
        if worker == 0:
            return request | {"streams": streams}
        for stream in streams:
            os.close(stream)
        with contextlib.suppress(BrokenPipeError):  # the one that asked has ended already
            connection.sendall(f"{worker}\n".encode())

        def end_with_it() -> None:
            with contextlib.suppress(ConnectionResetError):
                connection.recv(1)  # nothing, once it has ended
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)

        threading.Thread(target=end_with_it, daemon=True).start()
        _, status = os.waitpid(worker, 0)
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(
    words: Sequence[str],
    cwd: str,
    environment: Mapping[str, str],
    streams: Sequence[int],
    ignored: Sequence[int],
    others: Sequence[int],
    terminal: bool,
) -> None:
    """Acts as a new interpreter started with these arguments.

    INTERRUPTED tells tests/interrupting which processes a terminal would send Ctrl-C to: to `others`, and to this
    process, at once, if that is in the foreground (`terminal`).
    """
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    os.environ["INTERRUPTED"] = " ".join(map(str, [*others, *([-os.getpid()] if terminal else [])]))
    for descriptor, stream in enumerate(streams):
        os.dup2(stream, descriptor)
        os.close(stream)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    kind = words[0] if words[0] in ("-m", "-c") else ""
    first = os.getcwd() if kind == "-m" else "" if kind else str(Path(words[0]).resolve().parent)
    folders = [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.argv, sys.orig_argv = list(words[bool(kind) :]), [sys.executable, *words]
    sys.path[:1] = [first, *folders]
    for folder in folders:
        if (Path(folder) / "sitecustomize.py").is_file():
            runpy.run_path(str(Path(folder) / "sitecustomize.py"))
    statuses.append(0)
    try:
        if kind == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv[0] = "-c"
            exec(words[1], {"__name__": "__main__"})  # noqa: S102
        else:
            runpy.run_path(words[0], run_name="__main__")
    except BaseException as error:
        statuses[:] = [error.code or 0] if isinstance(error, SystemExit) and not isinstance(error.code, str) else []
        raise


def start_warm(program: str) -> None:
    """Makes that program start the commands that this process starts by the interpreter's path."""
    original = subprocess.Popen.__init__

    def start(self: Any, words: Any, *arguments: Any, **options: Any) -> None:
        if isinstance(words, list) and words[0] == sys.executable:
            words = [program, *words[1:]]
        original(self, words, *arguments, **options)

    subprocess.Popen.__init__ = start  # type: ignore[method-assign]


def look_at_configs() -> None:
    """Composes the config that most commands compose, so that its grammar, files and interpolations are known."""
    from omegaconf import OmegaConf
    from parsed_once import parse_configs_once

    from diffusion_policy.training_config import compose_training

    parse_configs_once()
    OmegaConf.to_container(compose_training(overrides=["training.seed=0"]), resolve=True)


def leave_to_the_kernel(descriptor: int) -> None:
    """Replaces `os.fsync`, since no test cuts the power and flushing is most of the time of writing."""


@atexit.register  # registered before all others, so run after them
def end() -> None:
    """Skips the teardown of thousands of modules, which takes a quarter of a second."""
    if statuses:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(statuses[0])


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):  # the one that starts this may ignore them
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in LOADED:
        __import__(name)
    os.fsync = leave_to_the_kernel  # type: ignore[assignment]
    look_at_configs()
    gc.freeze()
    descriptor, warm_program = sys.argv[1:]
    request = requested(socket.socket(fileno=int(descriptor)))
    start_warm(warm_program)
    become(**request)
