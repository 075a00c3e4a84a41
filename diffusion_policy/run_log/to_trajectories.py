"""Converts logs to training data: observations and commands, as CogACT trajectories for the converter.

A log becomes one episode or several: it is split at each reset, and where steps are missing. Each step keeps the
measured pose and gripper, the frame, and the first action that was sent, so that failures can be inspected, corrected
and trained on:

* ``marks.json`` in the episode's folder lists the steps at which the guard intervened (``interventions``) or a person
  drove (``intervention``, as the client reported), whose actions were corrected, or never reached the network
  (``not_delivered``);
* corrections, a JSON file of ``{"step": [8 numbers]}``, replace actions by the log's step number; data.pkl then holds
  ``intervention``, true where the action is a person's.

Nothing is invented: a log without an image, with a rotation vector, or with a gripper of unknown scale is refused. A
gripper between open and closed counts as its last clear state; steps before the first clear state are left out and
counted.

Legend of shapes: N steps; states and actions are (N, 8), pose followed by gripper.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.command_line import Stopped
from diffusion_policy.geometry import check_unit_quaternions
from diffusion_policy.gripper_events import UNDECIDED, gripper_states
from diffusion_policy.gripper_scale import DeclaredScales
from diffusion_policy.images import mime_suffix
from diffusion_policy.run_log import RunLog, RunLogError, read_log
from diffusion_policy.run_log.session_log import read_lines
from diffusion_policy.spec import INTERVENTION, POSE, POSE_GRIPPER, ActionLayout
from diffusion_policy.storage import atomic_folder

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]
_ONE_ARM = ActionLayout.of(POSE_GRIPPER)  # all that a CogACT trajectory can hold


@dataclass(frozen=True)
class WrittenEpisode:
    """An episode written from a log: folder, and numbers of steps, of steps left out and of corrected actions."""

    path: Path
    n_steps: int
    left_out: int
    corrected: int


def convert_logs(
    logs: Sequence[str | Path],
    directory: str | Path,
    corrections: Mapping[int, Sequence[float]] | None = None,
    gripper_scale: DeclaredScales | None = None,
) -> list[WrittenEpisode]:
    """Writes the episodes of each log, numbered after those that exist in ``directory``.

    A log without an answered observation is left out, with a warning.

    Args:
        logs: the logs to convert.
        directory: folder of the episodes.
        corrections: actions by step number, for one log.
        gripper_scale: scale of the logs' grippers, if it is neither 0..1 nor labeled; corrections are in 0..1.

    Raises:
        Stopped: interrupted; the episodes of earlier logs are kept.
        RunLogError: no log has an answered observation.
        RunLogError: a log cannot be read, or cannot be used for training; episodes of earlier logs are kept.
    """
    directory = Path(directory)
    taken = [int(path.name[8:]) for path in directory.glob("episode_*") if path.name[8:].isdecimal()]
    first = max(taken, default=-1) + 1
    written: list[WrittenEpisode] = []
    empty: list[str] = []
    done: list[str | Path] = []
    for path in logs:
        log = read_log(path)
        if not log.steps:
            logger.warning("%s: left out, none of its observations was answered: %s", log.path, log.why_empty)
            empty.append(f"{log.path}: {log.why_empty}")
        else:
            with _all_or_nothing(written, done, directory):
                lines = _lines(log)
                log = _in_internal_scale(log, gripper_scale)
                _check_corrections(log, corrections or {})
                for part in _episodes(log, lines):
                    written.append(_convert(part, lines, directory, first + len(written), corrections or {}))
        done.append(path)
    if empty and not written:
        raise RunLogError("\n".join(["no episode was written:", *empty]))
    return written


@contextlib.contextmanager
def _all_or_nothing(written: list[WrittenEpisode], done: Sequence[str | Path], directory: Path) -> Iterator[None]:
    """Removes the episodes of an interrupted log, so that the same command continues with that log."""
    before = len(written)
    try:
        yield
    except KeyboardInterrupt as error:
        for episode in written[before:]:
            shutil.rmtree(episode.path)
        if not before:
            raise
        raise Stopped(f"{before} episodes of {len(done)} logs are kept in {directory}", done=done) from error


def _check_corrections(log: RunLog, corrections: Mapping[int, Sequence[float]]) -> None:
    absent = sorted(set(corrections) - {step.number for step in log.steps})
    if absent:
        raise RunLogError(f"{log.path}: corrections name steps {absent}, which it does not have")


def read_corrections(path: str | Path) -> dict[int, list[float]]:
    """Reads corrected actions by step number; RunLogError if the file has another format."""
    try:
        result = {
            int(step): [float(value) for value in action] for step, action in json.loads(Path(path).read_text()).items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunLogError(f'{path}: expected a JSON object {{"step": [8 numbers]}} ({error})') from error
    for step, action in result.items():
        if len(action) != len(POSE_GRIPPER) or not np.isfinite(action).all():
            raise RunLogError(
                f"{path}: the action of step {step} is {action}; expected {len(POSE_GRIPPER)} finite numbers"
            )
    return result


def _lines(log: RunLog) -> dict[int, dict[str, Any]]:
    """Returns the log lines of a run folder by step number; older logs have none."""
    return {line["step"]: line for line in read_lines(log.path)[1] if "action" in line} if log.generation == 4 else {}


def _in_internal_scale(log: RunLog, declared: DeclaredScales | None) -> RunLog:
    """Returns the log with its gripper as 0 closed .. 1 open; raises RunLogError if its scale is unknown."""
    if log.layout != "xyz_quat_gripper":
        return log  # refused later, with its layout in the message
    scales = log.gripper_scales(declared)
    if scales is None:
        return log
    if scales.unknown:
        name, scale = scales.unknown[0]
        raise RunLogError(f"{log.path}: its {name} is {scale.span}: {scale.reason}; declare it: {scales.advice()}")
    internal = scales.command.is_internal and (scales.measured is None or scales.measured.is_internal)
    return log if internal else log.converted(scales)


def _episodes(log: RunLog, lines: Mapping[int, Mapping[str, Any]]) -> list[RunLog]:
    """Splits the log at resets from the client, after which another scene follows, and at missing steps."""
    if log.missing:
        logger.warning("%s: %s; it is split there", log.path, log.oddities[0])
    gap_ends = {last for _, last in log.missing}
    gaps = list(accumulate(int(number - log.stride in gap_ends) for number in log.numbers.tolist()))
    scenes = [lines[step.number].get("episode") if lines else None for step in log.steps]
    parts = groupby(range(len(log.steps)), key=lambda at: (scenes[at], gaps[at]))
    return [replace(log, steps=tuple(log.steps[at] for at in part)) for _, part in parts]


def _convert(
    log: RunLog,
    lines: Mapping[int, Mapping[str, Any]],
    directory: Path,
    number: int,
    corrections: Mapping[int, Sequence[float]],
) -> WrittenEpisode:
    _check(log)
    numbers = [step.number for step in log.steps]
    actions = log.commands.copy()
    corrected = [step for step in numbers if step in corrections]
    for step in corrected:
        actions[numbers.index(step)] = corrections[step]
    check_unit_quaternions(_ONE_ARM.rotations(actions), f"{log.path}: actions")
    (measured,), (commanded,) = _ONE_ARM.grippers(log.states).T, _ONE_ARM.grippers(actions).T
    states, commands = gripper_states(measured), gripper_states(commanded)
    decided = np.flatnonzero((states != UNDECIDED) & (commands != UNDECIDED))
    if not decided.size:
        raise RunLogError(f"{log.path}: the gripper is never clearly open or closed")
    rows = np.arange(decided[0], len(numbers))
    kept = numbers[decided[0] :]
    lost = [step for step in corrected if step not in kept]
    if lost:
        raise RunLogError(
            f"{log.path}: steps {lost} are corrected, but left out: the gripper is first clear at step {kept[0]}"
        )
    arrays: dict[str, NDArray[Any]] = {
        "robot_eef_pose": log.states[rows, : len(POSE)].astype(np.float32),
        "robot_gripper": states[rows].astype(np.int64),
        "action": actions[rows, : len(POSE)].astype(np.float32),
        "action_gripper": commands[rows].astype(np.int64),
        "timestamp": _times(log)[rows],
        "image_index": np.arange(len(rows), dtype=np.int64),
    }
    if corrected:
        arrays[INTERVENTION] = np.isin(kept, corrected)
    marks = {
        "log": str(log.path),
        "steps": kept,
        "corrected": corrected,
        INTERVENTION: [step for step in kept if lines.get(step, {}).get("input", {}).get(INTERVENTION)],
        "interventions": {
            str(step): lines[step]["interventions"] for step in kept if lines.get(step, {}).get("interventions")
        },
        "not_delivered": [step for step in kept if lines.get(step, {}).get("delivered") is False],
    }
    frames = {camera: [log.steps[row].frames[camera] for row in rows] for camera in log.cameras}
    path = _write(directory / f"episode_{number:04d}", number, arrays, frames, marks)
    return WrittenEpisode(path, len(rows), int(rows[0]), len(corrected))


def _check(log: RunLog) -> None:
    """Refuses what the converter would refuse later, with an error that names the log."""
    if log.steps and log.layout == "named" and log.action_layout is not None:
        raise RunLogError(
            f"{log.path}: its actions are {log.action_layout.describe()}; a CogACT trajectory holds the pose and the "
            "gripper of one arm, so this log cannot be converted"
        )
    if not log.steps or log.layout != "xyz_quat_gripper" or log.states.shape[1] != len(POSE_GRIPPER):
        raise RunLogError(f"{log.path}: its actions are {log.layout}; expected a pose and a gripper, xyz_quat_gripper")
    cameras = set(log.cameras)
    missing = [step.number for step in log.steps if not step.frames or set(step.frames) != cameras]
    if missing:
        of_each = " of each camera" if len(cameras) > 1 else ""
        raise RunLogError(f"{log.path}: {len(missing)} steps have no image{of_each}, the first is {missing[0]}")
    check_unit_quaternions(_ONE_ARM.rotations(log.states), f"{log.path}: states")


def _times(log: RunLog) -> FloatArray:
    """Returns times (N,) in seconds, from one of the log's clocks."""
    for clock in ("client_obs", "timestamp", "infer_start", "process_start", "server_recv"):
        if all(clock in step.timing for step in log.steps):
            return np.array([step.timing[clock] for step in log.steps])
    raise RunLogError(f"{log.path}: no clock has a time for every step")


def _write(
    folder: Path,
    number: int,
    arrays: Mapping[str, NDArray[Any]],
    frames: Mapping[str, Sequence[bytes]],
    marks: Mapping[str, Any],
) -> Path:
    times = arrays["timestamp"]
    meta = {
        "episode_id": number,
        "duration": float(times[-1] - times[0]),
        "n_steps": len(times),
        "n_images": sum(map(len, frames.values())),
        "data_shapes": {key: list(value.shape) for key, value in arrays.items()},
    }
    with atomic_folder(folder) as aside:
        for camera, images in frames.items():
            at = aside / "images" / (camera if len(frames) > 1 else "")
            at.mkdir(parents=True)
            for index, image in enumerate(images):
                (at / f"frame_{index:04d}{mime_suffix(image)}").write_bytes(image)
        (aside / "data.pkl").write_bytes(pickle.dumps(dict(arrays)))
        for name, content in (("meta.json", meta), ("marks.json", marks)):
            (aside / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder
