"""Datasets out of datasets: episodes left out, cut at gaps, trimmed, and laid end to end, with a ledger of it all.

The sources are read-only; the result is a dataset of its own, with hashes of what it holds and the account of where
each of its steps comes from, and of each step that it leaves out, with the reason.
"""

from diffusion_policy.errors import WorkspaceError

LEDGER = "edit"  # attribute of the dataset's root, and the suffix of the file beside it


class EditError(WorkspaceError, ValueError):
    """An edit that cannot be made as asked for."""
