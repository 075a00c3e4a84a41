"""The parts of the policy, under the names and with the numbers of the checkpoints that exist.

    images, states --> normalizer --> obs_encoder --> diffusion.transformer_for_diffusion --> action sequence

Parameter names are a contract: users' files hold 319 of them. Constraints on names are documented where they are made.
"""

from diffusion_policy.errors import WorkspaceError


class ModelError(WorkspaceError, ValueError):
    """A part of the policy was configured, loaded or fed with something it cannot take."""
