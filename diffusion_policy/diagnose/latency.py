"""Where the time goes in a log: the stages of one inference, each from time stamps of a single clock.

Clocks of robot and server are not synchronized, and early logs hold absolute times where they mean differences. So a
stage is measured only between two stamps of the server, or where the log names a difference. Values that are negative
or longer than a minute are left out, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.run_log import RunLog
from diffusion_policy.serve.stages import STAGES

FloatArray = NDArray[np.float64]

LONGEST_SECONDS = 60.0
# Name of each stage, its beginning and its end, all stamped by the server.
SERVER_STAGES = (
    ("wait for its turn", "server_recv", "process_start"),
    ("decode and resize", "process_start", "infer_start"),
    ("inference", "infer_start", "infer_end"),
    ("encode and send", "infer_end", "send_timestamp"),
    ("all of the server", "server_recv", "send_timestamp"),
)
INFERENCE = "inference"
# Differences that logs contain; those across two clocks are labeled as such.
NAMED_STAGES = (
    *((name, name) for name in STAGES),  # from this project's server, in milliseconds
    (INFERENCE, "inference_latency"),
    ("transport (two clocks)", "transport_latency"),
    ("total (two clocks)", "total_latency"),
)


@dataclass(frozen=True)
class Stage:
    """Latencies of one stage.

    Attributes:
        name: name of the stage.
        milliseconds: (N,) plausible values.
        left_out: number of implausible values.
    """

    name: str
    milliseconds: FloatArray
    left_out: int

    def quantiles(self) -> tuple[float, float, float]:
        """Median, 95th and 99th percentile, in ms."""
        p50, p95, p99 = np.percentile(self.milliseconds, (50, 95, 99))
        return float(p50), float(p95), float(p99)


def latency_stages(log: RunLog) -> tuple[Stage, ...]:
    """The stages that a log times, in the order in which they happen; empty for logs without times."""
    timings = [step.timing for step in log.steps]
    stages = []
    for name, begin, end in SERVER_STAGES:
        stages.append(_stage(name, [t[end] - t[begin] for t in timings if begin in t and end in t]))
    for name, key in NAMED_STAGES:
        seconds = [t[key] for t in timings if key in t] + [t[f"{key}_ms"] / 1000 for t in timings if f"{key}_ms" in t]
        if not any(stage is not None and stage.name == name for stage in stages):
            stages.append(_stage(name, seconds))
    return tuple(stage for stage in stages if stage is not None)


def _stage(name: str, seconds: list[float]) -> Stage | None:
    values = np.asarray(seconds, dtype=np.float64)
    possible = values[(values >= 0) & (values <= LONGEST_SECONDS)]
    return Stage(name, possible * 1000, len(values) - len(possible)) if len(possible) else None
