"""Findings about data, configs, checkpoints, runs and logs: the evidence, its findings, and the doctor.

`*_evidence` reads one subject into numbers; `*_findings` holds pure functions from evidence to findings.
"""

from diffusion_policy.errors import WorkspaceError


class ReportError(WorkspaceError, ValueError):
    """An input of a report does not exist, or is not of the expected kind."""
