"""One process of several: trains, then prints digests of its own weights, their average and the optimiser's moments."""

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

import tiny_run
import torch

from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """Of all their bits."""
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(tensor.detach().contiguous().numpy().tobytes())
    return whole.hexdigest()


if __name__ == "__main__":
    dataset, folder, *overrides = sys.argv[1:]
    run = TrainDiffusionTransformerHybridWorkspace(tiny_run.settings(Path(dataset), *overrides), Path(folder))
    run.run()
    moments = [state[name] for state in run._updates.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    sys.stdout.write(" ".join(map(digest, (run.model.parameters(), run.ema_model.parameters(), moments))) + "\n")
