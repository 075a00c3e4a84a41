"""Updates: loss and gradients of one or several batches, optimizer step, EMA step; and a monitor of their results."""

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
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from diffusion_policy.host_memory import keep_freed_memory
from diffusion_policy.model.cpu.arithmetic import multiplies_bf16, use_fast_layers
from diffusion_policy.model.diffusion.ema_model import EMAModel
from diffusion_policy.storage import atomic_file
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.batches import Batch
from diffusion_policy.workspace.losses import BatchLoss, NoiseSampler
from diffusion_policy.workspace.optimization import Stages, step_if_finite
from diffusion_policy.workspace.processes import Processes
from diffusion_policy.workspace.sequence_loss import SequenceLoss

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "bf16", "float32")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The data type of matrix products under autocast; None for the data type of the weights.

    Raises:
        TrainingError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise TrainingError(f"training.precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and multiplies_bf16(device)) else None


def max_gradient_norm(settings: DictConfig) -> float | None:
    """`training.max_gradient_norm`, to which longer gradients are scaled; None: no scaling.

    Raises:
        TrainingError: it is not positive.
    """
    most = OmegaConf.select(settings, "max_gradient_norm", default=None)
    if most is not None and not most > 0:
        raise TrainingError(f"training.max_gradient_norm is {most}; expected above 0, or null")
    return None if most is None else float(most)


@dataclass(frozen=True)
class StepResult:
    """Result of one update. Its numbers stay on the device until the monitor fetches them.

    Attributes:
        global_step: updates made, this one included.
        loss: mean over this process's share of the windows, times that share; summed over processes it is the mean.
        norm: norm of the gradients; not finite if nothing was updated.
        windows: indices of the windows of this update, over all processes.
        lr: learning rate of the first parameter group.
    """

    global_step: int
    loss: Tensor
    norm: Tensor
    windows: list[int]
    lr: float


class Updates:
    """Performs the updates of a run.

    Args:
        loss: loss of the live policy.
        optimizer, schedule, stages: for its parameters.
        ema: updates the averaged copy; None without one.
        noise_sampler: draws the random numbers of the loss.
        settings: `training` of the config.
        processes: the processes that share the work.
    """

    def __init__(
        self,
        loss: BatchLoss | SequenceLoss,
        optimizer: torch.optim.Optimizer,
        schedule: LambdaLR,
        stages: Stages,
        ema: EMAModel | None,
        noise_sampler: NoiseSampler,
        settings: DictConfig,
        processes: Processes,
    ):
        self.policy, self.optimizer, self.schedule, self.stages = loss.policy, optimizer, schedule, stages
        self.ema, self.noise_sampler, self.processes = ema, noise_sampler, processes
        self._dtype = autocast_dtype(settings.precision, processes.device)
        self._max_norm = max_gradient_norm(settings)
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
            # Gradients of 1x1 convolutions cause this warning; strides of dimensions of size one have no effect.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            module = DistributedDataParallel(module, gradient_as_bucket_view=True)
        self._loss, self._plain_loss = module, loss

    def release(self) -> None:
        """Drop the reference to the DDP module, before the process group is destroyed.

        Dropping the last reference to gloo's process group waits for its threads. Python's own clean-up at exit would
        do so while holding the interpreter's lock, which these threads may need.
        """
        if self._loss is not self._plain_loss:
            self._loss = self._plain_loss
            gc.collect()

    def make(self, batches: Sequence[Batch], epoch: int, global_step: int) -> StepResult:
        """Perform one update on the windows of these batches; each window has the same weight.

        Args:
            batches: one, or as many as gradients are accumulated over.
            epoch: number of their epoch, part of the seed of the random numbers.
            global_step: updates made before this one.
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
        norm = step_if_finite(self.optimizer, self._parameters, self._max_norm)
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.schedule.step()
        if self.ema is not None:
            self.ema.step(self.policy)
        windows = [index for batch in batches for index in batch.indices]
        return StepResult(global_step + 1, total, norm, windows, lr)

    def _backward(self, batch: Batch, epoch: int, part: float, *, last: bool) -> Tensor:
        noise = self.noise_sampler.draw(batch, epoch, batch.number)
        accumulating = isinstance(self._loss, DistributedDataParallel) and not last
        device = self.processes.device.type
        with self._loss.no_sync() if accumulating else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(device, dtype=self._dtype, enabled=self._dtype is not None):
                loss: Tensor = self._loss(batch.data, noise.sampled, noise.hidden, noise.low_dim)
            # DDP averages gradients over processes; here they are parts of one sum, hence the factor.
            (loss * (part * self.processes.world_size)).backward()
        return loss


@dataclass(frozen=True)
class StepMetrics:
    """Loss and gradient norm of one update, fetched from the device as Python numbers."""

    result: StepResult
    loss: float
    norm: float

    @property
    def finite(self) -> bool:
        """Whether the update was made."""
        return bool(torch.isfinite(torch.tensor([self.loss, self.norm])).all())


@dataclass
class StepMonitor:
    """Fetches losses and gradient norms from the device, several updates at once: each fetch waits for the device.

    Attributes:
        every: updates between two fetches.
        max_skipped: how many updates may be skipped because of NaN or infinity.
        processes: the processes that share the work.
        skipped: updates skipped so far.
    """

    every: int
    max_skipped: int
    processes: Processes
    skipped: int = 0
    _pending: list[StepResult] = field(default_factory=list)

    def add(self, result: StepResult) -> list[StepMetrics]:
        """Append a result; returns the metrics of all pending updates once `every` are pending, else an empty list."""
        self._pending.append(result)
        return self.fetch() if len(self._pending) >= self.every else []

    def fetch(self) -> list[StepMetrics]:
        """Fetch the metrics of all updates since the last fetch."""
        if not self._pending:
            return []
        losses = self.processes.sum(torch.stack([result.loss for result in self._pending])).tolist()
        norms = torch.stack([result.norm for result in self._pending]).tolist()
        metrics = [StepMetrics(*entry) for entry in zip(self._pending, losses, norms, strict=True)]
        self._pending = []
        return metrics

    def must_stop(self, metrics: StepMetrics, episodes: list[int]) -> bool:
        """Whether the run must stop: the update was not finite and no more updates may be skipped."""
        if metrics.finite:
            return False
        self.skipped += 1
        logger.warning(
            "update %d was skipped: loss %s, gradient norm %s; its windows come from episodes %s",
            metrics.result.global_step, metrics.loss, metrics.norm, episodes,
        )  # fmt: skip
        return self.skipped > self.max_skipped


def write_dump(
    folder: Path, metrics: StepMetrics, episodes: list[int], policy: nn.Module, batch: dict[str, Any]
) -> Path:
    """Save batch, weights and metrics of an update that was not finite, for debugging; returns the path of the file."""
    path = folder / f"not_finite_step_{metrics.result.global_step}.pt"
    content = {
        "global_step": metrics.result.global_step,
        "loss": metrics.loss,
        "gradient_norm": metrics.norm,
        "windows": metrics.result.windows,
        "episodes": episodes,
        "batch": batch,
        "model": policy.state_dict(),
    }
    with atomic_file(path) as temporary:
        torch.save(content, temporary)
    return path
