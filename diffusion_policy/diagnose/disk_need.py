"""How much disk a run needs for its checkpoints: from existing ones, otherwise estimated from the config."""

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
    """The disk space that a run's checkpoints take.

    Attributes:
        size: bytes of one checkpoint.
        files: largest number that exist at a time.
        there: bytes of those that already exist.
        source: where the size comes from.
    """

    size: int
    files: int
    there: int
    source: str

    @property
    def needed(self) -> int:
        """Bytes that must be free for the run to continue.

        At least one file: a new one is written before an old one is removed.
        """
        return max(self.size, self.size * self.files - self.there)

    def describe(self) -> str:
        """For a finding."""
        return f"a run keeps up to {self.files} checkpoints of {self.size / 1e6:.0f} MB ({self.source})"


def disk_need(config: DictConfig | None, run: RunFolder | None) -> DiskNeed | None:
    """Returns the need of an existing run, otherwise of the config's future run; None if neither is known."""
    config = run.config if config is None and run is not None else config
    if config is None:
        return None
    sizes = {name: path.stat().st_size for name, path in run.checkpoints.items()} if run is not None else {}
    size, source = sizes.get(LATEST) or max(sizes.values(), default=0), "as its existing ones"
    if not size:
        size, source = checkpoint_size(config) or 0, "weights, average and optimizer moments"
    if not size:
        return None
    kept = OmegaConf.select(config, "checkpoint.topk.k", default=0) or 0
    return DiskNeed(size, int(kept) + OTHER_CHECKPOINTS, sum(sizes.values()), source)


def checkpoint_size(config: DictConfig) -> int | None:
    """Returns the bytes of a checkpoint that this config's training writes; None if its policy is not one of ours."""
    try:
        policy = build_policy(config, values=False)
        averaged = OmegaConf.select(config, "training.use_ema", default=True)
    except (CheckpointError, OmegaConfBaseException):
        return None
    # Each tensor counts once, under however many names, as it is saved.
    weights = sum(_bytes(tensor) for tensor in (*policy.parameters(), *policy.buffers()))
    learning = sum(_bytes(parameter) for parameter in policy.parameters() if parameter.requires_grad)
    return weights * (2 if averaged else 1) + MOMENTS_OF_ADAM * learning


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
