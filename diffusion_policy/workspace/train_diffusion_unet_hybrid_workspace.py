"""The name under which configs and checkpoints with the UNet know the workspace; there is one training loop."""

from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace as TrainDiffusionUnetHybridWorkspace,
)

__all__ = ["TrainDiffusionUnetHybridWorkspace"]
