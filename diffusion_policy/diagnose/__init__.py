"""What is found of data, configs, checkpoints, runs and logs: evidence, findings about it, and the doctor.

`*_evidence` looks at one subject and keeps numbers; `*_findings` are pure functions from evidence to findings.
"""

from diffusion_policy.errors import WorkspaceError


class ReportError(WorkspaceError, ValueError):
    """An input of a report does not exist, or is not what it was given as."""
