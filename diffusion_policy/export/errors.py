"""The one error of this package."""

from __future__ import annotations

from diffusion_policy.errors import WorkspaceError


class ExportError(WorkspaceError):
    """Something cannot be exported; the message gives the reason and the remedy."""
