"""The log of a run: what the robot saw, what the policy answered, step by step.

Inference servers of this robot wrote ``inference_log_YYYYMMDD_HHMMSS.json`` in three shapes; ``read_log`` reads all of
them into one ``RunLog``, and ``write_inference_log`` writes the third. The fourth is this server's folder:

1. ``{"inputs": [{"step", "state"}], "outputs": [{"step", "action": [[A] x T]}]}``;
2. ``{"steps": [{"step", "input": {"state", "timestamp"}, "action": {"values": [[A] x T]}}]}``;
3. ``{"meta": {"checkpoint", "start_time", ...}, "steps": [{"step", "timing": {...}, "input": {"state", "image_base64"},
   "action": {"values": [[A] x T]}}]}``;
4. a folder with ``meta.json``, ``steps.jsonl`` and ``images/``, see ``serve.session_log``.

A log is untrusted input: its size is bounded, every number is checked, and whatever does not fit is refused by file and
place. Which layout its numbers have (pose + gripper, or rotation vector + width) is told from the numbers themselves
where the log does not name them; old logs do not.

Legend of shapes: N steps, S state dimensions, T actions of a chunk, A action dimensions. Positions are metres,
quaternions xyzw, gripper 1 = open.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.spec import POSE, POSE_GRIPPER, ROTVEC_WIDTH, Layout, WorkspaceError

FloatArray = NDArray[np.float64]

# The largest log of the real robot holds 457 steps in 1.7 MB, images included.
MAX_LOG_BYTES = 512 * 2**20
# Served poses were once smoothed component by component: single norms of 0.81-1.16, their median within 0.02 of 1.
_MEDIAN_NORM_SLACK = 0.05
# Of seven numbers the last four are a quaternion only if they say so at every step.
_EVERY_NORM_SLACK = 0.05
# Metres; 0.03-0.08 on the real robot.
_WIDEST_GRIPPER = 0.2
_NAMED_LAYOUTS: dict[Layout, tuple[str, ...]] = {
    "xyz_quat": POSE,
    "xyz_quat_gripper": POSE_GRIPPER,
    "xyz_rotvec_width": ROTVEC_WIDTH,
}
# Where a step's time is found, on one clock: the server's in the third generation, the client's in the second.
_STEP_CLOCKS = ("infer_start", "process_start", "server_recv", "timestamp")


class RunLogError(WorkspaceError, ValueError):
    """A log cannot be read or written; says which file, where in it, what was found and what was expected."""


@dataclass(frozen=True)
class LogStep:
    """One inference.

    Attributes:
        number: as the log counts.
        state: (S,) measured pose, then gripper if S is 8 (or 7 with a rotation vector).
        actions: (T, A) the chunk the policy answered; ``actions[0]`` is the next command.
        timing: seconds by name of the event, as logged. Clocks of client and server are not synchronised.
        jpeg: the newest camera frame, or None.
    """

    number: int
    state: FloatArray
    actions: FloatArray
    timing: Mapping[str, float] = field(default_factory=dict)
    jpeg: bytes | None = None


@dataclass(frozen=True)
class RunLog:
    """A whole log.

    Attributes:
        path: the file it was read from.
        generation: 1 to 4.
        meta: what the third generation says of the run; empty in older ones.
        steps: in the order logged; all have the same S, T and A.
        unanswered: observations at the end that got no action (the run was cut while the policy was thinking).
    """

    path: Path
    generation: int
    meta: Mapping[str, Any]
    steps: tuple[LogStep, ...]
    unanswered: int = 0

    @cached_property
    def actions(self) -> FloatArray:
        """(N, T, A) all chunks; (0, 0, 0) of an empty log."""
        return np.stack([step.actions for step in self.steps]) if self.steps else np.zeros((0, 0, 0))

    @cached_property
    def states(self) -> FloatArray:
        """(N, S) all measured states."""
        return np.stack([step.state for step in self.steps]) if self.steps else np.zeros((0, 0))

    @property
    def commands(self) -> FloatArray:
        """(N, A) the next command at each step: the first action of each chunk."""
        return self.actions[:, 0] if self.steps else np.zeros((0, 0))

    @cached_property
    def layout(self) -> Layout:
        """What the action numbers are: as meta's action semantics name them, else told from the commands."""
        semantics = self.meta.get("action_semantics")
        names = semantics.get("names") if isinstance(semantics, Mapping) else None
        for layout, known in _NAMED_LAYOUTS.items():
            if names == list(known) and self.commands.shape[1] == len(known):
                return layout
        return layout_of_commands(self.commands)

    @property
    def measured_gripper(self) -> FloatArray | None:
        """(N,) the gripper that was measured before each command, or None where the state holds a pose only."""
        holds_gripper = self.states.shape[1] == len(POSE_GRIPPER) or self.layout == "xyz_rotvec_width"
        return self.states[:, -1] if self.steps and holds_gripper else None

    @property
    def step_period(self) -> float | None:
        """Median seconds between two inferences, from the first clock that stamped every step; None without one."""
        for clock in _STEP_CLOCKS:
            stamps = [step.timing[clock] for step in self.steps if clock in step.timing]
            if len(stamps) == len(self.steps) >= 2:
                period = float(np.median(np.diff(stamps)))
                return period if period > 0 else None
        return None


