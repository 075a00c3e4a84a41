"""What the arrays of a zarr dataset mean: defined by a mapping, which is printed to fill in if it is missing."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion_policy.dataset.replay_buffer import ACTION_KEY, GRIPPER_KEY, IMAGE_KEY, POSE_KEY, ReplayBuffer
from diffusion_policy.recording.errors import RecordingError
from diffusion_policy.recording.mapping import UNDECIDED, MappingError, RecordingMapping
from diffusion_policy.recording.question import Vectors, guess_parts, guess_pose, question
from diffusion_policy.recording.zarr_sets.frames import is_color
from diffusion_policy.spec import POSE, POSE_GRIPPER, layout_from_range
from diffusion_policy.trajectory import SINGLE_CAMERA

TIMES = ("timestamp", "timestamps")
# Most numbers in a row that is a vector and not a depth image.
_WIDEST = 1024
_STATES = ("state", POSE_KEY, "agent_pos")
# UMI's names of a robot's arrays: robot0_eef_pos, robot0_eef_rot_axis_angle, robot0_gripper_width.
_UMI = re.compile(r"(robot\d+)_(eef_pos|eef_rot_axis_angle|gripper_width)")
_UMI_PARTS = {"eef_pos": "position", "eef_rot_axis_angle": "rotation", "gripper_width": "gripper"}
# The layout that training reads directly: arrays and their widths.
_OURS = {ACTION_KEY: (len(POSE_GRIPPER),), POSE_KEY: (len(POSE),), GRIPPER_KEY: (1,)}


@dataclass(frozen=True)
class Meaning:
    """What is read from a dataset.

    Attributes:
        mapping: mapping of its numbers.
        cameras: array or video camera, by name in the converted dataset.
        left_out: arrays that do not become part of it, with the reason.
    """

    mapping: RecordingMapping
    cameras: Mapping[str, str]
    left_out: Mapping[str, str]


def vectors_of(buffer: ReplayBuffer) -> Vectors:
    """Returns the arrays that are rows of numbers; rows of rows, such as keypoints, count as one row."""
    result: dict[str, tuple[str, ...] | int] = {}
    for key in buffer.keys:
        array = buffer[key]
        width = int(np.prod(array.shape[1:]))
        if key in TIMES or array.ndim > 3 or array.dtype.kind not in "fiub" or not 0 < width <= _WIDEST:
            continue
        names = array.attrs.get("names")
        named = array.ndim == 2 and isinstance(names, list) and len(names) == width
        result[key] = tuple(map(str, names)) if named and isinstance(names, list) else width
    return result


def meaning_of(buffer: ReplayBuffer, mapping: RecordingMapping | None, videos: Sequence[str] = ()) -> Meaning:
    """Decides what is read from a dataset.

    Args:
        buffer: the dataset.
        mapping: the mapping of its arrays, if given.
        videos: the cameras of its videos.

    Raises:
        MappingError: the mapping is missing, and the one to fill in is printed; or it names a camera that is not one.
        RecordingError: there is no camera, or nothing to convert.
    """
    colored = [key for key in buffer.keys if is_color(buffer[key].shape)] + list(videos)
    if not colored:
        raise RecordingError(
            f"{buffer.where}: has no color camera: no array (N, H, W, 3), and no videos/<episode>/<camera>.mp4 with "
            "it; a policy needs one (an archive that also holds the videos must be unpacked)"
        )
    vectors = vectors_of(buffer)
    if mapping is None:
        if IMAGE_KEY in colored and all(key in buffer and buffer[key].shape[1:] == _OURS[key] for key in _OURS):
            raise RecordingError(
                f"{buffer.where}: is already in the layout that training reads. If its numbers "
                f"mean something other than x y z qx qy qz qw and gripper, declare them with a mapping"
            )
        raise question(buffer.where, _content(buffer, vectors, colored), vectors, "nothing defines its arrays")
    chosen = _cameras(buffer.where, mapping, colored)
    used = {*mapping.features, *chosen.values(), *TIMES}
    left_out = {key: _why(buffer, key) for key in (*buffer.keys, *videos) if key not in used}
    return Meaning(mapping, chosen, left_out)


def _cameras(where: str, mapping: RecordingMapping, colored: list[str]) -> dict[str, str]:
    if mapping.cameras is None:
        return {SINGLE_CAMERA: colored[0]} if len(colored) == 1 else {name: name for name in colored}
    bad = [name for name in mapping.cameras if name not in colored]
    if bad:
        raise MappingError(
            f"{where}: the mapping's camera {bad[0]!r} is not a color camera; there are {', '.join(colored)}"
        )
    return {name: key for key, name in mapping.cameras.items()}


def _why(buffer: ReplayBuffer, key: str) -> str:
    if key not in buffer or is_color(buffer[key].shape):
        return "the mapping does not list this camera"
    if buffer[key].ndim > 3:
        return f"frames {buffer[key].shape[1:]} without three colors"
    return "no entry of the mapping reads it"


def _content(buffer: ReplayBuffer, vectors: Vectors, colored: list[str]) -> dict[str, Any]:
    """Returns the mapping to fill in."""
    action = next((name for name in (ACTION_KEY, *vectors) if name in vectors and ACTION_KEY in name), None)
    states = [name for name in _STATES if name in vectors and name != action]
    measured = _umi(vectors) or (_parts(buffer, states[0], vectors[states[0]]) if states else {})
    content: dict[str, Any] = {"action": {}, "state": measured}
    if action is not None:
        content["action"] = _parts(buffer, action, vectors[action])
    elif measured:  # the measurement is taken as the command of the step before
        content |= {"action": copy.deepcopy(measured), "lead": 1}
    content["cameras"] = {name: SINGLE_CAMERA if len(colored) == 1 else name for name in colored}
    if not any(key in buffer for key in TIMES):
        content["hz"] = UNDECIDED
    return content


def _parts(buffer: ReplayBuffer, name: str, feature: tuple[str, ...] | int) -> dict[str, Any]:
    """Guesses the parts of one array, by its names or otherwise by its width."""
    if not isinstance(feature, int):
        return guess_parts(name, feature)
    rows = buffer.read(name).reshape(buffer.n_steps, -1)
    metadata = layout_from_range(rows.min(axis=0).tolist(), rows.max(axis=0).tolist())
    return guess_pose(name, feature, is_quaternion=metadata == "xyz_quat")


def _umi(vectors: Vectors) -> dict[str, Any]:
    """Returns parts by UMI's array names; with several robots, by robot."""
    arms: dict[str, dict[str, Any]] = {}
    known = {"position": {"unit": "m"}, "rotation": {"as": "rotation_vector", "unit": "rad"}}
    for name in vectors:
        match = _UMI.fullmatch(name)
        if match is not None:
            kind = _UMI_PARTS[match.group(2)]
            arms.setdefault(match.group(1), {})[kind] = {"feature": name, **known.get(kind, {"scale": UNDECIDED})}
    return next(iter(arms.values())) if len(arms) == 1 else arms
