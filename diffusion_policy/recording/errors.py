"""The error for recordings that violate their format."""

from __future__ import annotations

from diffusion_policy.trajectory import TrajectoryError


class RecordingError(TrajectoryError):
    """A recording, or a folder of them, is invalid; the message names file, column and remedy."""
