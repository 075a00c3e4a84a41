"""The workspace's name in configs and checkpoints with the UNet; there is only one training loop."""

from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace as TrainDiffusionUnetHybridWorkspace,
)

__all__ = ["TrainDiffusionUnetHybridWorkspace"]
