"""Whether writing a run's log delays a robot's answers.

    python benchmarks/run_log.py [--quick] [--requests N] [--json OUT]

Three servers of an engine that answers at once, so only the server itself is measured: without a log, with one,
and with one on a disk that takes 0.2 s for every line. Requests with two 1280x720 JPEGs alternate between them.
Times are milliseconds of the round trip that the robot sees. "not written" are lines lost to a disk slower than the
robot, including those still waiting 5 s after the end of the session.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from latency import HIGH, LOW, POSE, Candidate, scene, serving_engine  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table

from diffusion_policy.command_line import positive_number
from diffusion_policy.run_log.session_log import SessionLog
from diffusion_policy.serve.engine import Inference
from diffusion_policy.serve.stages import Stages
from diffusion_policy.serve.transport import host
from diffusion_policy.serve.transport.protocol import MessageForm, Observation

SLOW_WRITE_S = 0.2


class StillEngine:
    """Answers with actions that keep the arm where it is."""

    n_obs_steps = 2
    n_action_steps = 8
    form = MessageForm(n_obs_steps)

    def infer(self, observation: Observation, seed: int, remainder: Any, stages: Stages) -> Inference:
        chunk = np.tile(observation.states[-1], (10, 1))
        return Inference(chunk[1:9], chunk, 1, 2)

    def inspect(self, observation: Observation, seed: int) -> tuple[dict[str, Any], Inference]:
        return {}, self.infer(observation, seed, None, Stages())

    def outside_training(self, observation: Observation, margin: float) -> list[str]:
        return []

    def action_range(self) -> tuple[Any, Any]:
        return LOW, HIGH

    def describe(self) -> dict[str, Any]:
        return {"checkpoint": "none"}


class SlowLog(SessionLog):
    """A log on a disk that takes its time."""

    def _write(self, line: dict[str, Any], images: Any) -> None:
        time.sleep(SLOW_WRITE_S)
        super()._write(line, images)


def measure(candidates: Sequence[Candidate], n_requests: int) -> dict[str, list[float]]:
    """Returns round trips in milliseconds, taken in turn; the first two of each are left out."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
    frames = [cv2.imencode(".jpg", scene(i, 0, (1280, 720)), quality)[1].tobytes() for i in range(8)]
    found: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for request in range(n_requests + 2):
        images = [frames[request % 8], frames[(request + 1) % 8]]
        for candidate in candidates:
            start = time.perf_counter()
            candidate.client.infer(images, [POSE] * 2, [1, 1], [request / 10, request / 10 + 0.1])
            found[candidate.name].append((time.perf_counter() - start) * 1000)
    return {name: times[2:] for name, times in found.items()}


def lines_in(folder: Path) -> int:
    """Returns the number of complete lines in a log."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("run_*/steps.jsonl"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50 requests")
    parser.add_argument("--requests", type=positive_number, default=400)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args(argv)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        with ExitStack() as stack:
            candidates = []
            for name, log in (("no log", None), ("log", SessionLog), ("log on a slow disk", SlowLog)):
                host.SessionLog = log or SessionLog  # type: ignore[misc]
                place = "null" if log is None else f"{folder}/{name}"
                candidates.append(stack.enter_context(serving_engine(name, StillEngine(), [f"log.directory={place}"])))
            times = measure(candidates, 50 if arguments.quick else arguments.requests)
        for name, values in times.items():
            percentiles = [float(value) for value in np.percentile(values, (50, 95, 99))]
            written = lines_in(Path(folder) / name)
            found[name] = {"p50_p95_p99_ms": percentiles, "written": written, "not_written": len(values) + 2 - written}
    table = Table("", "p50 ms", "p95 ms", "p99 ms", "times the p50 without a log", "written", "not written")
    for name, row in found.items():
        row["ratio"] = row["p50_p95_p99_ms"][0] / found["no log"]["p50_p95_p99_ms"][0]
        shown = [f"{ms:.2f}" for ms in row["p50_p95_p99_ms"]]
        table.add_row(name, *shown, f"{row['ratio']:.2f}", str(row["written"]), str(row["not_written"]))
    Console().print(table)
    found["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
