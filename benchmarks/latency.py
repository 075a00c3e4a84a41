"""How long a robot waits for its actions, stage by stage, compared with a plain server of the same policy.

    python benchmarks/latency.py [--quick] [--requests N] [--steps 10] [--device cpu] [--json OUT]
    python benchmarks/latency.py --busy [N]     # next to N processes that compute all the time (default: one per core)

One process, one policy of the users' size (ResNet-18 on 162x288 crops, 8 layers of width 256, horizon 16), 1280x720
JPEGs over real sockets. The baseline runs ``predict_action`` on every request: both frames are encoded, and the whole
network runs at each denoising step. Requests alternate between the servers, so both see the same machine; seeds are
equal, so the actions must be as well. "new frames": the client executes six steps between requests. "one shared": it
requests at every step. Times are in milliseconds, from the message's first byte to the reply's last; "client" is the
round trip that the robot sees.

With --busy, other processes use the machine. A client asks every 0.6 s under the server's default deadline and age;
the benchmark counts how many observations are answered with an action, by number of compute threads: as many as the
server chooses, all cores, and one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from recordings import scene  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table

from diffusion_policy.command_line import positive_number, whole_number
from diffusion_policy.cpu import CpuTimes, usable_cores
from diffusion_policy.geometry import geodesic_distance
from diffusion_policy.model.cpu.arithmetic import multiplies_bf16
from diffusion_policy.model.normalizer import LinearNormalizer, get_image_range_normalizer
from diffusion_policy.policy.diffusion_transformer_hybrid_image_policy import DiffusionTransformerHybridImagePolicy
from diffusion_policy.serve.client import LineClient, ServerError
from diffusion_policy.serve.engine import Engine, PolicyEngine, processor_name
from diffusion_policy.serve.engine.compute_threads import ComputeThreads
from diffusion_policy.serve.server import listening
from diffusion_policy.serve.settings import EngineSettings, ServeSettings, read_settings
from diffusion_policy.serve.stages import STAGES
from diffusion_policy.serve.transport.continuation import Continuation
from diffusion_policy.serve.transport.host import computing_thread
from diffusion_policy.serve.transport.request import Reply

CONTINUING = "float32, continuing"
POSE = np.array([0.5, 0.0, 0.4, 1.0, 0.0, 0.0, 0.0])
LOW = np.array([0.2, -0.3, 0.1, 0.95, -0.1, -0.1, -0.1, 0.0])
EXECUTED_ON = np.tile([*POSE, 1.0], (8, 1))  # what is left of the chunk under execution
HIGH = np.array([0.8, 0.3, 0.7, 1.05, 0.1, 0.1, 0.1, 1.0])


def users_policy(*, small: bool = False) -> DiffusionTransformerHybridImagePolicy:
    """Returns a policy with the users' settings and random weights, which do not affect time; ``small`` for trials."""
    torch.manual_seed(0)
    low_dim = {"robot_eef_pose": 7, "robot_gripper_state": 1}
    policy = DiffusionTransformerHybridImagePolicy(
        shape_meta={
            "obs": {"image": {"shape": [3, 180, 320], "type": "rgb"}}
            | {key: {"shape": [width], "type": "low_dim"} for key, width in low_dim.items()},
            "action": {"shape": [8]},
        },
        noise_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True),
        horizon=16,
        n_action_steps=8,
        n_obs_steps=2,
        crop_shape=(162, 288),
        obs_encoder_group_norm=True,
        eval_fixed_crop=True,
        n_layer=1 if small else 8,
        n_emb=64 if small else 256,
        encoder_width=16 if small else 64,
    ).eval()
    limits = torch.from_numpy(np.stack([LOW, HIGH])).float()
    normalizer = LinearNormalizer()
    normalizer.fit({"robot_eef_pose": limits[:, :7], "robot_gripper_state": limits[:, 7:], "action": limits})
    normalizer["image"] = get_image_range_normalizer()
    policy.set_normalizer(normalizer)
    return policy


