"""Copies of a process that has everything loaded end, print and handle signals like new interpreters."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import warm_process

ENDS = {
    "at its end": "print('done')",
    "with a status": "import sys; print('done'); sys.exit(3)",
    "with a message": "import sys; sys.exit('why')",
    "with what was registered": "import atexit; atexit.register(print, 'later'); print('done')",
    "with its threads": "import threading, time; threading.Timer(0.1, print, ['later']).start(); print('done')",
    "by an error": "raise ValueError('no such thing')",
    "by a signal": "import os; os.kill(os.getpid(), 9)",
    "by Ctrl-C": "import os; os.kill(os.getpid(), 2)",
    "as it is asked": "import os, sys; print(input(), os.getcwd(), os.environ['HERE'], sys.argv, sys.orig_argv[1:])",
}


@pytest.mark.parametrize("program", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("kind", ["command", "script", "module"])
def test_it_ends_as_a_new_interpreter(program: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(program)
    words = {"command": ["-c", program], "script": ["program.py", "-x"], "module": ["-m", "program", "-x"]}[kind]
    ended = [
        subprocess.run(
            [python, *words], cwd=tmp_path, env={"PATH": "/bin:/usr/bin", "HERE": "x"}, input="line\n",
            capture_output=True, text=True, check=False,
        )
        for python in (sys.executable, warm_process.python())
    ]  # fmt: skip
    assert ended[0].returncode == ended[1].returncode
    assert ended[0].stdout == ended[1].stdout
    assert ended[0].stderr.splitlines()[-1:] == ended[1].stderr.splitlines()[-1:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_it_receives_the_signals_of_the_process_that_represents_it(number: signal.Signals) -> None:
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    running = subprocess.Popen([warm_process.python(), "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert int(running.stdout.readline()) != running.pid
    running.send_signal(number)
    assert running.communicate()[0] == b"", "its output is closed: it has ended, too"
    assert running.returncode == -number


def test_it_holds_no_threads_and_has_torch_loaded() -> None:
    program = "import sys, pathlib; print('torch' in sys.modules, len(list(pathlib.Path('/proc/self/task').iterdir())))"
    assert warm_process.run(["-c", program], Path()).stdout.split() == ["True", "1"]


def test_it_ends_with_one_that_was_killed_before_it_was_answered() -> None:
    reading, writing = os.pipe()
    request = {"words": ["-c", "import time; time.sleep(60)"], "cwd": "/", "environment": {}, "ignored": []}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(Path(warm_process.python()).with_name("socket")))
        socket.send_fds(connection, [b"."], [writing] * 3)
        connection.sendall(json.dumps(request | {"others": [], "terminal": False}).encode() + b"\n")
    os.close(writing)
    with os.fdopen(reading, "rb") as output:
        assert select.select([output], [], [], 30)[0], "it holds its output, so it goes on"
        assert output.read() == b""
