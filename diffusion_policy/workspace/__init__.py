"""Training: a dataset and a starting point become a run folder with checkpoints, metrics and a log.

    start          where training starts, decided once, in order
    batches        which windows make up which update, as a function of seed and epoch
    optimization   parameter groups, stages, the update itself
    validation     losses and errors on held-out episodes, measured during training
    evaluator      when each metric is computed
    metrics        logs.json.txt, TensorBoard, Weights & Biases
    checkpointing  latest, best and top-k checkpoints, written in the background
    run_state      the state of a run besides weights and optimizer, saved to and restored from a checkpoint

The one training loop is in `train_diffusion_transformer_hybrid_workspace`; several GPUs, mixed precision, stages and
freezing are settings of it. Nothing imports this package: Hydra finds the workspace by the name in the config.
"""

from diffusion_policy.errors import WorkspaceError


class TrainingError(WorkspaceError):
    """A run cannot start or cannot continue. The message states what was found, what was expected and what to do."""
