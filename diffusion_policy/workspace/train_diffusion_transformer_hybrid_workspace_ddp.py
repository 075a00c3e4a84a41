"""The workspace's name in configs and checkpoints of multi-GPU runs; there is only one training loop."""

from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace as TrainDiffusionTransformerHybridWorkspaceDDP,
)

__all__ = ["TrainDiffusionTransformerHybridWorkspaceDDP"]
