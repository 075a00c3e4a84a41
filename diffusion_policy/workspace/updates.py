"""One update: the loss of one or several batches, its gradients, the step, the average; and the watch over them."""

from __future__ import annotations

import contextlib
import gc
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from diffusion_policy.host_memory import keep_freed_memory
from diffusion_policy.model.cpu.arithmetic import multiplies_bf16, use_fast_layers
from diffusion_policy.model.diffusion.ema_model import EMAModel
from diffusion_policy.storage import whole_file
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.batches import Batch
from diffusion_policy.workspace.losses import BatchLoss, Drawing
from diffusion_policy.workspace.optimization import Stages, step_if_finite
from diffusion_policy.workspace.processes import Processes

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "bf16", "float32")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type that matrix products run in, or None for the weights' own.

    Raises:
        TrainingError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise TrainingError(f"training.precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and multiplies_bf16(device)) else None


@dataclass(frozen=True)
class Outcome:
    """What one update did; numbers stay on the device until they are looked at.

    Attributes:
        global_step: updates made, this one included.
        loss: mean over this process's share of the windows, times that share; sums to the mean over processes.
        norm: of the gradients; not finite if nothing was updated.
        windows: that took part, of all processes.
        lr: learning rate of the first parameter group.
    """

    global_step: int
    loss: Tensor
    norm: Tensor
    windows: list[int]
    lr: float


class Updates:
    """Makes updates.

    Args:
        loss: the live policy's.
        optimizer, schedule, stages: of its parameters.
        ema: the averaged copy's, or None.
        drawing: of the loss's random numbers.
        settings: `training` of the config.
        processes: that share the work.
    """

    def __init__(
        self,
        loss: BatchLoss,
        optimizer: torch.optim.Optimizer,
        schedule: LambdaLR,
        stages: Stages,
        ema: EMAModel | None,
        drawing: Drawing,
        settings: DictConfig,
        processes: Processes,
    ):
        self.policy, self.optimizer, self.schedule, self.stages = loss.policy, optimizer, schedule, stages
        self.ema, self.drawing, self.processes = ema, drawing, processes
        self._dtype = autocast_dtype(settings.precision, processes.device)
        if processes.device.type == "cpu":
            keep_freed_memory()
            if self._dtype is None and settings.precision == "auto" and not settings.compile:
                reason = use_fast_layers(self.policy)
                if ema is not None:
                    use_fast_layers(ema.averaged_model)
                if reason is not None:
                    logger.warning("training.precision auto: half as fast without the compiled kernels: %s", reason)
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        module: nn.Module = loss
        if settings.compile:
            module.compile()
        if processes.world_size > 1:
            # Of 1x1 convolutions; strides of dimensions of size one mean nothing.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            module = DistributedDataParallel(module, gradient_as_bucket_view=True)
        self._loss, self._plain_loss = module, loss

    def release(self) -> None:
        """Let go of what exchanges gradients, before the processes part.

        Whoever drops the last reference to gloo's process group waits for its threads; Python's own clean-up does so
        with the interpreter's lock in hand, which they may need.
        """
        if self._loss is not self._plain_loss:
            self._loss = self._plain_loss
            gc.collect()

    def make(self, batches: Sequence[Batch], epoch: int, global_step: int) -> Outcome:
        """One update on the windows of these batches, each counting the same.

        Args:
            batches: one, or as many as gradients are accumulated over.
            epoch: of the batches, for the draw.
            global_step: updates made before.
        """
        if self.stages.enter(global_step):
            logger.info("update %d: training %s parameters", global_step, " and ".join(sorted(self.stages.learn)))
        n_windows = sum(len(batch.indices) for batch in batches)
        total = torch.zeros((), device=self.processes.device)
        for number, batch in enumerate(batches, start=1):
            part = batch.weight * len(batch.indices) / n_windows
            loss = self._backward(batch, epoch, part, last=number == len(batches))
            total += loss.detach() * part
        self.stages.drop_gradients()
        norm = step_if_finite(self.optimizer, self._parameters)
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.schedule.step()
        if self.ema is not None:
            self.ema.step(self.policy)
        windows = [index for batch in batches for index in batch.indices]
        return Outcome(global_step + 1, total, norm, windows, lr)

    def _backward(self, batch: Batch, epoch: int, part: float, *, last: bool) -> Tensor:
        draw = self.drawing.draw(batch, epoch, batch.number)
        waiting = isinstance(self._loss, DistributedDataParallel) and not last
        device = self.processes.device.type
        with self._loss.no_sync() if waiting else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(device, dtype=self._dtype, enabled=self._dtype is not None):
                loss: Tensor = self._loss(batch.data, draw.sampled, draw.hidden, draw.low_dim)
            # DDP takes the mean over processes of what are parts of one sum.
            (loss * (part * self.processes.world_size)).backward()
        return loss


@dataclass(frozen=True)
class Seen:
    """An outcome once it was looked at: plain numbers."""

    outcome: Outcome
    loss: float
    norm: float

    @property
    def finite(self) -> bool:
        """Whether the update was made."""
        return bool(torch.isfinite(torch.tensor([self.loss, self.norm])).all())


@dataclass
class Watch:
    """Looks at losses and gradient norms every few updates, all at once, since each look waits for the device.

    Attributes:
        every: updates between looks.
        allowed: updates that may be skipped because of NaN or infinity.
        processes: that share the work.
        skipped: updates skipped so far.
    """

    every: int
    allowed: int
    processes: Processes
    skipped: int = 0
    _waiting: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> list[Seen]:
        """Remember an outcome; the outcomes since the last look, if it is time for one."""
        self._waiting.append(outcome)
        return self.look() if len(self._waiting) >= self.every else []

    def look(self) -> list[Seen]:
        """The outcomes since the last look."""
        if not self._waiting:
            return []
        losses = self.processes.sum(torch.stack([outcome.loss for outcome in self._waiting])).tolist()
        norms = torch.stack([outcome.norm for outcome in self._waiting]).tolist()
        seen = [Seen(*entry) for entry in zip(self._waiting, losses, norms, strict=True)]
        self._waiting = []
        return seen

    def judge(self, seen: Seen, episodes: list[int]) -> bool:
        """Whether the run must stop: the update was not finite and no more may be skipped."""
        if seen.finite:
            return False
        self.skipped += 1
        logger.warning(
            "update %d was skipped: loss %s, gradient norm %s; its windows come from episodes %s",
            seen.outcome.global_step, seen.loss, seen.norm, episodes,
        )  # fmt: skip
        return self.skipped > self.allowed


def write_dump(folder: Path, seen: Seen, episodes: list[int], policy: nn.Module, batch: dict[str, Any]) -> Path:
    """Save what is needed to see why an update was not finite; returns the file."""
    path = folder / f"not_finite_step_{seen.outcome.global_step}.pt"
    content = {
        "global_step": seen.outcome.global_step,
        "loss": seen.loss,
        "gradient_norm": seen.norm,
        "windows": seen.outcome.windows,
        "episodes": episodes,
        "batch": batch,
        "model": policy.state_dict(),
    }
    with whole_file(path) as beside:
        torch.save(content, beside)
    return path
