"""The one error of this package."""

from __future__ import annotations

from diffusion_policy.errors import WorkspaceError


class ExportError(WorkspaceError):
    """What cannot be exported: says why and what to do."""
