"""The one error of this package."""

from __future__ import annotations

from diffusion_policy.errors import WorkspaceError


class TrajectoryError(WorkspaceError):
    """An episode that is not valid; the message states which, what was found and what was expected."""
