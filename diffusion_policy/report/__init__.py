"""What is known of a fine-tune, told to people: findings with their remedies, one page, and runs beside each other."""

from diffusion_policy.spec import WorkspaceError


class ReportError(WorkspaceError, ValueError):
    """Something to be reported on is not there, or is not what it was said to be."""
