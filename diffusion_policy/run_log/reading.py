"""Reads logs of all generations; a log is untrusted input."""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from diffusion_policy.listing import listed
from diffusion_policy.run_log.log import (
    SINGLE_CAMERA,
    FloatArray,
    LogStep,
    RunLog,
    RunLogError,
    check_same_dimensions,
)
from diffusion_policy.run_log.session_log import SessionLogError, newest_images

# The largest log of the real robot holds 457 steps in 1.7 MB, images included.
MAX_LOG_BYTES = 512 * 2**20
# Entries of a step's input that hold the newest frame: of a single camera, or of each camera by name.
FRAME, FRAMES = "image_base64", "images_base64"


def read_log(path: str | Path) -> RunLog:
    """Reads an inference log of any generation.

    Raises:
        RunLogError: the file is missing, too large, truncated, not JSON or in an unknown format; a number is missing,
            of the wrong type, NaN or infinite; steps differ in their dimensions.
    """
    path = Path(path)
    document = _read_folder(path) if (path / "steps.jsonl").is_file() else _read_json(path)
    if not isinstance(document, dict):
        raise RunLogError(f"{path}: holds a {type(document).__name__}; expected an object with 'steps', or 'inputs'")
    meta: Mapping[str, Any] = {}
    unanswered = 0
    if "inputs" in document and "outputs" in document:
        generation, (steps, unanswered) = 1, _read_parallel_lists(document, str(path))
    elif "steps" in document:
        generation = 4 if path.is_dir() else 3 if "meta" in document else 2
        meta = _mapping(document.get("meta", {}), f"{path}: meta")
        entries = _list(document["steps"], f"{path}: steps")
        steps = [_read_step(entry, f"{path}: steps[{i}]") for i, entry in enumerate(entries)]
    else:
        raise RunLogError(
            f"{path}: not an inference log; it has the entries [{listed(map(repr, sorted(document)))}], "
            "expected 'steps' or both 'inputs' and 'outputs'"
        )
    check_same_dimensions(steps, path)
    errors = document.get("errors", {}) if generation == 4 else {}
    return RunLog(path, generation, meta, tuple(steps), unanswered, errors)


def _read_folder(path: Path) -> dict[str, Any]:
    """Reads a run folder, one JSON line per step; an incomplete last line, and lines of other events, are left out."""
    try:
        meta = _read_json(path / "meta.json")
        lines = [json.loads(line) for line in (path / "steps.jsonl").read_bytes().split(b"\n")[:-1]]
        steps = [line for line in lines if "action" in line]
        for observed in (step["input"] for step in steps):
            newest = newest_images(path, meta, observed["images"])
            files = {camera: path / "images" / Path(name).name for camera, name in newest.items()}
            observed[FRAMES] = {camera: _base64(file.read_bytes()) for camera, file in files.items()}
    except SessionLogError as error:
        raise RunLogError(str(error)) from error
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise RunLogError(f"{path}: not a run folder, or a line of steps.jsonl is invalid ({error!r})") from error
    return {"meta": meta, "steps": steps, "errors": _count_errors(lines)}


def _count_errors(lines: Sequence[Any]) -> dict[str, int]:
    """Counts errors by code; of many in a row, the server logs only some, each with the count so far."""
    counts: Counter[str] = Counter()
    before = 0
    for line in lines:
        if not isinstance(line, dict):
            continue
        if line.get("event") == "error" and isinstance(code := line.get("code"), str):
            in_a_row = line.get("in_a_row")
            if isinstance(in_a_row, int) and in_a_row > before:
                counts[code] += in_a_row - before
                before = in_a_row
            else:
                counts[code] += 1
        elif "action" in line:
            before = 0
    return dict(counts)


def _read_json(path: Path) -> Any:
    try:
        size = path.stat().st_size
        if size > MAX_LOG_BYTES:
            raise RunLogError(f"{path}: {size:,} bytes; a log has at most {MAX_LOG_BYTES:,}")
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise RunLogError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RunLogError(f"{path}: not UTF-8 text at byte {error.start}; expected a JSON log") from error

    def refuse(constant: str) -> NoReturn:
        raise RunLogError(f"{path}: holds {constant}, which is not a number; expected finite numbers")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        torn = (
            "the file is torn: it ends" if error.pos >= len(text.rstrip()) or "Unterminated" in error.msg else error.msg
        )
        raise RunLogError(f"{path}: not valid JSON, {torn} at line {error.lineno}, column {error.colno}") from error
    except (RecursionError, ValueError) as error:
        if isinstance(error, RunLogError):
            raise
        raise RunLogError(f"{path}: not a log ({error})") from error


