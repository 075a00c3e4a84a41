"""The one error of this package."""

from __future__ import annotations

from diffusion_policy.errors import WorkspaceError


class TrajectoryError(WorkspaceError):
    """An episode that cannot be trusted: says which, what was found, what was expected."""
