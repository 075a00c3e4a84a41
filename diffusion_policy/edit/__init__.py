"""Makes datasets from datasets: episodes are deleted, split at gaps, trimmed and joined, with a complete ledger.

The sources are only read. The result is a separate dataset with hashes of its content; its ledger records the origin of
each of its steps, and the reason for each step of the sources that was left out.
"""

from diffusion_policy.errors import WorkspaceError

LEDGER = "edit"  # attribute of the dataset's root, and suffix of the ledger file's name


class EditError(WorkspaceError, ValueError):
    """An edit that cannot be made as asked for."""
