"""Writes logs in the format of the third generation."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy.run_log.log import LogStep, RunLogError, check_same_dimensions
from diffusion_policy.run_log.reading import FRAME, FRAMES
from diffusion_policy.storage import StorageError, write_new


def write_inference_log(
    directory: str | Path, steps: Sequence[LogStep], meta: Mapping[str, Any], start: datetime | None = None
) -> Path:
    """Writes a log of the third generation to a temporary file, then links it to its name; logs are never replaced.

    Args:
        directory: target folder, created if absent.
        steps: at least one step; all with the same S, T and A.
        meta: JSON values; should name the ``checkpoint``. ``start_time`` is added from ``start`` unless it is given.
        start: start of the run, now by default. It is part of the name, to the second; if that is taken, the next free
            second is used.

    Returns:
        the file's path.

    Raises:
        RunLogError: no step, a number that is not finite, mixed dimensions, meta that is not JSON, or a write fails.
    """
    directory = Path(directory)
    start = start or datetime.now()
    document = {"meta": {"start_time": f"{start:%Y-%m-%d %H:%M:%S}", **meta}, "steps": _step_entries(steps, directory)}
    try:
        text = json.dumps(document, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RunLogError(f"{directory}: the run's meta or timing is not plain finite JSON ({error})") from error
    seconds = (start + timedelta(seconds=later) for later in itertools.count())
    try:
        return write_new((directory / f"inference_log_{second:%Y%m%d_%H%M%S}.json" for second in seconds), text)
    except StorageError as error:
        raise RunLogError(f"the log cannot be written: {error}") from error


def _step_entries(steps: Sequence[LogStep], directory: Path) -> list[dict[str, Any]]:
    if not steps:
        raise RunLogError(f"{directory}: the run has no step, so there is nothing to log")
    check_same_dimensions(steps, directory)
    entries = []
    for i, step in enumerate(steps):
        if not (np.isfinite(step.state).all() and np.isfinite(step.actions).all()):
            raise RunLogError(f"{directory}: step {i} holds NaN or infinity and cannot be logged as an action")
        observed: dict[str, Any] = {"state": step.state.tolist()}
        frames = {camera: base64.b64encode(frame).decode("ascii") for camera, frame in step.frames.items()}
        if frames:
            observed[FRAME] = next(iter(frames.values()))  # read by programs that know only a single camera
        if len(frames) > 1:
            observed[FRAMES] = frames
        entries.append(
            {
                "step": step.number,
                "timing": dict(step.timing),
                "input": observed,
                "action": {"values": step.actions.tolist()},
            }
        )
    return entries
