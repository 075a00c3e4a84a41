"""Errors of predicted chunks against recorded ones, in millimetres, degrees and gripper states; pure functions.

Open loop means: the observation is the recorded one at every step, whatever was predicted before. Errors are shown per
step of the chunk (far ones are harder), per phase of the task, and beside baselines that need no learning: a policy
that does not beat them has learned nothing that the baseline does not know.

Legend of shapes: N steps, T actions of a chunk, D action dimensions (7: pose, 8: pose + gripper).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_policy.geometry import geodesic_distance
from diffusion_policy.gripper_events import CLOSED, gripper_events, gripper_states
from diffusion_policy.spec import POSE_GRIPPER

FloatArray = NDArray[np.float64]
Phase = Literal["approach", "grasp", "move", "release"]
PHASES: tuple[Phase, ...] = ("approach", "grasp", "move", "release")

# A grasp or a release is what happens within so many steps of its event: half a second at the robot's 10 Hz.
PHASE_STEPS = 5
# The robot's client opens for commands above this.
CLIENT_THRESHOLD = 0.5
# A quaternion below this norm says nothing of a rotation.
SMALLEST_NORM = 1e-6
# Names of what is compared; "previous action" and "mean action" stand beside them.
POLICY, HOLD, COPYCAT = "policy", "hold pose", "copy the measured gripper"


@dataclass(frozen=True)
class ChunkErrors:
    """Errors of N chunks; NaN where nothing was recorded or predicted, or a quaternion of norm 0 is no rotation.

    Attributes:
        position_mm: (N, T) distance.
        rotation_deg: (N, T) geodesic angle; q and -q are the same.
        gripper: (N, T) absolute difference of the gripper command, all NaN for a pose without one.
    """

    position_mm: FloatArray
    rotation_deg: FloatArray
    gripper: FloatArray

    def select(self, rows: NDArray[np.bool_]) -> ChunkErrors:
        """The errors of some of the chunks, (N,) bool."""
        return ChunkErrors(self.position_mm[rows], self.rotation_deg[rows], self.gripper[rows])

    def means(self) -> dict[str, float | None]:
        """Mean over all recorded entries; None without one."""
        return {name: _mean(values) for name, values in self._named()}

    def per_horizon_step(self) -> dict[str, list[float | None]]:
        """Mean at each of the T steps of the chunk."""
        return {name: [_mean(column) for column in values.T] for name, values in self._named()}

    def _named(self) -> tuple[tuple[str, FloatArray], ...]:
        return ("position_mm", self.position_mm), ("rotation_deg", self.rotation_deg), ("gripper", self.gripper)


def score_chunks(predicted: ArrayLike, recorded: ArrayLike, inside: ArrayLike | None = None) -> ChunkErrors:
    """Compare chunks (N, T, D) with what was recorded.

    Args:
        predicted: NaN where a baseline says nothing.
        recorded: absolute poses; quaternions need not have norm 1.
        inside: (N, T) which recorded actions lie inside their episode; all by default.

    Raises:
        ValueError: shapes differ, or D is not a pose's.
    """
    ours, theirs = np.asarray(predicted, dtype=np.float64), np.asarray(recorded, dtype=np.float64)
    if ours.shape != theirs.shape or ours.ndim != 3 or ours.shape[-1] not in (7, 8):
        raise ValueError(f"predicted chunks have shape {ours.shape}, recorded {theirs.shape}; expected (N, T, 7 or 8)")
    counts = np.ones(ours.shape[:2], dtype=bool) if inside is None else np.asarray(inside, dtype=bool)
    known = counts & np.isfinite(ours[..., :7]).all(axis=-1)
    position, rotation, gripper = (np.full(counts.shape, np.nan) for _ in range(3))
    position[known] = np.linalg.norm(ours[known][:, :3] - theirs[known][:, :3], axis=-1) * 1000
    turned = known & _is_rotation(ours[..., 3:7]) & _is_rotation(theirs[..., 3:7])
    rotation[turned] = np.degrees(geodesic_distance(ours[turned][:, 3:7], theirs[turned][:, 3:7]))
    if ours.shape[-1] == len(POSE_GRIPPER):
        gripper[counts] = np.abs(ours[counts][:, -1] - theirs[counts][:, -1])
    return ChunkErrors(position, rotation, gripper)


def _is_rotation(quaternions: FloatArray) -> NDArray[np.bool_]:
    return np.asarray(np.linalg.norm(np.nan_to_num(quaternions), axis=-1) > SMALLEST_NORM)


def phases(recorded_gripper: ArrayLike, margin: int = PHASE_STEPS) -> NDArray[np.str_]:
    """Phase of each of N steps of an episode, from the events of its recorded gripper.

    Within ``margin`` steps of a closing: grasp, of an opening: release; otherwise move while closed and approach while
    open. Where both are near, the nearer event counts.
    """
    values = np.asarray(recorded_gripper, dtype=np.float64)
    labels = np.where(gripper_states(values) == CLOSED, "move", "approach").astype("U8")
    nearest = np.full(len(values), margin + 1)
    for step, kind in gripper_events(values):
        distance = np.abs(np.arange(len(values)) - step)
        closer = (distance <= margin) & (distance < nearest)
        labels[closer] = "grasp" if kind == "close" else "release"
        nearest[closer] = distance[closer]
    return labels


def transition_error(predicted: ArrayLike, recorded: ArrayLike, inside: ArrayLike | None = None) -> float | None:
    """Share of wrong gripper states in chunks (N, T) during which the recorded gripper changes; None without such.

    Elsewhere every copycat is right: these are the chunks that need a decision. States are told at CLIENT_THRESHOLD.
    """
    wants = np.asarray(recorded, dtype=np.float64) > CLIENT_THRESHOLD
    says = np.asarray(predicted, dtype=np.float64)
    counts = np.ones(wants.shape, dtype=bool) if inside is None else np.asarray(inside, dtype=bool)
    changes = (wants & counts).any(axis=1) & (~wants & counts).any(axis=1)
    rows = counts & changes[:, None] & np.isfinite(says)
    return float(((says > CLIENT_THRESHOLD) != wants)[rows].mean()) if rows.any() else None


def baselines(recorded: FloatArray, measured: FloatArray, mean_action: FloatArray) -> dict[str, FloatArray]:
    """What needs no learning, as chunks (N, T, D); NaN in what a baseline says nothing about.

    Args:
        recorded: (N, T, D) chunks of consecutive steps of one episode.
        measured: (N, 8) pose and gripper at each step.
        mean_action: (D,) over episodes that are not evaluated.
    """
    n_steps, n_actions, width = recorded.shape
    held = np.full(recorded.shape, np.nan)
    held[..., :7] = measured[:, None, :7]
    previous = np.full(recorded.shape, np.nan)
    previous[1:] = recorded[:-1, :1]
    found = {
        HOLD: held,
        "previous action": previous,
        "mean action": np.broadcast_to(mean_action, (n_steps, n_actions, width)).copy(),
    }
    if width == len(POSE_GRIPPER):
        copied = np.full(recorded.shape, np.nan)
        copied[..., -1] = measured[:, None, -1]
        found[COPYCAT] = copied
    return found


def sample_spread(samples: ArrayLike) -> dict[str, Any]:
    """How far S samples (S, N, T, D) of the same chunks lie apart: the policy's own uncertainty.

    Root mean square distance of positions from their mean in mm, and standard deviation of the gripper; per horizon
    step. None for a single sample.
    """
    drawn = np.asarray(samples, dtype=np.float64)
    if len(drawn) < 2:
        return {"position_mm": None, "gripper": None}
    offsets = drawn - drawn.mean(axis=0)
    position = np.sqrt((offsets[..., :3] ** 2).sum(axis=-1).mean(axis=(0, 1))) * 1000
    gripper = np.sqrt((offsets[..., -1] ** 2).mean(axis=(0, 1))) if drawn.shape[-1] == len(POSE_GRIPPER) else None
    return {"position_mm": position.tolist(), "gripper": None if gripper is None else gripper.tolist()}


def _mean(values: FloatArray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None
