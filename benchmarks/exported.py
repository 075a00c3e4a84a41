"""What the server's own kernels earn beside general runtimes: the same answers from several engines, in turn.

    python benchmarks/exported.py [--quick] [--rounds N] [--steps 10] [--threads 1] [--only NAME...] [--json OUT]

    plain      the policy itself, by torch
    engine     the server's engine
    continuing the server's engine, each request holding on to what is left of a chunk (real-time chunking)
    onnx       the exported graph in ONNX Runtime (scripts/export_policy.py); needs the extra: onnx

The users' policy (random weights) answers two new frames. Milliseconds by wall clock and of processor time, medians; a
busy machine disturbs the latter less. Frames are given as the policy reads them, so nothing is decoded or resized.
A graph whose actions are further than 1e-4 from the policy's (normalized) is refused, as on export.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latency import EXECUTED_ON, users_policy  # type: ignore[import-not-found]

from diffusion_policy.export.onnx_policy import NOISE, PACKAGES, UnrolledPolicy, export_onnx
from diffusion_policy.policy.sampler import set_sampler
from diffusion_policy.serve.engine import PolicyEngine, processor_name
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.stages import Stages
from diffusion_policy.serve.transport.continuation import Continuation
from diffusion_policy.storage import write_json
from diffusion_policy.tables import Table
from diffusion_policy.terminal import show

Answer = Callable[[int], Any]
NAMES = ("plain", "engine", "continuing", "onnx")


def missing(name: str) -> str | None:
    """Why there is no such engine on this machine; None: there is."""
    absent = [package for package in PACKAGES if importlib.util.find_spec(package) is None] if name == "onnx" else []
    return f"{', '.join(absent)} not installed" if absent else None


def server_s(engine: PolicyEngine, continued: Continuation | None, request: int) -> Any:
    """The answer of the server's engine to two new frames."""
    rng = np.random.default_rng(request)
    frames = [rng.integers(0, 256, (180, 320, 3), dtype=np.uint8) for _ in range(engine.n_obs_steps)]
    states = np.tile(engine.wire.middle(*engine.action_range()), (engine.n_obs_steps, 1))
    observation = engine.form.observation(frames, states, np.arange(engine.n_obs_steps) / 10)
    observation = dataclasses.replace(observation, continuation=continued)
    return engine.infer(observation, request, None, Stages())


def onnx(unrolled: UnrolledPolicy, folder: Path, threads: int) -> tuple[Answer, float]:
    """ONNX Runtime, and how far its actions are from the policy's."""
    import onnxruntime

    found = export_onnx(unrolled.policy, folder / "policy.onnx", {})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(found.path), options)

    def answer(request: int) -> Any:
        return session.run(None, {name: value.numpy() for name, value in unrolled.inputs(request).items()})

    return answer, found.difference


def engines(
    names: Sequence[str], steps: int, threads: int, folder: Path, *, small: bool
) -> tuple[dict[str, Answer], dict[str, float]]:
    """By name what answers request number i, and how far the runtimes' actions are from the policy's."""
    policy = users_policy(small=small)
    set_sampler(policy, "ddim", steps)
    unrolled = UnrolledPolicy(policy).eval()
    server = PolicyEngine(users_policy(small=small), EngineSettings(steps=steps, cached_frames=0, threads=threads))
    held = Continuation("rtc", EXECUTED_ON, len(EXECUTED_ON) // 2)

    def plain(request: int) -> Any:
        inputs = unrolled.inputs(request)
        return policy.predict_action({key: inputs[key] for key in unrolled.keys}, initial_noise=inputs[NOISE])

    answers: dict[str, Answer] = {
        "plain": plain, "engine": partial(server_s, server, None), "continuing": partial(server_s, server, held)
    }  # fmt: skip
    apart: dict[str, float] = {}
    if "onnx" in names:
        answers["onnx"], apart["onnx"] = onnx(unrolled, folder, threads)
    return {name: answers[name] for name in names}, apart


def measure(answers: dict[str, Answer], rounds: int) -> dict[str, dict[str, float]]:
    """Medians, taking turns; the first two rounds warm up."""
    wall: dict[str, list[float]] = {name: [] for name in answers}
    cpu: dict[str, list[float]] = {name: [] for name in answers}
    for request in range(rounds + 2):
        for name, answer in answers.items():
            start, used = time.perf_counter(), time.process_time()
            answer(request)
            wall[name].append(1000 * (time.perf_counter() - start))
            cpu[name].append(1000 * (time.process_time() - used))
    rows = {
        name: {"ms": statistics.median(wall[name][2:]), "cpu_ms": statistics.median(cpu[name][2:])} for name in answers
    }
    if "engine" in rows:
        for name in answers:
            pairs = zip(cpu[name][2:], cpu["engine"][2:], strict=True)
            rows[name]["cpu_times_engine"] = statistics.median(ours / engine for ours, engine in pairs)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small policy, three rounds")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10, help="DDIM steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help="of these engines")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    wanted = arguments.only or NAMES
    left_out = {name: why for name in wanted if (why := missing(name)) is not None}
    with tempfile.TemporaryDirectory() as folder:
        names = [name for name in wanted if name not in left_out]
        answers, apart = engines(names, arguments.steps, arguments.threads, Path(folder), small=arguments.quick)
        rows = measure(answers, 3 if arguments.quick else arguments.rounds)
    title = f"{processor_name()}, {arguments.threads} threads, load {load:.1f}"
    table = Table("", "ms", "CPU ms", "CPU, times the engine's", "off by", title=title)
    for name, row in rows.items():
        ratio = row.get("cpu_times_engine")
        off = f"{apart[name]:.1e}" if name in apart else "-"
        table.add(name, f"{row['ms']:.1f}", f"{row['cpu_ms']:.1f}", "-" if ratio is None else f"{ratio:.2f}", off)
    show([table, *(f"left out: {name}: {why}" for name, why in left_out.items())])
    if arguments.json:
        write_json(
            arguments.json,
            {"processor": processor_name(), "steps": arguments.steps, "threads": arguments.threads,
             "rounds": arguments.rounds, "torch": torch.__version__, "load": [load, os.getloadavg()[0]],
             "largest_difference": apart, "left_out": left_out, "rows": rows},
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
