"""Makes datasets from datasets: deletes episodes, splits them at gaps, trims and joins, with a complete ledger.

The sources are only read. The result is a separate dataset with content hashes; its ledger records the origin of
each of its steps, and the reason for each step of the sources that was left out.
"""

from diffusion_policy.errors import WorkspaceError

LEDGER = "edit"  # attribute of the dataset's root, and suffix of the ledger file's name


class EditError(WorkspaceError, ValueError):
    """An edit cannot be made as requested."""
