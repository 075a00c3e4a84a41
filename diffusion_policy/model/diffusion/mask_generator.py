"""Which entries of a trajectory are known before denoising starts (policies that observe by inpainting)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_policy.model.placed_module import PlacedModule


class LowdimMaskGenerator(PlacedModule):
    """Masks the observed features of the first steps of (B, T, action_dim + obs_dim), actions first.

    Args:
        action_dim: width of an action; never known.
        obs_dim: width of the features in the trajectory; 0 when observations enter as condition.
        max_n_obs_steps: steps that are observed.
    """

    def __init__(self, action_dim: int, obs_dim: int, max_n_obs_steps: int = 2) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.obs_dim = obs_dim
        self.max_n_obs_steps = max_n_obs_steps

    def forward(self, shape: Sequence[int]) -> Tensor:
        """Boolean mask of that shape, True where the value is known."""
        assert shape[-1] == self.action_dim + self.obs_dim, f"trajectory of width {shape[-1]}"
        mask = torch.zeros(*shape, dtype=torch.bool, device=self.device)
        mask[:, : self.max_n_obs_steps, self.action_dim :] = True
        return mask