def _read_parallel_lists(document: Mapping[str, Any], where: str) -> tuple[list[LogStep], int]:
    """Pairs the inputs and outputs of the first generation; the last input may have no output yet."""
    inputs = _list(document["inputs"], f"{where}: inputs")
    outputs = _list(document["outputs"], f"{where}: outputs")
    if len(outputs) > len(inputs):
        raise RunLogError(
            f"{where}: {len(outputs)} outputs for {len(inputs)} inputs; expected an input for each output"
        )
    steps = []
    for i, (entry, answer) in enumerate(zip(inputs, outputs, strict=False)):
        observed = _mapping(entry, f"{where}: inputs[{i}]")
        answered = _mapping(answer, f"{where}: outputs[{i}]")
        number = _step_number(observed, f"{where}: inputs[{i}]")
        if _step_number(answered, f"{where}: outputs[{i}]") != number:
            raise RunLogError(f"{where}: outputs[{i}] has step {answered['step']}, inputs[{i}] has step {number}")
        state = _numbers(observed.get("state"), f"{where}: inputs[{i}].state", n_dims=1)
        steps.append(
            LogStep(number, state, _numbers(answered.get("action"), f"{where}: outputs[{i}].action", n_dims=2))
        )
    return steps, len(inputs) - len(outputs)


def _read_step(entry: Any, where: str) -> LogStep:
    step = _mapping(entry, where)
    observed = _mapping(step.get("input"), f"{where}.input")
    answered = _mapping(step.get("action"), f"{where}.action")
    timing = dict(_mapping(step.get("timing", {}), f"{where}.timing"))
    if "timestamp" in observed:
        stamps = np.atleast_1d(_numbers(observed["timestamp"], f"{where}.input.timestamp"))
        timing["timestamp"] = float(stamps[-1]) if stamps.size else None
    return LogStep(
        _step_number(step, where),
        _numbers(observed.get("state"), f"{where}.input.state", n_dims=1),
        _numbers(answered.get("values"), f"{where}.action.values", n_dims=2),
        {str(k): float(_numbers(v, f"{where}.timing.{k}", n_dims=0)) for k, v in timing.items() if v is not None},
        _read_frames(observed, f"{where}.input"),
    )


def _read_frames(observed: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """Returns the encoded frame of each camera, or of the only one."""
    several = _mapping(observed.get(FRAMES, {}), f"{where}.{FRAMES}")
    if several:
        return {str(camera): _encoded(value, f"{where}.{FRAMES}.{camera}") for camera, value in several.items()}
    only = observed.get(FRAME)
    return {} if only is None else {SINGLE_CAMERA: _encoded(only, f"{where}.{FRAME}")}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _encoded(value: Any, where: str) -> bytes:
    if not isinstance(value, str):
        raise RunLogError(f"{where}: is a {type(value).__name__}; expected base64 text of a JPEG")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RunLogError(f"{where}: not base64 ({error})") from error


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise RunLogError(f"{where}: is {_brief(value)}; expected an object")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise RunLogError(f"{where}: is {_brief(value)}; expected a list")
    return value


def _step_number(entry: Mapping[str, Any], where: str) -> int:
    number = entry.get("step")
    if type(number) is not int:
        raise RunLogError(f"{where}.step: is {_brief(number)}; expected a whole number")
    return number


def _numbers(value: Any, where: str, n_dims: int | None = None) -> FloatArray:
    """Converts a JSON number, list or list of lists to float64; refuses anything that is not a finite number."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise RunLogError(f"{where}: rows of different lengths or types; expected numbers") from error
    if array.dtype.kind not in "iuf" or _holds_bool(value):
        raise RunLogError(f"{where}: is {_brief(value)}; expected numbers")
    if n_dims is not None and (array.ndim != n_dims or 0 in array.shape):
        shape = ("a number", "a list of numbers", "a list of lists of numbers")[n_dims]
        raise RunLogError(f"{where}: has shape {array.shape}; expected {shape}")
    if not np.isfinite(array).all():
        raise RunLogError(f"{where}: holds an infinite number; expected finite ones")
    return array.astype(np.float64)


def _holds_bool(value: Any) -> bool:
    """Whether a list holds a boolean, which NumPy would read as a number."""
    return any(map(_holds_bool, value)) if isinstance(value, list) else isinstance(value, bool)


def _brief(value: Any) -> str:
    if value is None:
        return "missing"
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."
