"""One recorded episode, as the robot's recorder leaves it: opened, checked, read-only.

    episode_0007/
      data.pkl      dict of NumPy arrays with N entries each (RECORDED)
      meta.json     n_steps, episode_id, ...: checked against the arrays where it is there
      images/       frame_0000.jpg ...; "Images/" in some sets; images/<camera>/frame_0000.jpg with several cameras

Everything that training would silently learn from is refused here with one sentence: rotation vectors in place of
quaternions, NaN, a gripper that is neither 0 nor 1, a step whose frame is not there, a link that leads nowhere. What is
merely odd (frames that no step shows, a step shown twice) becomes a note. `data.pkl` is a pickle and goes through
`safe_pickle`: nothing in it is run. Nothing is ever written to an episode's folder, which may lie in an object store
("s3://bucket/recordings").
"""

from diffusion_policy.trajectory.arrays import GRIPPERS, RECORDED
from diffusion_policy.trajectory.errors import TrajectoryError
from diffusion_policy.trajectory.frames import NO_IMAGE, SINGLE_CAMERA
from diffusion_policy.trajectory.opening import Trajectory, find_trajectories, open_trajectory

__all__ = [
    "GRIPPERS",
    "NO_IMAGE",
    "RECORDED",
    "SINGLE_CAMERA",
    "Trajectory",
    "TrajectoryError",
    "find_trajectories",
    "open_trajectory",
]