@dataclass
class Candidate:
    """One server and its measurements; ``continuing``: each request continues a chunk (real-time chunking)."""

    name: str
    client: LineClient
    replies: list[Reply]
    stages: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    actions: dict[str, list[Any]] = field(default_factory=dict)
    continuing: bool = False

    def ask(self, scenario: str, frames: Sequence[bytes], now: float) -> None:
        """Sends one request of a scenario."""
        asked = Continuation("rtc", EXECUTED_ON, len(EXECUTED_ON) // 2) if self.continuing else None
        start = time.perf_counter()
        chunk = self.client.infer(frames, [POSE] * 2, [1, 1], [now - 0.1, now], continuation=asked)
        client_ms = (time.perf_counter() - start) * 1000
        while not self.replies or "log" not in self.replies[-1].stages.milliseconds:
            time.sleep(0.0005)
        measured = self.replies.pop().stages.milliseconds
        self.stages.setdefault(scenario, []).append({**measured, "total": sum(measured.values()), "client": client_ms})
        self.actions.setdefault(scenario, []).append(chunk.actions)


def serving(
    name: str, options: EngineSettings, folder: Path, device: str, worker: ThreadPoolExecutor, *, small: bool = False
) -> AbstractContextManager[Candidate]:
    """Yields a server of the users' policy in a thread, with a client."""
    options.device = device

    def open_engine() -> PolicyEngine:
        engine = PolicyEngine(users_policy(small=small).to(device), options)
        engine.warm_up()
        return engine

    return serving_engine(name, worker.submit(open_engine).result(), [f"log.directory={folder / name}"], worker)


@contextmanager
def serving_engine(
    name: str, engine: Engine, words: Sequence[str], worker: ThreadPoolExecutor | None = None
) -> Iterator[Candidate]:
    """Yields a server in a thread, with a client; ``words`` are settings."""
    patient = ["ckpt=random", "port=0", "deadline_s=60", "max_age_s=1e6", "traffic.messages_per_s=1e6"]
    loose = ["guard.quaternion_tolerance=0.9", "guard.on_workspace=clip"]
    settings: ServeSettings = read_settings(None, [*patient, *loose, *words])
    replies: list[Reply] = []
    ready, ports = threading.Event(), {}
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def run() -> None:
        async with listening(engine, settings, replies.append, worker) as (_, found):
            ports.update(found)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    ready.wait()
    with LineClient(port=ports["line"], timeout=60) as client:
        yield Candidate(name, client, replies)
    loop.call_soon_threadsafe(stop.set)
    thread.join()


def measure(candidates: Sequence[Candidate], n_requests: int) -> None:
    """Alternates between the servers; the first two requests of a scenario warm up and are left out."""
    encoded = [
        cv2.imencode(".jpg", scene(i, 0, (1280, 720)), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes() for i in range(40)
    ]
    for scenario, stride in (("new frames", 2), ("one shared", 1)):
        for candidate in candidates:
            candidate.client.reset()
        for request in range(n_requests + 2):
            at = request * stride
            frames = [encoded[at % 40], encoded[(at + 1) % 40]]
            for candidate in candidates:
                candidate.replies.clear()
                candidate.ask(scenario, frames, at / 10)
        for candidate in candidates:
            del candidate.stages[scenario][:2]


def percentiles(candidate: Candidate, scenario: str) -> dict[str, list[float]]:
    """Returns p50, p95 and p99 of each stage and of the whole, in milliseconds."""
    rows = candidate.stages[scenario]
    return {
        name: [round(float(value), 3) for value in np.percentile([row.get(name, 0.0) for row in rows], (50, 95, 99))]
        for name in (*STAGES, "total", "client")
    }


def difference(candidate: Candidate, baseline: Candidate) -> dict[str, float]:
    """Returns how far actions are from the baseline's: poses (median and largest), and differing gripper commands."""
    pairs = [(candidate.actions[name], baseline.actions[name]) for name in baseline.actions]
    ours, theirs = (np.concatenate([np.stack(pair[side]) for pair in pairs]) for side in (0, 1))
    mm = np.linalg.norm(ours[..., :3] - theirs[..., :3], axis=-1) * 1000
    degrees = np.degrees(geodesic_distance(ours[..., 3:7], theirs[..., 3:7]))
    return {
        "largest_in_pose": float(np.abs(ours - theirs)[..., :7].max()),
        "median_mm": float(np.median(mm)),
        "largest_mm": float(mm.max()),
        "median_degrees": float(np.median(degrees)),
        "largest_degrees": float(degrees.max()),
        "other_gripper_commands": int((ours[..., 7] != theirs[..., 7]).sum()),
        "gripper_commands": ours[..., 7].size,
    }


def report(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Prints the tables; returns the numbers."""
    console, baseline = Console(), candidates[0]
    found: dict[str, Any] = {"scenarios": {}, "difference": {}}
    for scenario in baseline.stages:
        table = Table(f"{scenario}: p50 / p95 / p99 ms", *(candidate.name for candidate in candidates))
        rows = {candidate.name: percentiles(candidate, scenario) for candidate in candidates}
        for stage in (*STAGES, "total", "client"):
            table.add_row(stage, *(" / ".join(f"{ms:.1f}" for ms in rows[c.name][stage]) for c in candidates))
        speedups = {name: rows[baseline.name]["total"][0] / stages["total"][0] for name, stages in rows.items()}
        table.add_row("times faster", *(f"{speedups[candidate.name]:.2f}" for candidate in candidates))
        console.print(table)
        found["scenarios"][scenario] = {"milliseconds": rows, "times_faster": speedups}
        if CONTINUING in rows:
            ratio = rows[CONTINUING]["total"][0] / rows["float32"]["total"][0]
            found["scenarios"][scenario]["continuing_times_plain_request"] = ratio
            console.print(f"{scenario}: a request that continues a chunk takes {ratio:.2f} times a plain one")
    for candidate in candidates[1:]:
        if candidate.continuing:
            continue
        apart = found["difference"][candidate.name] = difference(candidate, baseline)
        console.print(
            f"{candidate.name}: poses at most {apart['largest_in_pose']:.1e} from the baseline's; "
            f"{apart['median_mm']:.3f} mm and {apart['median_degrees']:.3f} degrees by median, at most "
            f"{apart['largest_mm']:.3f} mm and {apart['largest_degrees']:.3f} degrees; "
            f"{apart['other_gripper_commands']} of {apart['gripper_commands']} gripper commands differ"
        )
    return found


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Runs `count` processes that compute all the time."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure_busy(n_busy: int, n_requests: int, steps: int) -> dict[str, Any]:
    """Measures answered observations and round trips by number of threads, next to busy processes."""
    found: dict[str, Any] = {}
    with busy_processes(n_busy), tempfile.TemporaryDirectory() as folder:
        time.sleep(1.0)
        for name, asked in {"chosen": None, "all cores": usable_cores(), "one": 1}.items():

            def open_engine(asked: int | None = asked) -> PolicyEngine:
                threads = ComputeThreads(asked, CpuTimes.now())
                engine = PolicyEngine(users_policy(), EngineSettings(steps=steps, threads=asked), threads=threads)
                engine.warm_up()
                return engine

            worker = computing_thread()  # the previous one has ended with its server
            engine = worker.submit(open_engine).result()
            words = [f"log.directory={Path(folder) / name}", "deadline_s=1.0", "max_age_s=0.5"]
            with serving_engine(name, engine, words, worker) as candidate:
                found[name] = {"threads": engine.describe()["threads"], **ask_on_time(candidate.client, n_requests)}
    return found


def ask_on_time(client: LineClient, n_requests: int, period_s: float = 0.6) -> dict[str, Any]:
    """Sends one observation every ``period_s``; returns outcomes, and round trips in milliseconds."""
    encoded = [cv2.imencode(".jpg", scene(i, 0, (1280, 720)))[1].tobytes() for i in range(40)]
    outcomes: Counter[str] = Counter()
    trips = []
    for request in range(n_requests):
        begun = time.perf_counter()
        now = time.time()
        try:
            client.infer(
                [encoded[2 * request % 40], encoded[(2 * request + 1) % 40]], [POSE] * 2, [1, 1], [now - 0.1, now]
            )
            outcomes["answered"] += 1
            trips.append((time.perf_counter() - begun) * 1000)
        except ServerError as error:
            outcomes[error.code] += 1
        time.sleep(max(0.0, period_s - (time.perf_counter() - begun)))
    quantiles = np.percentile(trips, (50, 95, 99)).round(1).tolist() if trips else None
    return {"observations": n_requests, "outcomes": dict(outcomes), "client_ms": quantiles}


def report_busy(found: Mapping[str, Any], n_busy: int) -> None:
    """Prints the table of ``measure_busy``."""
    table = Table(f"next to {n_busy} busy processes", "threads", "answered", "other outcomes", "p50 / p95 / p99 ms")
    for name, row in found.items():
        others = {code: count for code, count in row["outcomes"].items() if code != "answered"}
        trips = "-" if row["client_ms"] is None else " / ".join(f"{ms:.0f}" for ms in row["client_ms"])
        answered = f"{row['outcomes'].get('answered', 0)} of {row['observations']}"
        table.add_row(name, str(row["threads"]), answered, str(others or "-"), trips)
    Console().print(table)


def _about_machine(device: torch.device, steps: int) -> dict[str, Any]:
    return {
        "steps": steps,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else _cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _cpu_name() -> str:
    """Returns the processor's name and the vector instructions that torch uses."""
    return f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 requests")
    parser.add_argument("--requests", type=positive_number, default=60)
    parser.add_argument("--steps", type=positive_number, default=10, help="DDIM steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument(
        "--busy", type=whole_number, nargs="?", const=0, metavar="N", help="measure next to N busy processes"
    )
    arguments = parser.parse_args(argv)
    device, load = torch.device(arguments.device), os.getloadavg()[0]
    if arguments.busy is not None:
        n_busy, n_requests = arguments.busy or usable_cores(), 5 if arguments.quick else 31
        busy = measure_busy(n_busy, n_requests, arguments.steps)
        report_busy(busy, n_busy)
        found = {"busy_processes": n_busy, "by_threads": busy}
    else:
        found = _beside_a_plain_server(arguments, device)
    if arguments.json:
        document = found | _about_machine(device, arguments.steps) | {"load": [load, os.getloadavg()[0]]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _beside_a_plain_server(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    kinds = {
        "baseline": EngineSettings(steps=arguments.steps, fast=False),
        "float32": EngineSettings(steps=arguments.steps),
    }
    if multiplies_bf16(device):
        kinds["bfloat16"] = EngineSettings(steps=arguments.steps, precision="bfloat16")
    else:
        Console().print("bfloat16 is left out: this device has no instructions for it, and would emulate it")
    kinds[CONTINUING] = EngineSettings(steps=arguments.steps)
    worker = computing_thread()  # shared by all of them, as each would have one alone
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        candidates = [
            stack.enter_context(serving(name, options, Path(folder), arguments.device, worker))
            for name, options in kinds.items()
        ]
        candidates[-1].continuing = True
        measure(candidates, 6 if arguments.quick else arguments.requests)
    return report(candidates)


if __name__ == "__main__":
    sys.exit(main())
