"""How much disk a run needs for its checkpoints: their real size where there are some, else what the config makes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_policy.checkpoint import CheckpointError, build_policy
from diffusion_policy.run_folder import LATEST
from diffusion_policy.run_folder.reading import RunFolder

# latest.ckpt, best.ckpt, and the one that is being written.
OTHER_CHECKPOINTS = 3
MOMENTS_OF_ADAM = 2


@dataclass(frozen=True)
class DiskNeed:
    """What the checkpoints of a run take.

    Attributes:
        size: bytes of one.
        files: that exist at a time, at most.
        there: bytes of those that exist already.
        source: where the size is known from.
    """

    size: int
    files: int
    there: int
    source: str

    @property
    def needed(self) -> int:
        """Bytes that must be free for the run to continue.

        At least one file, which is written before one is removed.
        """
        return max(self.size, self.size * self.files - self.there)

    def describe(self) -> str:
        """For a finding."""
        return f"a run keeps up to {self.files} checkpoints of {self.size / 1e6:.0f} MB ({self.source})"


def disk_need(config: DictConfig | None, run: RunFolder | None) -> DiskNeed | None:
    """Of a run that exists, else of one that the config would make; None if neither is known."""
    config = run.config if config is None and run is not None else config
    if config is None:
        return None
    sizes = {name: path.stat().st_size for name, path in run.checkpoints.items()} if run is not None else {}
    size, source = sizes.get(LATEST) or max(sizes.values(), default=0), "as those that it has"
    if not size:
        size, source = checkpoint_size(config) or 0, "weights, average and moments of the optimizer"
    if not size:
        return None
    kept = OmegaConf.select(config, "checkpoint.topk.k", default=0) or 0
    return DiskNeed(size, int(kept) + OTHER_CHECKPOINTS, sum(sizes.values()), source)


def checkpoint_size(config: DictConfig) -> int | None:
    """Bytes of a checkpoint that training this config writes; None if it describes no policy of ours."""
    try:
        with torch.device("meta"):  # a size, no memory
            policy = build_policy(config)
        averaged = OmegaConf.select(config, "training.use_ema", default=True)
    except (CheckpointError, OmegaConfBaseException):
        return None
    # Each once, whatever its names; so they are saved.
    weights = sum(_bytes(tensor) for tensor in (*policy.parameters(), *policy.buffers()))
    learning = sum(_bytes(parameter) for parameter in policy.parameters() if parameter.requires_grad)
    return weights * (2 if averaged else 1) + MOMENTS_OF_ADAM * learning


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