def layout_of_commands(commands: FloatArray) -> Layout:
    """Tell the layout of commands (N, A): the last four numbers of a quaternion pose have norm 1, a width is 3-8 cm."""
    if len(commands) == 0 or commands.shape[1] not in (len(POSE), len(POSE_GRIPPER)):
        return "unknown"
    norms = np.linalg.norm(commands[:, 3:7], axis=1)
    if commands.shape[1] == len(POSE_GRIPPER):
        return "xyz_quat_gripper" if abs(np.median(norms) - 1) <= _MEDIAN_NORM_SLACK else "unknown"
    if (np.abs(norms - 1) <= _EVERY_NORM_SLACK).all():
        return "xyz_quat"
    width = commands[:, 6]
    return "xyz_rotvec_width" if width.min() >= -0.01 and width.max() <= _WIDEST_GRIPPER else "unknown"


def read_log(path: str | Path) -> RunLog:
    """Read an inference log of any generation.

    Raises:
        RunLogError: the file is missing, too large, torn, not JSON or of no known shape; a number is missing, of the
            wrong type, NaN or infinite; steps differ in their dimensions.
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
            f"{path}: no inference log; it has the entries {sorted(document)}, "
            "expected 'steps' or both 'inputs' and 'outputs'"
        )
    _check_same_dimensions(steps, path)
    return RunLog(path, generation, meta, tuple(steps), unanswered)


def _read_folder(path: Path) -> dict[str, Any]:
    """A run's folder, one JSON line a step; a torn last line, and lines that are no step, are left out."""
    try:
        lines = [json.loads(line) for line in (path / "steps.jsonl").read_bytes().split(b"\n")[:-1]]
        steps = [line for line in lines if "action" in line]
        for seen in (step["input"] for step in steps):
            newest = path / "images" / Path(seen["images"][-1]).name
            seen["image_base64"] = base64.b64encode(newest.read_bytes()).decode("ascii")
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise RunLogError(f"{path}: no run's folder, or a line of steps.jsonl is none ({error!r})") from error
    return {"meta": _read_json(path / "meta.json"), "steps": steps}


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
        raise RunLogError(f"{path}: holds {constant}, which is no number; expected finite numbers")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        torn = (
            "the file is torn: it ends" if error.pos >= len(text.rstrip()) or "Unterminated" in error.msg else error.msg
        )
        raise RunLogError(f"{path}: not whole JSON, {torn} at line {error.lineno}, column {error.colno}") from error
    except (RecursionError, ValueError) as error:
        if isinstance(error, RunLogError):
            raise
        raise RunLogError(f"{path}: not a log ({error})") from error


def _read_parallel_lists(document: Mapping[str, Any], where: str) -> tuple[list[LogStep], int]:
    """Pair the inputs and outputs of the first generation; the last input may have no output yet."""
    inputs = _list(document["inputs"], f"{where}: inputs")
    outputs = _list(document["outputs"], f"{where}: outputs")
    if len(outputs) > len(inputs):
        raise RunLogError(
            f"{where}: {len(outputs)} outputs for {len(inputs)} inputs; expected an input for each output"
        )
    steps = []
    for i, (entry, answer) in enumerate(zip(inputs, outputs, strict=False)):
        seen = _mapping(entry, f"{where}: inputs[{i}]")
        said = _mapping(answer, f"{where}: outputs[{i}]")
        number = _step_number(seen, f"{where}: inputs[{i}]")
        if _step_number(said, f"{where}: outputs[{i}]") != number:
            raise RunLogError(f"{where}: outputs[{i}] is of step {said['step']}, inputs[{i}] of step {number}")
        state = _numbers(seen.get("state"), f"{where}: inputs[{i}].state", n_dims=1)
        steps.append(LogStep(number, state, _numbers(said.get("action"), f"{where}: outputs[{i}].action", n_dims=2)))
    return steps, len(inputs) - len(outputs)


