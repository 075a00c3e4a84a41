"""Replaces the interpreter on a command line: `warm_python.py SOCKET PYTHON WORDS...` does `PYTHON WORDS...`.

A test starts this process; the command runs in a copy of a process that has everything loaded (warm_process.py),
with this one's folder, environment, and standard streams. Signals are passed on to it, and it ends with this process.
Options of the interpreter itself need the real one. Only modules that load quickly are imported here.
"""

import contextlib
import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def main(path: str, python: str, *words: str) -> int:
    if not words or (words[0].startswith("-") and words[0] not in ("-m", "-c")):
        os.execv(python, [python, *words])
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    ignored = [number for number in PASSED_ON if signal.getsignal(number) is signal.SIG_IGN]
    session, terminal = os.getsid(0), os.getsid(0) == os.getpgrp()
    others = [] if session == os.getpid() else [session] if terminal else [-session]
    request = {"words": words, "cwd": os.getcwd(), "environment": dict(os.environ), "ignored": ignored}
    request |= {"others": others, "terminal": terminal}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [b"."], [0, 1, 2])
        with connection.makefile("rw", encoding="utf-8") as answers:
            answers.write(json.dumps(request) + "\n")
            answers.flush()
            worker = int(answers.readline())
            for number in set(PASSED_ON) - set(ignored):
                signal.signal(number, lambda number, _: pass_on(worker, number))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
            status = int(answers.readline())
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def pass_on(worker: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, number)


sys.exit(main(*sys.argv[1:]))
