"""The parts of the policy, with the parameter names and outputs of existing checkpoints.

    images, states --> normalizer --> obs_encoder --> diffusion.transformer_for_diffusion --> action sequence

Parameter names are a contract: users' files hold 319 of them. Constraints on names are documented where they arise.
"""

from diffusion_policy.errors import WorkspaceError


class ModelError(WorkspaceError, ValueError):
    """A part of the policy was configured, loaded or called with something it cannot handle."""