def _read_step(entry: Any, where: str) -> LogStep:
    step = _mapping(entry, where)
    seen = _mapping(step.get("input"), f"{where}.input")
    said = _mapping(step.get("action"), f"{where}.action")
    timing = dict(_mapping(step.get("timing", {}), f"{where}.timing"))
    if "timestamp" in seen:
        stamps = np.atleast_1d(_numbers(seen["timestamp"], f"{where}.input.timestamp"))
        timing["timestamp"] = float(stamps[-1]) if stamps.size else None
    return LogStep(
        _step_number(step, where),
        _numbers(seen.get("state"), f"{where}.input.state", n_dims=1),
        _numbers(said.get("values"), f"{where}.action.values", n_dims=2),
        {str(k): float(_numbers(v, f"{where}.timing.{k}", n_dims=0)) for k, v in timing.items() if v is not None},
        _read_jpeg(seen.get("image_base64"), f"{where}.input.image_base64"),
    )


def _read_jpeg(value: Any, where: str) -> bytes | None:
    if value is None:
        return None
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
    """A JSON number, list or list of lists as float64; refuses anything that is not a finite number."""
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
    """NumPy reads a ``true`` between numbers as 1.0; JSON's true is not a number."""
    return any(map(_holds_bool, value)) if isinstance(value, list) else isinstance(value, bool)


def _brief(value: Any) -> str:
    if value is None:
        return "missing"
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_same_dimensions(steps: Sequence[LogStep], where: Path | str) -> None:
    for name in ("state", "actions"):
        for i, step in enumerate(steps):
            first, shape = getattr(steps[0], name).shape, getattr(step, name).shape
            if shape != first:
                raise RunLogError(
                    f"{where}: {name} of step {i} has shape {shape}, of step 0 {first}; expected one layout"
                )


def write_inference_log(
    directory: str | Path, steps: Sequence[LogStep], meta: Mapping[str, Any], start: datetime | None = None
) -> Path:
    """Write a log of the third generation: beside, then linked to its name; an existing log is never replaced.

    Args:
        directory: made if absent.
        steps: at least one; all with the same S, T and A.
        meta: JSON values; should name the ``checkpoint``. ``start_time`` is added from ``start`` unless it is given.
        start: of the run, now by default. The name carries it to the second; taken names push it to the next free one.

    Returns:
        the file's path.

    Raises:
        RunLogError: no step, a number that is not finite, mixed dimensions, meta that is not JSON, or the disk refuses.
    """
    directory = Path(directory)
    start = start or datetime.now()
    document = {"meta": {"start_time": f"{start:%Y-%m-%d %H:%M:%S}", **meta}, "steps": _step_entries(steps, directory)}
    try:
        text = json.dumps(document, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RunLogError(f"{directory}: the run's meta or timing is not plain finite JSON ({error})") from error
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return _write_new(directory, text, start)
    except OSError as error:
        raise RunLogError(f"{directory}: the log cannot be written ({error.strerror})") from error


def _step_entries(steps: Sequence[LogStep], directory: Path) -> list[dict[str, Any]]:
    if not steps:
        raise RunLogError(f"{directory}: a run without a step; nothing to log")
    _check_same_dimensions(steps, directory)
    entries = []
    for i, step in enumerate(steps):
        if not (np.isfinite(step.state).all() and np.isfinite(step.actions).all()):
            raise RunLogError(f"{directory}: step {i} holds NaN or infinity; it was not logged as an action")
        seen: dict[str, Any] = {"state": step.state.tolist()}
        if step.jpeg is not None:
            seen["image_base64"] = base64.b64encode(step.jpeg).decode("ascii")
        entries.append(
            {
                "step": step.number,
                "timing": dict(step.timing),
                "input": seen,
                "action": {"values": step.actions.tolist()},
            }
        )
    return entries


def _write_new(directory: Path, text: str, start: datetime) -> Path:
    """Write ``text`` under the first free second's name; a link fails where a rename would replace."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=directory, prefix=".inference_log_", delete=False
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            while True:
                path = directory / f"inference_log_{start:%Y%m%d_%H%M%S}.json"
                try:
                    os.link(file.name, path)
                    return path
                except FileExistsError:
                    start += timedelta(seconds=1)
        finally:
            os.unlink(file.name)
