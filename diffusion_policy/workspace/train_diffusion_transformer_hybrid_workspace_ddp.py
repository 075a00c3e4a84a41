"""The name under which configs and checkpoints of multi-GPU runs know the workspace; there is one training loop."""

from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace as TrainDiffusionTransformerHybridWorkspaceDDP,
)

__all__ = ["TrainDiffusionTransformerHybridWorkspaceDDP"]
