"""One engine of `exported.py`, in a process of its own: made, then asked in turn with the others.

    python benchmarks/exported_engine.py make onnx FOLDER [--threads 1] [--steps 10] [--small]     # or: aoti
    python benchmarks/exported_engine.py answer NAME FOLDER [--threads 1] [--steps 10] [--small]

"make" writes FOLDER/NAME.onnx or .pt2 with FOLDER/NAME.npz, the inputs of some requests, and prints one JSON object:
how long it took, and how far the actions are from the policy's. "answer" prints one when it is ready, and one for every
line that comes in (the number of a request), with the milliseconds it took. ONNX Runtime answers without torch, as it
would on a robot's computer; AOTInductor's package needs torch, but neither the policy nor this package.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Answer = Callable[[int], Any]
REQUESTS = 8  # different ones
GRAPHS = {"onnx": "onnx", "aoti": "pt2"}


def users_unrolled_policy(steps: int, *, small: bool) -> Any:
    """The users' policy as a graph: see ``export.onnx_policy``."""
    from latency import users_policy  # type: ignore[import-not-found]

    from diffusion_policy.export.onnx_policy import UnrolledPolicy
    from diffusion_policy.policy.sampler import set_sampler

    policy = users_policy(small=small)
    set_sampler(policy, "ddim", steps)
    return UnrolledPolicy(policy).eval()


def make_onnx(unrolled: Any, path: Path) -> float:
    """Writes ONNX Runtime's graph; returns how far its actions are from the policy's."""
    from diffusion_policy.export.onnx_policy import export_onnx

    return export_onnx(unrolled.policy, path, {}).difference


def make_aoti(unrolled: Any, path: Path) -> float:
    """Compiles the same graph by AOTInductor; returns how far its actions are from the policy's."""
    import torch

    inductor: Any = importlib.import_module("torch._inductor")
    with torch.no_grad():
        program = torch.export.export(unrolled, tuple(unrolled.inputs(0).values()), strict=False)
        inductor.aoti_compile_and_package(program, package_path=str(path))
        compiled = inductor.aoti_load_package(str(path))
        normalize = unrolled.policy.normalizer["action"].normalize
        inputs = [tuple(unrolled.inputs(seed).values()) for seed in (1, 2, 3)]
        return max(float((normalize(compiled(*own)) - normalize(unrolled(*own))).abs().max()) for own in inputs)


def made(name: str, folder: Path, steps: int, threads: int, *, small: bool) -> dict[str, float]:
    """Makes a graph; see the top of this file."""
    import torch

    torch.set_num_threads(threads)  # AOTInductor compiles for so many
    unrolled = users_unrolled_policy(steps, small=small)
    path = folder / f"{name}.{GRAPHS[name]}"
    start, used = time.perf_counter(), cpu_s()
    difference = {"onnx": make_onnx, "aoti": make_aoti}[name](unrolled, path)
    took, used = time.perf_counter() - start, cpu_s() - used
    rows = [{key: value.numpy() for key, value in unrolled.inputs(seed).items()} for seed in range(REQUESTS)]
    stacked: dict[str, Any] = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    np.savez(folder / f"{name}.npz", **stacked)
    return {"make_s": took, "make_cpu_s": used, "make_peak_mb": peak_mb(), "file_mb": path.stat().st_size / 1e6,
            "largest_difference": difference}  # fmt: skip


def policy_s(steps: int, *, small: bool) -> Answer:
    """The policy's own answers."""
    unrolled = users_unrolled_policy(steps, small=small)
    inputs = [unrolled.inputs(seed) for seed in range(REQUESTS)]

    def answer(request: int) -> Any:
        given = inputs[request % REQUESTS]
        return unrolled.policy.predict_action({key: given[key] for key in unrolled.keys}, initial_noise=given["noise"])

    return answer


def server_s(steps: int, threads: int, *, continuing: bool, small: bool) -> Answer:
    """The answers of the server's engine to two new frames; ``continuing``: each continues a chunk (rtc)."""
    import dataclasses

    from latency import EXECUTED_ON, users_policy

    from diffusion_policy.serve.engine import PolicyEngine
    from diffusion_policy.serve.settings import EngineSettings
    from diffusion_policy.serve.stages import Stages
    from diffusion_policy.serve.transport.continuation import Continuation

    engine = PolicyEngine(users_policy(small=small), EngineSettings(steps=steps, cached_frames=0, threads=threads))
    held = Continuation("rtc", EXECUTED_ON, len(EXECUTED_ON) // 2) if continuing else None
    rng = np.random.default_rng(0)
    states = np.tile(engine.wire.middle(*engine.action_range()), (engine.n_obs_steps, 1))
    given = []
    for _ in range(REQUESTS):
        frames = [rng.integers(0, 256, (180, 320, 3), dtype=np.uint8) for _ in range(engine.n_obs_steps)]
        seen = engine.form.observation(frames, states, np.arange(engine.n_obs_steps) / 10)
        given.append(dataclasses.replace(seen, continuation=held))
    return lambda request: engine.infer(given[request % REQUESTS], request, None, Stages())


def onnx_runtime_s(folder: Path, threads: int) -> Answer:
    """ONNX Runtime's answers."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(str(folder / "onnx.onnx"), options, providers=["CPUExecutionProvider"])
    with np.load(folder / "onnx.npz") as file:
        inputs = [{key: file[key][request] for key in file.files} for request in range(REQUESTS)]
    return lambda request: session.run(None, inputs[request % REQUESTS])


def inductor_s(folder: Path, threads: int) -> Answer:
    """The answers of AOTInductor's package."""
    import torch

    torch.set_num_threads(threads)
    compiled = importlib.import_module("torch._inductor").aoti_load_package(str(folder / "aoti.pt2"))
    with np.load(folder / "aoti.npz") as file:
        inputs = [[torch.from_numpy(file[key][request]) for key in file.files] for request in range(REQUESTS)]
    return lambda request: compiled(*inputs[request % REQUESTS])


def opened(name: str, folder: Path, steps: int, threads: int, *, small: bool) -> Answer:
    """What answers a request of a number; torch computes with so many threads, where it is used."""
    if name == "onnx":
        return onnx_runtime_s(folder, threads)
    if name == "aoti":
        return inductor_s(folder, threads)
    import torch

    torch.set_num_threads(threads)
    if name == "plain":
        return policy_s(steps, small=small)
    return server_s(steps, threads, continuing=name == "continuing", small=small)


def cpu_s() -> float:
    """Processor seconds of this process and of its children that have ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def peak_mb() -> float:
    """Most memory that this process, or one of its children, has had."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024


def tell(found: dict[str, float]) -> None:
    """One JSON object, on a line."""
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "answer"])
    parser.add_argument("name", choices=["plain", "engine", "continuing", *GRAPHS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args(argv)
    if given.what == "make":
        tell(made(given.name, given.folder, given.steps, given.threads, small=given.small))
        return 0
    start = time.perf_counter()
    answer = opened(given.name, given.folder, given.steps, given.threads, small=given.small)
    tell({"load_s": time.perf_counter() - start})
    for line in sys.stdin:
        begun, used = time.perf_counter(), time.process_time()
        answer(int(line))
        tell({"ms": 1000 * (time.perf_counter() - begun), "cpu_ms": 1000 * (time.process_time() - used),
              "peak_mb": peak_mb()})  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
