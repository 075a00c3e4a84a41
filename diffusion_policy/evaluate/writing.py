"""The error of this package."""

from __future__ import annotations

from diffusion_policy.errors import WorkspaceError


class EvaluateError(WorkspaceError, ValueError):
    """An evaluation cannot be made as requested."""
