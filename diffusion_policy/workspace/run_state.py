"""The state of a run besides weights and optimizer, saved to and restored from a checkpoint.

A run that is killed at any instant and resumed equals an uninterrupted one. So this holds the position in the data, the
learning-rate schedule, the EMA's step, the state of every random generator of every process, the running sums of the
epoch, and which checkpoints are the best so far. All of it is plain data that the checkpoint's restricted reader
accepts.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch

from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.batches import PROCESS, derived_seed

VERSION = 1


@dataclass
class TrainingProgress:
    """Position of a run, and sums over the current epoch.

    Attributes:
        epoch: number of the current epoch, from 0.
        batch: batches of it that are done.
        global_step: updates made.
        loss_sum: of the epoch's updates so far, each weighted with its windows.
        windows: of the epoch's updates so far.
        skipped: updates left out because their gradients were not finite.
        first_epoch_loss: mean training loss of epoch 0, for comparison.
        closing: metrics of the epoch's last update, until validation completes them.
    """

    epoch: int = 0
    batch: int = 0
    global_step: int = 0
    loss_sum: float = 0.0
    windows: int = 0
    skipped: int = 0
    first_epoch_loss: float | None = None
    closing: dict[str, Any] | None = None


@dataclass
class RunState:
    """State of a run at one instant.

    Attributes:
        progress: the position.
        ema: state of the EMA's step counter, or None.
        lr_scheduler: its state_dict.
        generators: per process, the states of its random generators.
        ranking: which checkpoints were kept and what is best so far.
        data: what the order of the data depends on: windows, batch size, seed.
        threads: number of compute threads on a CPU; None on a GPU, and in files of older programs.
        memory: the memory, per row, of a policy with memory and of its reference policy; empty for others.
    """

    progress: TrainingProgress
    lr_scheduler: dict[str, Any]
    generators: list[dict[str, Any]]
    ema: dict[str, Any] | None = None
    ranking: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Containers, numbers and tensors."""
        entries = {entry.name: getattr(self, entry.name) for entry in fields(self)} | {
            "progress": asdict(self.progress)
        }
        if not self.memory:
            del entries["memory"]
        return {"version": VERSION, **entries}

    @classmethod
    def from_plain(cls, plain: dict[str, Any], where: str) -> RunState:
        """Inverse of `to_plain`; TrainingError if it was written by a newer version."""
        entries = dict(plain)
        version = entries.pop("version", None)
        if version != VERSION:
            raise TrainingError(f"{where}: run state of version {version!r}; this program reads version {VERSION}")
        entries["progress"] = TrainingProgress(**entries["progress"])
        return cls(**entries)


def generator_states() -> dict[str, Any]:
    """States of the generators of Python, NumPy and torch (CPU and current GPU) in this process."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, [int(key) for key in np.asarray(keys)], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_generator_states(states: dict[str, Any]) -> None:
    """Inverse of `generator_states`; a GPU's state is ignored where there is none."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def seed_process(seed: int, rank: int = 0, global_step: int = 0) -> None:
    """Seed every generator of this process; processes and positions get independent ones."""
    own = seed if (rank, global_step) == (0, 0) else derived_seed(seed, PROCESS, rank, global_step)
    random.seed(own)
    np.random.seed(own % 2**32)
    torch.manual_seed(own)


def resume_generators(state: RunState, seed: int, rank: int, world_size: int) -> None:
    """Restore this process's generators; with another number of processes each starts a new stream."""
    if len(state.generators) == world_size:
        set_generator_states(state.generators[rank])
    else:
        seed_process(seed, rank, state.progress.global_step)
