"""The error of recordings that are not what their format says."""

from __future__ import annotations

from diffusion_policy.trajectory import TrajectoryError


class RecordingError(TrajectoryError):
    """A recording, or a folder of them, is not as it must be: says file, column and what to do."""
