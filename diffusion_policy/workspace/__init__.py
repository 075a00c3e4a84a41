"""Training: a dataset and a starting point become a run folder with checkpoints, metrics and a log.

    start          where training starts, decided once, in order
    batches        which windows make up which update, as a function of seed and epoch
    optimization   parameter groups, stages, the update itself
    validation     what is measured while training
    metrics        logs.json.txt, TensorBoard, Weights & Biases
    checkpointing  latest, best, top k; written beside, in the background
    run_state      everything that evolves, in and out of a checkpoint

The one training loop is in `train_diffusion_transformer_hybrid_workspace`; several GPUs, mixed precision, stages and
freezing are settings of it. Nothing imports this room: Hydra finds the workspace by the name in the config.
"""

from diffusion_policy.errors import WorkspaceError


class TrainingError(WorkspaceError):
    """A run that cannot start or cannot go on; says what was found, what was expected and what to do."""
