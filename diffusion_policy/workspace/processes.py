"""The device a run trains on, and the processes it shares the work with (one, unless started by torchrun)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diffusion_policy.workspace import TrainingError


@dataclass(frozen=True)
class Processes:
    """This process among the others.

    Attributes:
        device: this process's.
        rank: its number; 0 writes files.
        world_size: how many there are.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """A plain value of every process, by rank."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def from_first(self, value: Any) -> Any:
        """The value that process 0 has."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


def find_device(name: str, local_rank: int = 0, world_size: int = 1) -> torch.device:
    """The device of that name; with several processes, each takes the GPU of its local rank.

    Raises:
        TrainingError: there is no such device on this machine.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainingError(f"training.device={name}: no such kind of device; expected cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda" or not torch.cuda.is_available():
        raise TrainingError(
            f"training.device={name}: this machine has no such device (torch {torch.__version__} sees no CUDA GPU); "
            "set training.device=cpu"
        )
    index = local_rank if world_size > 1 else device.index or 0
    if index >= torch.cuda.device_count():
        raise TrainingError(f"training.device={name}: GPU {index} of {torch.cuda.device_count()}, counted from 0")
    return torch.device("cuda", index)


@contextmanager
def join_processes(device_name: str) -> Iterator[Processes]:
    """Find the other processes of this run, if torchrun started it, and leave them at the end."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    device = find_device(device_name, local_rank, world_size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # all batches except an epoch's last have the same shape
    if world_size == 1:
        yield Processes(device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(device, rank, world_size)
    finally:
        dist.destroy_process_group()
