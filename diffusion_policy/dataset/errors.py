"""The one error of this package."""

from __future__ import annotations

from diffusion_policy.errors import WorkspaceError


class DatasetError(WorkspaceError):
    """A dataset is missing, damaged, or not what was requested."""
