"""What the server's own kernels earn beside a general runtime: the same answers from three engines, in turn.

    python benchmarks/exported.py [--quick] [--rounds N] [--steps 10] [--json OUT]      # needs the extra: onnx

The users' policy (random weights) answers two new frames: the plain policy, the server's engine, and the exported graph
in ONNX Runtime, one thread each. Milliseconds by wall clock and of processor time, medians; a busy machine disturbs the
latter less. Frames are given as the policy reads them, so nothing is decoded or resized.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latency import users_policy  # type: ignore[import-not-found]

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.export.onnx_policy import NOISE, UnrolledPolicy, export_onnx
from diffusion_policy.policy.sampler import set_sampler
from diffusion_policy.serve.engine import PolicyEngine, processor_name
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.stages import Stages
from diffusion_policy.storage import write_json
from diffusion_policy.tables import Table
from diffusion_policy.terminal import show

Answer = Callable[[int], Any]


def engines(steps: int, folder: Path, *, small: bool) -> tuple[dict[str, Answer], float]:
    """By name what answers request number i, and how far the graph's actions are from the policy's."""
    import onnxruntime

    policy = users_policy(small=small)
    set_sampler(policy, "ddim", steps)
    whole = UnrolledPolicy(policy)
    found = export_onnx(policy, folder / "policy.onnx", {})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(found.path), options)
    server = PolicyEngine(users_policy(small=small), EngineSettings(steps=steps, cached_frames=0, threads=1))
    states = np.tile(server.wire.middle(*server.action_range()), (server.n_obs_steps, 1))

    def plain(request: int) -> Any:
        inputs = whole.inputs(request)
        return policy.predict_action({key: inputs[key] for key in whole.keys}, initial_noise=inputs[NOISE])

    def graph(request: int) -> Any:
        return session.run(None, {name: value.numpy() for name, value in whole.inputs(request).items()})

    def engine(request: int) -> Any:
        rng = np.random.default_rng(request)
        frames = [rng.integers(0, 256, (180, 320, 3), dtype=np.uint8) for _ in range(server.n_obs_steps)]
        times = np.arange(server.n_obs_steps) / 10
        return server.infer(server.form.observation(frames, states, times), request, None, Stages())

    return {"plain policy": plain, "server's engine": engine, "ONNX Runtime": graph}, found.difference


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
    return {
        name: {"ms": statistics.median(wall[name][2:]), "cpu_ms": statistics.median(cpu[name][2:])} for name in answers
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small policy, three rounds")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10, help="DDIM steps")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        try:
            answers, apart = engines(arguments.steps, Path(folder), small=arguments.quick)
        except (WorkspaceError, ImportError) as error:
            if arguments.quick:  # the extra is optional, and so is this benchmark in "make bench"
                show([f"left out: {error}"])
                return 0
            parser.exit(2, f"{error}\n")
        rows = measure(answers, 3 if arguments.quick else arguments.rounds)
    table = Table("", "ms", "CPU ms", title=f"{processor_name()}, load {load:.1f}; graph off by {apart:.1e}")
    for name, row in rows.items():
        table.add(name, f"{row['ms']:.1f}", f"{row['cpu_ms']:.1f}")
    show([table])
    if arguments.json:
        write_json(
            arguments.json,
            {"processor": processor_name(), "steps": arguments.steps, "load": [load, os.getloadavg()[0]],
             "largest_difference": apart, "rows": rows},
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
