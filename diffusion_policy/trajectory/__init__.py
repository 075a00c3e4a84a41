"""One recorded episode as written by the robot's recorder: opened and checked, never modified.

    episode_0007/
      data.pkl      dict of NumPy arrays with N entries each (RECORDED)
      meta.json     n_steps, episode_id, ...: checked against the arrays where it exists
      images/       frame_0000.jpg ...; "Images/" in some sets; images/<camera>/frame_0000.jpg with several cameras

Faults that would corrupt training unnoticed are errors: rotation vectors instead of quaternions, NaN, a gripper that
is neither 0 nor 1, a step whose frame is missing, a broken link. Harmless irregularities (frames without a step, a
frame of several steps) become notes. `data.pkl` is a pickle and is read by `safe_pickle`, which runs no code from it.
Nothing is written to an episode's folder, which may be in an object store ("s3://bucket/recordings").
"""

from diffusion_policy.trajectory.arrays import GRIPPERS, RECORDED
from diffusion_policy.trajectory.errors import TrajectoryError
from diffusion_policy.trajectory.frames import NO_IMAGE, SINGLE_CAMERA
from diffusion_policy.trajectory.opening import (
    OtherLayout,
    Trajectory,
    find_trajectories,
    open_other_layout,
    open_trajectory,
)

__all__ = [
    "GRIPPERS",
    "NO_IMAGE",
    "RECORDED",
    "SINGLE_CAMERA",
    "OtherLayout",
    "Trajectory",
    "TrajectoryError",
    "find_trajectories",
    "open_other_layout",
    "open_trajectory",
]
