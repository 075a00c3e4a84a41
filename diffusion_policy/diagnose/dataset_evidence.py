"""Evidence from a dataset: the numbers that findings about data are based on.

Everything is read once; only a few image frames are unpacked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.chunk_files import ChunkFault
from diffusion_policy.dataset.content_hash import CONVERSION
from diffusion_policy.dataset.errors import DatasetError
from diffusion_policy.dataset.recorded_frames import accepts_mixed_frames, recorded_frames
from diffusion_policy.dataset.replay_buffer import (
    ACTION_KEY,
    GRIPPER_KEY,
    IMAGE_KEY,
    POSE_KEY,
    TIMESTAMP_KEY,
    ReplayBuffer,
)
from diffusion_policy.dataset.split import EpisodeIdentity, episode_identities
from diffusion_policy.dataset.verification import Verification
from diffusion_policy.diagnose import ReportError
from diffusion_policy.diagnose.copied_gripper import copying_of
from diffusion_policy.diagnose.steps import (
    FloatArray,
    Steps,
    arm_steps,
    finite,
    steps_of_dataset,
)
from diffusion_policy.gripper_events import GRIPPER_BAND, OPEN, UNDECIDED, gripper_events, gripper_states
from diffusion_policy.gripper_scale import DeclaredScales, ResolvedScales
from diffusion_policy.images import FrameKind
from diffusion_policy.paths import as_path, reaching, read_bytes
from diffusion_policy.pose_check import PoseFault, order_fault, pose_faults, tilt_from_down, tool_axis
from diffusion_policy.spec import ActionLayout, Layout, action_semantics, layout_of_statistics
from diffusion_policy.timestamps import TimestampFault, timestamp_fault

EXPECTED_KEYS = (IMAGE_KEY, POSE_KEY, GRIPPER_KEY, ACTION_KEY)
# Number of frames that are unpacked and inspected, evenly spread.
LOOKED_AT = 24
# Number of lost files that are named.
LOST_LISTED = 3
# An arm that moves less than this between two steps, by position and angle, is standing still.
STILL_METERS, STILL_RADIANS = 5e-4, 2e-3
# A frame whose brightest pixel is darker than this is black.
BLACK = 8
# A time between two steps is uneven if it differs from the median by more than this share of it.
UNEVEN = 0.5


@dataclass(frozen=True)
class GripperEvidence:
    """The commanded gripper of a dataset, 1 = open, and the measured one.

    Attributes:
        low, high: range of the commands.
        closings, openings: events under the dead band, over all episodes.
        starting_open, starting_closed: number of episodes that begin in each state.
        without_closing: numbers of the episodes that never close.
        equals_measured: share of steps at which command and measurement are the same number; None if nothing is
            measured.
        leading: number of events that command a state not yet measured at that step; None if nothing is measured.
        undecided: share of commands inside the dead band.
    """

    low: float
    high: float
    closings: int
    openings: int
    starting_open: int
    starting_closed: int
    without_closing: tuple[int, ...]
    equals_measured: float | None
    leading: int | None
    undecided: float


@dataclass(frozen=True)
class DatasetEvidence:
    """A dataset in numbers; E episodes, D action dimensions.

    Attributes:
        path: path of the dataset.
        keys: arrays under data/.
        lengths: (E,) steps of each episode.
        action_names: (D,) from the action's own labels or from its width.
        low, high: (D,) range of the action.
        semantics: what the numbers mean, as stored in the dataset; None if not stored.
        layout: the action's layout, derived from its range.
        image_size: (width, height), None without images.
        missing_frames: number of frame files, of all cameras, that are absent or truncated.
        lost_files: the first of them, with what is wrong with each.
        black_frames: number of black frames among those inspected.
        looked_at: number of frames that were unpacked.
        not_finite: number of NaN and infinite values in low-dimensional arrays.
        quaternion_error: largest distance of a quaternion's norm from 1, in action and pose; None without quaternions.
        sign_flips: number of steps from q to nearly -q within an episode, in action and pose.
        step_seconds: median time between steps, None without times.
        clock: why the time stamps cannot be seconds, if they cannot.
        uneven: share of steps whose time differs from the median by more than UNEVEN of it.
        still: share of steps in which the measured pose does not change; None without measured poses.
        command_distance_m: median distance between commanded and measured position at the same step.
        gripper: None without a gripper command.
        scales: scales in which its gripper is stored; None without one. ``gripper``, ``low`` and ``high`` are converted
            to 0 closed .. 1 open where the scale is known; ``gripper`` is None if it is not.
        faults: why its numbers cannot be poses, if they cannot (`pose_check`).
        tool_tilt: mean angle between the tool's z axis and straight down in degrees, with quaternions read scalar-last,
            as they should be, and scalar-first; None without poses.
        dropped: number of episodes and steps that the conversion left out; None without its ledger.
        settings: settings of the conversion; empty without its ledger.
        recorded: per camera, the kinds of frames that it was made from; empty without a ledger.
        accepts_mixed: whether the conversion was allowed to mix them.
        identities: (E,) by which a checkpoint identifies its episodes; empty for recordings not yet converted.
        content: result of comparing it with the hashes of its conversion; None if not compared.
    """

    path: str
    keys: tuple[str, ...]
    lengths: tuple[int, ...]
    action_names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    semantics: Mapping[str, Any] | None
    layout: Layout
    image_size: tuple[int, int] | None = None
    missing_frames: int = 0
    lost_files: tuple[str, ...] = ()
    black_frames: int = 0
    looked_at: int = 0
    not_finite: int = 0
    quaternion_error: float | None = 0.0
    sign_flips: int = 0
    step_seconds: float | None = None
    uneven: float = 0.0
    clock: TimestampFault | None = None
    still: float | None = None
    command_distance_m: float | None = None
    gripper: GripperEvidence | None = None
    scales: ResolvedScales | None = None
    faults: tuple[PoseFault, ...] = ()
    tool_tilt: tuple[float, float] | None = None
    dropped: tuple[int, int] | None = None
    settings: Mapping[str, Any] | None = None
    recorded: Mapping[str, tuple[FrameKind, ...]] = field(default_factory=dict)
    accepts_mixed: bool = False
    identities: tuple[EpisodeIdentity, ...] = ()
    content: Verification | None = None

    @property
    def n_steps(self) -> int:
        """Number of steps in all episodes."""
        return sum(self.lengths)


def evidence_of_dataset(
    path: str | Path, buffer: ReplayBuffer, steps: Steps, faults: Sequence[ChunkFault]
) -> DatasetEvidence:
    """Returns the evidence of an open dataset, from the results of `open_for_report` and `steps_of_dataset`."""
    dropped, settings = _conversion(as_path(path), buffer)
    return DatasetEvidence(
        path=str(path),
        keys=buffer.keys,
        semantics=buffer.semantics,
        dropped=dropped,
        settings=settings,
        identities=episode_identities(buffer),
        recorded=recorded_frames(buffer),
        accepts_mixed=accepts_mixed_frames(buffer),
        **_measure(steps),
        **_images(buffer, steps, faults),
    )


def look_at_numbers(path: str | Path, gripper_scale: DeclaredScales | None = None) -> DatasetEvidence:
    """Returns the evidence without the frames, in a fraction of a second; see `look_at_dataset`."""
    buffer = ReplayBuffer.open(path, gripper_scale=gripper_scale)
    return DatasetEvidence(
        path=str(path),
        keys=buffer.keys,
        semantics=buffer.semantics,
        recorded=recorded_frames(buffer),
        accepts_mixed=accepts_mixed_frames(buffer),
        **_measure(steps_of_dataset(buffer)),
    )


def look_at_recordings(steps: Steps) -> DatasetEvidence:
    """Returns the same for recordings not yet converted; their frames are not inspected here (`camera_evidence`)."""
    return DatasetEvidence(
        path=steps.where,
        keys=(*steps.numbers, *steps.cameras),
        semantics=action_semantics(steps.names[ACTION_KEY], steps.units),
        **_measure(steps),
    )


def _measure(steps: Steps) -> dict[str, Any]:
    not_finite = sum(int((~np.isfinite(array)).sum()) for array in steps.numbers.values())
    numbers = {key: finite(steps, key) for key in steps.numbers}
    action = np.nan_to_num(steps.numbers[ACTION_KEY])
    low, high = action.min(axis=0), action.max(axis=0)
    return {
        "lengths": tuple(np.diff(steps.episode_ends, prepend=0).tolist()),
        "action_names": steps.names[ACTION_KEY],
        "low": tuple(low.tolist()),
        "high": tuple(high.tolist()),
        "layout": layout_of_statistics(steps.names[ACTION_KEY], low.tolist(), high.tolist()),
        "not_finite": not_finite,
        "gripper": _gripper(steps),
        "scales": steps.scales,
        "faults": _faults(steps),
        "tool_tilt": _tool_tilt(steps),
        **_motion(numbers, steps),
        **_times(numbers.get(TIMESTAMP_KEY), steps),
    }


def episode_slices(ends: NDArray[np.int64]) -> list[slice]:
    """Returns the steps of each episode, from exclusive ends (E,)."""
    return [slice(int(low), int(high)) for low, high in zip([0, *ends[:-1]], ends, strict=True)]


def _faults(steps: Steps) -> tuple[PoseFault, ...]:
    """Returns the faults that training refuses, found by the same check."""
    keys = (ACTION_KEY, *steps.measured_keys)
    faults = [
        fault
        for key in keys
        for fault in pose_faults(steps.numbers[key], steps.names[key], f"data/{key}", steps.episode_ends)
    ]
    if not faults:
        commanded = _quaternions(steps, ACTION_KEY)
        measured = {arm: q for key in steps.measured_keys for arm, q in _quaternions(steps, key).items()}
        for arm in (arm for arm in commanded if arm in measured):
            order = order_fault(commanded[arm], measured[arm], f"data/action, {arm}" if arm else "data/action")
            faults += [] if order is None else [order]
    return tuple(faults)


def _quaternions(steps: Steps, key: str, values: FloatArray | None = None) -> dict[str, FloatArray]:
    """Returns (N, 4) for each arm whose rotation is stored as a quaternion, from the stored or the given values."""
    layout = steps.layout(key)
    stored = steps.numbers[key] if values is None else values
    arms = () if layout is None else layout.arms
    return {arm.name: stored[:, list(arm.rotation)] for arm in arms if arm.representation == "quaternion"}


def _tool_tilt(steps: Steps) -> tuple[float, float] | None:
    """Returns the tilt of the first arm that has a quaternion."""
    for key in (*steps.measured_keys, ACTION_KEY):
        for quaternions in _quaternions(steps, key, finite(steps, key)).values():
            axes = [tool_axis(quaternions, scalar_first=scalar_first) for scalar_first in (False, True)]
            return tilt_from_down(axes[0]), tilt_from_down(axes[1])
    return None


def _motion(numbers: Mapping[str, FloatArray], steps: Steps) -> dict[str, Any]:
    inside, keys = steps.within, steps.measured_keys
    vectors = ((key, np.nan_to_num(steps.numbers[key])) for key in (ACTION_KEY, *keys))
    quaternions = [q for key, values in vectors for q in _quaternions(steps, key, values).values()]
    result: dict[str, Any] = {
        "quaternion_error": max((_norm_error(q) for q in quaternions), default=None),
        "sign_flips": sum(int(((q[1:] * q[:-1]).sum(axis=1)[inside] < -0.5).sum()) for q in quaternions),
    }
    layouts = {key: layout for key in keys if (layout := steps.layout(key)) is not None}
    moves = [move for key, layout in layouts.items() if (move := arm_steps(layout, numbers[key])) is not None]
    if moves and inside.any():
        still = [(meters < STILL_METERS) & (radians < STILL_RADIANS) for meters, radians in moves]
        result["still"] = float(np.all(still, axis=0)[inside].mean())
    measured = {arm: p for key, layout in layouts.items() for arm, p in _positions(layout, numbers[key]).items()}
    action = steps.layout(ACTION_KEY)
    commanded = {} if action is None else _positions(action, numbers[ACTION_KEY])
    away = [np.linalg.norm(commanded[arm] - measured[arm], axis=1) for arm in commanded if arm in measured]
    if away:
        result["command_distance_m"] = max(float(np.median(meters)) for meters in away)
    return result


def _norm_error(quaternions: FloatArray) -> float:
    return float(np.abs(np.linalg.norm(quaternions, axis=1) - 1).max())


def _positions(layout: ActionLayout, values: FloatArray) -> dict[str, FloatArray]:
    """Returns (N, 3) positions of each arm."""
    return dict(zip(layout.labels("position"), np.moveaxis(layout.positions(values), 1, 0), strict=True))


def _times(timestamps: FloatArray | None, steps: Steps) -> dict[str, Any]:
    inside = steps.within
    if timestamps is None or not inside.any():
        return {}
    seconds = np.diff(timestamps)[inside]
    median = float(np.median(seconds))
    uneven = float((np.abs(seconds - median) > UNEVEN * abs(median)).mean())
    clock = timestamp_fault(timestamps, f"data/{TIMESTAMP_KEY}", steps.episode_ends)
    return {"step_seconds": median, "uneven": uneven, "clock": clock}


def _gripper(steps: Steps) -> GripperEvidence | None:
    """Summarizes all grippers; an episode starts open if all of them do, and closes if any of them does."""
    stored = steps.commanded_grippers()
    if stored is None:
        return None
    command, copying = np.nan_to_num(stored), copying_of(steps)
    episodes = [command[part].T for part in steps.slices]
    events = [[gripper_events(values) for values in grippers] for grippers in episodes]
    decided = [[states[0] for states in map(_decided, grippers) if len(states)] for grippers in episodes]
    firsts = [min(states) for states in decided if states]
    kinds = [kind for found in events for of_one in found for _, kind in of_one]
    return GripperEvidence(
        low=float(command.min()),
        high=float(command.max()),
        closings=kinds.count("close"),
        openings=kinds.count("open"),
        starting_open=firsts.count(OPEN),
        starting_closed=len(firsts) - firsts.count(OPEN),
        without_closing=tuple(i for i, values in enumerate(episodes) if values.min() > GRIPPER_BAND.closed),
        equals_measured=None if copying is None else copying.equal_share,
        leading=None if copying is None else copying.leading,
        undecided=float(((command > GRIPPER_BAND.closed) & (command < GRIPPER_BAND.open)).mean()),
    )


def _decided(values: FloatArray) -> NDArray[np.int8]:
    states = gripper_states(values)
    return states[states != UNDECIDED]


def _images(buffer: ReplayBuffer, steps: Steps, faults: Sequence[ChunkFault]) -> dict[str, Any]:
    if IMAGE_KEY not in buffer.cameras:
        return {"missing_frames": len(faults), "lost_files": _lost_files(faults)}
    _, height, width, _ = buffer[IMAGE_KEY].shape
    brightest = []
    for step in np.unique(np.linspace(0, buffer.n_steps - 1, LOOKED_AT).astype(int)):
        try:
            frame = steps.cameras[IMAGE_KEY].frame(int(step), width, height)
        except DatasetError:  # it does not unpack, which `camera_evidence` reports
            continue
        brightest += [] if frame is None else [int(frame.frame.max())]
    return {
        "image_size": (width, height),
        "missing_frames": len(faults),
        "lost_files": _lost_files(faults),
        "black_frames": sum(value < BLACK for value in brightest),
        "looked_at": len(brightest),
    }


def _lost_files(faults: Sequence[ChunkFault]) -> tuple[str, ...]:
    return tuple(f"{fault.file} {fault.what}" for fault in faults[:LOST_LISTED])


def _conversion(path: Path, buffer: ReplayBuffer) -> tuple[tuple[int, int] | None, Mapping[str, Any] | None]:
    """Returns episodes and steps left out, and the settings, from the ledger next to the dataset or else inside it."""
    ledger = path.with_name(f"{path.name}.conversion.json")
    with reaching(ledger):
        has_ledger = ledger.is_file()
    document: Any = buffer.root.attrs.get(CONVERSION)
    if not has_ledger and not (isinstance(document, Mapping) and "totals" in document):
        return None, None
    try:
        document = json.loads(read_bytes(ledger).decode("utf-8")) if has_ledger else document
        totals = document["totals"]
        return (totals["episodes_dropped"], totals["steps_recorded"] - totals["steps_kept"]), document["settings"]
    except (ValueError, KeyError, TypeError) as error:
        where = ledger if has_ledger else path
        raise ReportError(f"{where}: not a conversion ledger ({error}); convert again, or remove it") from error
