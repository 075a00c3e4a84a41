"""Errors of predicted chunks against recorded ones: millimeters, degrees, joints and gripper states; pure functions.

Open loop means that the observation at every step is the recorded one, whatever was predicted before. Errors are given
per step of the chunk (later ones are harder), per phase of the task, and next to baselines that need no learning: a
policy that does not beat a baseline has learned nothing beyond it.

A layout names the numbers; with several arms, errors are given per arm and as their mean. If no
layout is given, seven numbers are a pose, and eight a pose and a gripper.

Legend of shapes: N steps, T actions of a chunk, D action dimensions, G grippers, S numbers of a measured state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.geometry import geodesic_distance
from diffusion_policy.gripper_events import CLIENT_THRESHOLD, CLOSED, gripper_events, gripper_states
from diffusion_policy.spec import ActionLayout, default_names
from diffusion_policy.spec.action_layout import Arm
from diffusion_policy.spec.rotations import from_quaternions

FloatArray = NDArray[np.float64]
Phase = Literal["approach", "grasp", "move", "release"]
PHASES: tuple[Phase, ...] = ("approach", "grasp", "move", "release")

# A grasp or release comprises the steps within this many steps of its event: half a second at the robot's 10 Hz.
PHASE_STEPS = 5
# A quaternion below this norm does not define a rotation.
SMALLEST_NORM = 1e-6
# Names of predictors; "previous action" and "mean action" are added to them.
POLICY, HOLD, COPYCAT = "policy", "hold pose", "copy the measured gripper"
JOINT_ERRORS = {"rad": "joint_rad", "deg": "joint_deg"}
"""Names of the joint error by unit; "joint" if the unit is another one or unknown."""


def layout_of_width(width: int) -> ActionLayout:
    """Returns the default layout of unnamed numbers: seven are a pose, eight a pose and a gripper."""
    return ActionLayout.of(default_names(width))


def joint_error(layout: ActionLayout) -> str:
    """Returns the name of its joint error."""
    return JOINT_ERRORS.get(layout.joint_unit, "joint")


@dataclass(frozen=True)
class ChunkErrors:
    """Errors of N chunks; NaN where nothing was recorded or predicted, or where a quaternion has norm 0.

    Attributes:
        values: (N, T) each, by name: ``position_mm`` (distance), ``rotation_deg`` (geodesic angle; q and -q are the
            same), ``gripper`` (absolute difference of the command), and for a layout with joints `joint_error` (mean
            absolute difference). Means over arms; NaN for what the layout lacks.
        arms: the errors of each arm, if there are several.
    """

    values: Mapping[str, FloatArray]
    arms: Mapping[str, ChunkErrors] = field(default_factory=dict)

    @property
    def position_mm(self) -> FloatArray:
        """(N, T)."""
        return self.values["position_mm"]

    @property
    def rotation_deg(self) -> FloatArray:
        """(N, T)."""
        return self.values["rotation_deg"]

    @property
    def gripper(self) -> FloatArray:
        """(N, T)."""
        return self.values["gripper"]

    @classmethod
    def joined(cls, parts: Sequence[ChunkErrors]) -> ChunkErrors:
        """Concatenates errors of one layout."""
        values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
        return cls(values, {arm: cls.joined([part.arms[arm] for part in parts]) for arm in parts[0].arms})

    def select(self, rows: NDArray[np.bool_]) -> ChunkErrors:
        """Returns the errors of the chunks selected by (N,) bool."""
        values = {name: array[rows] for name, array in self.values.items()}
        return ChunkErrors(values, {arm: errors.select(rows) for arm, errors in self.arms.items()})

    def means(self) -> dict[str, float | None]:
        """Returns means over all recorded entries; None without one."""
        return {name: _mean(values) for name, values in self.values.items()}

    def per_horizon_step(self) -> dict[str, list[float | None]]:
        """Returns means at each of the T steps of the chunk."""
        return {name: [_mean(column) for column in values.T] for name, values in self.values.items()}


def score_chunks(
    predicted: ArrayLike, recorded: ArrayLike, inside: ArrayLike | None = None, layout: ActionLayout | None = None
) -> ChunkErrors:
    """Compares chunks (N, T, D) with the recorded ones.

    Args:
        predicted: predicted actions; NaN where a baseline predicts nothing.
        recorded: recorded absolute actions; quaternions need not have norm 1.
        inside: (N, T) which recorded actions are inside their episode; all by default.
        layout: layout of the D numbers; inferred from D if not given.

    Raises:
        ValueError: shapes differ, or D does not fit the layout.
    """
    ours, theirs = np.asarray(predicted, dtype=np.float64), np.asarray(recorded, dtype=np.float64)
    widths = (7, 8) if layout is None else (len(layout.names),)
    if ours.shape != theirs.shape or ours.ndim != 3 or ours.shape[-1] not in widths:
        expected = " or ".join(map(str, widths))
        text = f"predicted chunks have shape {ours.shape}, recorded {theirs.shape}"
        raise ValueError(f"{text}; expected (N, T, {expected})")
    layout = layout or layout_of_width(ours.shape[-1])
    counts = np.ones(ours.shape[:2], dtype=bool) if inside is None else np.asarray(inside, dtype=bool)
    arms = {arm.name: _errors_of_arm(layout, arm, ours, theirs, counts) for arm in layout.arms}
    lacking = np.full(counts.shape, np.nan)
    known = ("position_mm", "rotation_deg", "gripper", *([joint_error(layout)] if layout.has_joints else []))
    values = {}
    for name in known:
        parts = [errors[name] for errors in arms.values() if name in errors]
        values[name] = np.mean(parts, axis=0) if parts else lacking
    each = {arm: ChunkErrors(errors) for arm, errors in arms.items()} if len(arms) > 1 else {}
    return ChunkErrors(values, each)


def _errors_of_arm(
    layout: ActionLayout, arm: Arm, predicted: FloatArray, recorded: FloatArray, counts: NDArray[np.bool_]
) -> dict[str, FloatArray]:
    """Returns errors (N, T) of what the arm has, by name; partially known motions have none."""
    columns = [*arm.position, *arm.rotation, *arm.joints, *arm.gripper]
    units = {layout.names[column]: layout.unit(column) for column in columns}
    part = ActionLayout.of(units, units)
    ours, theirs = predicted[..., columns], recorded[..., columns]
    known = counts & np.isfinite(ours[..., list(part.motion_columns)]).all(axis=-1)
    result = {}

    def where(rows: NDArray[np.bool_], errors: FloatArray) -> FloatArray:
        values = np.full(counts.shape, np.nan)
        values[rows] = errors
        return values

    if arm.position:
        (offsets,) = np.moveaxis(part.positions(ours[known]) - part.positions(theirs[known]), -2, 0)
        result["position_mm"] = where(known, np.linalg.norm(offsets, axis=-1) * 1000)
    if arm.rotation:
        (turns,), (wanted,) = (np.moveaxis(part.rotations(values), -2, 0) for values in (ours, theirs))
        turned = known & _is_rotation(turns) & _is_rotation(wanted)
        result["rotation_deg"] = where(turned, np.degrees(geodesic_distance(turns[turned], wanted[turned])))
    if arm.joints:
        distance = np.abs(part.joints(ours[known]) - part.joints(theirs[known]))
        result[joint_error(layout)] = where(known, distance.mean(axis=-1))
    if arm.gripper:
        (offset,) = np.moveaxis(part.grippers(ours[counts]) - part.grippers(theirs[counts]), -1, 0)
        result["gripper"] = where(counts, np.abs(offset))
    return result


def _is_rotation(quaternions: FloatArray) -> NDArray[np.bool_]:
    return np.asarray(np.linalg.norm(np.nan_to_num(quaternions), axis=-1) > SMALLEST_NORM)


def phases(recorded_gripper: ArrayLike, margin: int = PHASE_STEPS) -> NDArray[np.str_]:
    """Returns the phase of each of N steps of an episode, from the events of its recorded gripper (N,) or (N, G).

    Within ``margin`` steps of a closing it is grasp, of an opening release; otherwise move while one is closed,
    approach while all are open. If both are near, the nearer event counts.
    """
    values = np.asarray(recorded_gripper, dtype=np.float64)
    grippers = values.reshape(len(values), -1).T
    closed = np.array([gripper_states(gripper) == CLOSED for gripper in grippers])
    labels = np.where(closed.any(axis=0), "move", "approach").astype("U8")
    nearest = np.full(len(values), margin + 1)
    for step, kind in (event for gripper in grippers for event in gripper_events(gripper)):
        distance = np.abs(np.arange(len(values)) - step)
        closer = (distance <= margin) & (distance < nearest)
        labels[closer] = "grasp" if kind == "close" else "release"
        nearest[closer] = distance[closer]
    return labels


def transition_error(predicted: ArrayLike, recorded: ArrayLike, inside: ArrayLike | None = None) -> float | None:
    """Returns the share of wrong gripper states in chunks (N, T) where the recorded gripper changes; None without any.

    In other chunks every copycat is right; these are the ones that need a decision. The threshold of states is
    CLIENT_THRESHOLD.
    """
    wants = np.asarray(recorded, dtype=np.float64) > CLIENT_THRESHOLD
    says = np.asarray(predicted, dtype=np.float64)
    counts = np.ones(wants.shape, dtype=bool) if inside is None else np.asarray(inside, dtype=bool)
    changes = (wants & counts).any(axis=1) & (~wants & counts).any(axis=1)
    rows = counts & changes[:, None] & np.isfinite(says)
    return float(((says > CLIENT_THRESHOLD) != wants)[rows].mean()) if rows.any() else None


def measured_as_action(measured: FloatArray, state: ActionLayout, action: ActionLayout) -> FloatArray:
    """Converts measured states (N, S) to the actions (N, D) that would keep them; NaN for what is not measured.

    Rotations may be measured and commanded in different representations.
    """
    rotations = {arm.name: arm for arm in action.arms if arm.representation is not None}
    both = [arm.name for arm in state.arms if arm.representation is not None and arm.name in rotations]
    result = np.full((len(measured), len(action.names)), np.nan)
    for column, name in enumerate(action.names):
        if name in state.names:
            result[:, column] = measured[:, state.names.index(name)]
    turns = state.rotations(measured)
    for arm in both:
        kind, columns = rotations[arm].representation, list(rotations[arm].rotation)
        if kind is not None and np.isnan(result[:, columns]).any():
            result[:, columns] = from_quaternions(turns[:, state.labels("rotation").index(arm)], kind)
    return result


def baselines(
    recorded: FloatArray,
    measured: FloatArray,
    mean_action: FloatArray,
    layout: ActionLayout | None = None,
    state: ActionLayout | None = None,
) -> dict[str, FloatArray]:
    """Returns the predictions that need no learning, as chunks (N, T, D); NaN where a baseline predicts nothing.

    Args:
        recorded: (N, T, D) chunks of consecutive steps of one episode.
        measured: (N, S) state at each step.
        mean_action: (D,) mean over episodes that are not evaluated.
        layout: layout of the D numbers; inferred from D if not given.
        state: layout of the S numbers, likewise.
    """
    n_steps, n_actions, width = recorded.shape
    layout, state = layout or layout_of_width(width), state or layout_of_width(measured.shape[1])
    kept = measured_as_action(measured, state, layout)
    held = np.full(recorded.shape, np.nan)
    held[..., list(layout.motion_columns)] = kept[:, None, list(layout.motion_columns)]
    previous = np.full(recorded.shape, np.nan)
    previous[1:] = recorded[:-1, :1]
    result = {
        HOLD: held,
        "previous action": previous,
        "mean action": np.broadcast_to(mean_action, (n_steps, n_actions, width)).copy(),
    }
    if layout.has_gripper and np.isfinite(layout.grippers(kept)).any():
        copied = np.full(recorded.shape, np.nan)
        copied[..., list(layout.gripper_columns)] = layout.grippers(kept)[:, None]
        result[COPYCAT] = copied
    return result


def sample_spread(samples: ArrayLike, layout: ActionLayout | None = None) -> dict[str, Any]:
    """Returns the spread of S samples (S, N, T, D) of the same chunks: the policy's own uncertainty.

    Root mean square distance of positions from their mean in mm, and standard deviation of the gripper and of joints,
    per horizon step. None for a single sample, and for what the layout lacks.
    """
    drawn = np.asarray(samples, dtype=np.float64)
    layout = layout or layout_of_width(drawn.shape[-1])
    result: dict[str, Any] = {"position_mm": None, "gripper": None}
    if len(drawn) < 2:
        return result
    offsets = drawn - drawn.mean(axis=0)
    if layout.labels("position"):
        squares = (layout.positions(offsets) ** 2).sum(axis=-1)
        result["position_mm"] = (np.sqrt(squares.mean(axis=(0, 1)).mean(axis=-1)) * 1000).tolist()
    if layout.has_gripper:
        result["gripper"] = np.sqrt((layout.grippers(offsets) ** 2).mean(axis=(0, 1)).mean(axis=-1)).tolist()
    if layout.has_joints:
        deviation = np.sqrt((layout.joints(offsets) ** 2).mean(axis=(0, 1)).mean(axis=-1))
        result[joint_error(layout)] = deviation.tolist()
    return result


def _mean(values: FloatArray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None
