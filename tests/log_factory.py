"""Inference logs of all generations, made for tests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

JPEG_TEXT = "/9j/"
DOWNWARD = [0.92, -0.38, 0.05, 0.02]


def pose(step: int, layout: str = "quat") -> list[float]:
    """A pose that moves with the step: quaternion of norm 1, or a rotation vector near pi."""
    rotation = (np.array(DOWNWARD) / np.linalg.norm(DOWNWARD)).tolist() if layout == "quat" else [3.0, 0.1, 0.0]
    return [0.3 + 0.001 * step, 0.0, 0.2, *rotation]


def chunk(step: int, last: float, layout: str = "quat", n_actions: int = 8) -> list[list[float]]:
    return [[*pose(step + i, layout), last] for i in range(n_actions)]


def document(
    commands: Sequence[float],
    generation: int = 2,
    *,
    measured: Sequence[float] | None = None,
    layout: str = "quat",
    seconds: float = 0.8,
) -> dict[str, Any]:
    """A log whose next gripper command at step i is ``commands[i]``."""
    seen = [1.0] * len(commands) if measured is None else list(measured)
    states = [[*pose(i, layout), seen[i]] for i in range(len(commands))]
    chunks = [chunk(i, float(command), layout) for i, command in enumerate(commands)]
    if generation == 1:
        return {
            "inputs": [{"step": i, "state": state} for i, state in enumerate(states)],
            "outputs": [{"step": i, "action": actions} for i, actions in enumerate(chunks)],
        }
    steps: list[dict[str, Any]] = [
        {"step": i, "input": {"state": states[i]}, "action": {"values": chunks[i]}} for i in range(len(commands))
    ]
    for i, step in enumerate(steps):
        if generation == 2:
            step["input"] |= {"n_obs_steps": 2, "timestamp": i * seconds}
            step["action"]["shape"] = [8, 8]
        else:
            step["timing"] = {"infer_start": 1e9 + i * seconds, "inference_latency": 0.3, "total_latency": None}
            step["input"]["image_base64"] = JPEG_TEXT
    return {"steps": steps} if generation == 2 else {"meta": {"checkpoint": "latest.ckpt"}, "steps": steps}


def write_log(path: Path, *arguments: Any, **options: Any) -> Path:
    path.write_text(json.dumps(document(*arguments, **options)))
    return path
