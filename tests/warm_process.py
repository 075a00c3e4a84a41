"""Scripts in processes of their own in which torch and the package are loaded already: half of a command's time.

One process loads them and waits; each command is a copy of it that runs the script as `python SCRIPT ...` would, to its
natural end. It holds no threads when it is copied. What is under test at the start of a process (what is loaded, how
long it takes, signals that come meanwhile) needs a new interpreter.
"""

import atexit
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

LOADED = (  # what most commands load
    "diffusion_policy.adapt.files",
    "diffusion_policy.closed_loop.evaluation",
    "diffusion_policy.report.report_page",
    "diffusion_policy.serve.engine",
    "diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace",
)


def run(
    words: Sequence[object], cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A Python script and its arguments, in a folder, in a session of its own; status and what it printed."""
    server = waiting()
    assert server.stdin is not None
    assert server.stdout is not None
    arguments = [str(word) for word in words]
    with tempfile.TemporaryDirectory() as folder:
        printed = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        request = {"words": arguments, "cwd": str(cwd), "environment": dict(environment or os.environ)}
        server.stdin.write(json.dumps(request | {"printed": printed}) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(arguments, status, *(Path(path).read_text() for path in printed))


@cache
def waiting() -> subprocess.Popen[str]:
    """The process that has everything loaded."""
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    atexit.register(server.kill)
    return server


def requested() -> dict[str, Any]:
    """Answers requests by copies of this process; returns in each copy what it is to run."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            request: dict[str, Any] = json.loads(line)
            return request
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()
    sys.exit()


def become(words: Sequence[str], cwd: str, environment: Mapping[str, str], printed: Sequence[str]) -> None:
    """Takes the place of a new interpreter that was started so."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate((os.devnull, *printed)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
    sys.argv, sys.orig_argv = list(words), [sys.executable, *words]
    folders = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [str(Path(words[0]).parent), *filter(None, folders)]
    for folder in folders:
        if folder and (Path(folder) / "sitecustomize.py").is_file():
            runpy.run_path(str(Path(folder) / "sitecustomize.py"))
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    for name in LOADED:
        __import__(name)
    become(**requested())
