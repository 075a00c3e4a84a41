"""What the server's own kernels gain over general runtimes: the same answers from several engines, in turn.

    python benchmarks/exported.py [--quick] [--rounds N] [--steps 10] [--threads 1 2] [--only NAME...] [--json OUT]

    plain      the policy itself, by torch
    engine     the server's engine
    continuing the server's engine, each request continuing the rest of a chunk (real-time chunking)
    onnx       the exported graph in ONNX Runtime (scripts/export_policy.py); needs the extra: onnx
    aoti       the same graph compiled by torch's AOTInductor; needs a C++ compiler, and minutes to compile

The users' policy (random weights) answers two new frames. Each engine has a process of its own (`exported_engine.py`),
so that neither threads nor memory are another's, and is asked in turn with the others. Milliseconds by wall clock (p50,
p95) and of processor time (median, and the median of ratios to the engine's in the same round); a busy machine disturbs
the latter less. Memory is the most that the process had; seconds to load begin with its imports. Frames are given as
the policy reads them, so nothing is decoded or resized. A graph whose actions are further than 1e-4 from the policy's
(normalized) is refused, as on export.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy.command_line import positive_number
from diffusion_policy.cpu import processor_name
from diffusion_policy.storage import write_json
from diffusion_policy.tables import Column, Table
from diffusion_policy.terminal import show

NAMES = ("plain", "engine", "continuing", "onnx", "aoti")
GRAPHS = ("onnx", "aoti")
TOLERANCE = 1e-4  # as on export
PROGRAM = Path(__file__).with_name("exported_engine.py")


def missing(name: str) -> str | None:
    """Why there is no such engine on this machine; None: there is."""
    if name == "onnx":
        packages = ("onnx", "onnxscript", "onnxruntime")
        absent = [package for package in packages if importlib.util.find_spec(package) is None]
        return f"{', '.join(absent)} not installed" if absent else None
    if name == "aoti" and shutil.which(os.environ.get("CXX", "g++")) is None:
        return "no C++ compiler: neither CXX nor g++"
    return None


class Engine:
    """An engine in its own process. Use as a context.

    Attributes:
        ready: what it told when it was.
    """

    def __init__(self, words: Sequence[str], threads: int) -> None:
        self._words = " ".join(words)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "answer", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.ready = self._told()

    def answer(self, request: int) -> dict[str, float]:
        """Lets it answer a request; returns what that took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        return self._told()

    def _told(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine ended with status {self._process.wait()}: {self._words}")
        found: dict[str, float] = json.loads(line)
        return found

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()


def make(name: str, words: Sequence[str], threads: int) -> dict[str, float]:
    """Makes a graph; SystemExit where its actions are not the policy's."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "make", name, *words],
        capture_output=True,  # pages of notes, if all is well
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode:
        raise SystemExit(f"{done.stderr}{name}: it could not be made")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if not found["largest_difference"] <= TOLERANCE:
        raise SystemExit(f"{name}: its actions are {found['largest_difference']:.1e} from the policy's; at most 1e-4")
    return found


def measure(names: Sequence[str], rounds: int, steps: int, threads: int, *, small: bool) -> dict[str, dict[str, Any]]:
    """Every engine with a number of threads; the first two rounds warm up."""
    options = ["--steps", str(steps), "--threads", str(threads), *(["--small"] if small else [])]
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        rows: dict[str, dict[str, Any]] = {}
        for name in names:
            rows[name] = make(name, [folder, *options], threads) if name in GRAPHS else {}
        engines = {name: stack.enter_context(Engine([name, folder, *options], threads)) for name in names}
        for request in range(rounds + 2):
            for name, engine in engines.items():
                answers[name].append(engine.answer(request))
    for name, row in rows.items():
        taken = answers[name][2:]
        row |= engines[name].ready
        row["ms"] = np.percentile([one["ms"] for one in taken], (50, 95)).round(2).tolist()
        row["cpu_ms"] = statistics.median(one["cpu_ms"] for one in taken)
        row["peak_mb"] = taken[-1]["peak_mb"]
        if "engine" in names:
            pairs = zip(taken, answers["engine"][2:], strict=True)
            row["cpu_times_engine"] = statistics.median(ours["cpu_ms"] / its["cpu_ms"] for ours, its in pairs)
    return rows


def table_of(rows: dict[str, dict[str, Any]], title: str) -> Table:
    """What was measured with a number of threads."""
    heads = ("p50 ms", "p95 ms", "CPU ms", "times engine's", "MB", "load s", "make s", "CPU s", "off by")
    table = Table(Column(no_wrap=True), *heads, title=title)
    for name, row in rows.items():
        ratio = f"{row['cpu_times_engine']:.2f}" if "cpu_times_engine" in row else "-"
        cells = [f"{row['ms'][0]:.1f}", f"{row['ms'][1]:.1f}", f"{row['cpu_ms']:.1f}", ratio, f"{row['peak_mb']:.0f}"]
        made = ["-", "-", "-"]
        if name in GRAPHS:
            made = [f"{row['make_s']:.0f}", f"{row['make_cpu_s']:.0f}", f"{row['largest_difference']:.1e}"]
        table.add(name, *cells, f"{row['load_s']:.1f}", *made)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a small policy, two steps, three rounds, nothing compiled"
    )
    parser.add_argument("--rounds", type=positive_number, default=30)
    parser.add_argument("--steps", type=positive_number, default=10, help="DDIM steps")
    parser.add_argument(
        "--threads", type=positive_number, nargs="+", default=[1, 2], help="one after another (default: 1 2)"
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help="of these engines")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args(argv)
    wanted = arguments.only or [name for name in NAMES if not (arguments.quick and name == "aoti")]
    left_out = {name: why for name in wanted if (why := missing(name)) is not None}
    names = [name for name in wanted if name not in left_out]
    steps, rounds = (2, 3) if arguments.quick else (arguments.steps, arguments.rounds)
    found: dict[str, Any] = {}
    for threads in arguments.threads:
        load = os.getloadavg()[0]
        rows = measure(names, rounds, steps, threads, small=arguments.quick)
        found[str(threads)] = {"load": [load, os.getloadavg()[0]], "rows": rows}
        show([table_of(rows, f"{processor_name()}, threads: {threads}, load {load:.1f}")])
    show([f"left out: {name}: {why}" for name, why in left_out.items()])
    if arguments.json:
        packages = {name: version(name) for name in ("torch", "onnxruntime") if importlib.util.find_spec(name)}
        about = {"processor": processor_name(), "packages": packages, "steps": steps, "rounds": rounds}
        write_json(arguments.json, {**about, "left_out": left_out, "threads": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
