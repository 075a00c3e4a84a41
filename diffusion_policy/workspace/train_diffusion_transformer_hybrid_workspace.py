"""The training loop: trains a policy from a config, and writes checkpoints and metrics to a run folder.

    decide where to start -> initialize model and EMA -> loss before the first update -> epochs -> summary

An epoch consists of its updates, validation, and (every so many epochs) a checkpoint. The position in that order is
part of every checkpoint, so a resumed run continues exactly where it was stopped.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffusion_policy.checkpoint import build_policy
from diffusion_policy.cpu import CpuTimes
from diffusion_policy.dataset.split import SPLIT
from diffusion_policy.policy.contract import PolicyModule, RecurrentPolicy
from diffusion_policy.run_folder import LATEST
from diffusion_policy.training_config import config_errors, rate_setting
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.batches import Batch
from diffusion_policy.workspace.checkpointing import CheckpointFolder, CheckpointNames, Payload, snapshot
from diffusion_policy.workspace.data import open_data
from diffusion_policy.workspace.episode_roles import history_of
from diffusion_policy.workspace.evaluator import Evaluator, is_due
from diffusion_policy.workspace.interruption import StopRequest
from diffusion_policy.workspace.losses import BatchLoss, NoiseSampler
from diffusion_policy.workspace.metric_names import check_metric_names
from diffusion_policy.workspace.metrics import MetricsLog, epoch_line
from diffusion_policy.workspace.optimization import Stages, make_optimizer, roles_of
from diffusion_policy.workspace.processes import Processes, join_processes
from diffusion_policy.workspace.progress import TrainingBar
from diffusion_policy.workspace.run_settings import batch_size_note, less_memory, run_settings
from diffusion_policy.workspace.run_state import (
    RunState,
    TrainingProgress,
    generator_states,
    resume_generators,
    seed_process,
)
from diffusion_policy.workspace.run_status import RunStatus
from diffusion_policy.workspace.schedule import make_schedule, plain_schedule, resume_rates, total_updates
from diffusion_policy.workspace.sequence_evaluator import SequenceEvaluator
from diffusion_policy.workspace.sequence_loss import SequenceLoss, reference_policy
from diffusion_policy.workspace.start import open_start
from diffusion_policy.workspace.summary import RunSummary
from diffusion_policy.workspace.threads import set_compute_threads
from diffusion_policy.workspace.updates import StepMetrics, StepMonitor, Updates, write_dump
from diffusion_policy.workspace.weights import Initialization, initialize

logger = logging.getLogger(__name__)

FETCH_EVERY = {"cpu": 1, "cuda": 50}


class TrainDiffusionTransformerHybridWorkspace:
    """One training run; `run` carries it out.

    Args:
        cfg: `config/train_cogact_robot.yaml` with its overrides.
        output_dir: the run folder; None: the one that Hydra created.

    Attributes:
        model: the live policy.
        ema_model: its average, which is deployed; None without `training.use_ema`.
        progress: position of the run: epoch, batch and update.
    """

    def __init__(self, cfg: DictConfig, output_dir: str | Path | None = None):
        self._begun = CpuTimes.now()
        self.cfg = run_settings(cfg)
        self.output_dir = Path(HydraConfig.get().runtime.output_dir if output_dir is None else output_dir)
        seed_process(self.cfg.training.seed)
        self.model = build_policy(self.cfg)
        self.ema_model = copy.deepcopy(self.model) if self.cfg.training.use_ema else None
        self.progress = TrainingProgress()

    @property
    def global_step(self) -> int:
        """Updates made."""
        return self.progress.global_step

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 0."""
        return self.progress.epoch

    def run(self) -> RunSummary | None:
        """Train until `training.num_epochs` epochs are done, or the run is asked to stop.

        Returns:
            Summary of the run; None in all processes but the first.

        Raises:
            WorkspaceError: the run cannot start with these settings, or cannot continue.
        """
        try:
            with config_errors(self.cfg), ExitStack() as stack:
                return self._run(stack)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise TrainingError(less_memory(self.cfg)) from error

    def _run(self, stack: ExitStack) -> RunSummary | None:
        processes = stack.enter_context(join_processes(self.cfg.training.device))
        self._prepare(processes, stack)
        status = stack.enter_context(self._status())
        self._stop = stack.enter_context(StopRequest(reports=processes.writes))
        if self.progress.global_step == 0:
            self._write_line(
                self._evaluator.before_first_update() | self._initialization.figures() | self._data.figures()
            )
        while self.progress.epoch < self.cfg.training.num_epochs and not self._stop.ask(processes):
            self._epoch()
        if self._stop.agreed:
            self._save(CheckpointNames((LATEST,)))
            status.stopped_by = self._stop.agreed
        self._checkpoints.wait(last=True)
        if not processes.writes:
            return None
        return RunSummary.of(self.cfg, self.output_dir, self.progress, self._checkpoints, self._stop.agreed)

    def _status(self) -> RunStatus:
        folder = self.output_dir if self._processes.writes else None
        return RunStatus(folder, self.progress, self.cfg.training.num_epochs, self._total_updates)

    # ---- before the first update ----

    def _prepare(self, processes: Processes, stack: ExitStack) -> None:
        """Open the data, initialize models and optimizer, and open logs and checkpoints; wrong settings raise here."""
        cfg = self.cfg
        self._processes = processes
        note = batch_size_note(cfg, processes.world_size)
        if note is not None and processes.writes:
            logger.info(note)
        self.output_dir = processes.from_first(self.output_dir)
        policies = [policy for policy in (self.model, self.ema_model) if policy is not None]
        recurrent = isinstance(self.model, RecurrentPolicy)
        opened = open_start(cfg, self.output_dir)
        self._data = open_data(cfg, processes, history_of(opened), in_sequences=recurrent)
        stack.callback(self._data.close)
        check_metric_names(cfg, self.model.spec.action_names, held_out=len(self._data.held_out) > 0)
        built = copy.deepcopy(self.model) if recurrent and cfg.cloning.kl.weight else None
        self._initialization = initialize(cfg, opened, self.model, self.ema_model, self._data)
        self._set_compute_threads()
        for policy in policies:
            policy.to(processes.device)
        self.model.train()
        self._loss = self._make_loss(built)
        self._make_updates(self._initialization)
        stack.callback(self._updates.release)
        kind = SequenceEvaluator if recurrent else Evaluator
        self._evaluator = kind(cfg, self.output_dir, self._data, self.model, self.ema_model, processes)
        every = cfg.training.log_every or FETCH_EVERY[processes.device.type]
        self._monitor = StepMonitor(every, cfg.training.max_skipped_updates, processes, self.progress.skipped)
        state = self._initialization.run_state if processes.writes else None
        self._checkpoints = CheckpointFolder(
            self.output_dir / "checkpoints",
            cfg.checkpoint,
            state.ranking if state else None,
            self.progress.global_step,
            self._evaluator.measured_with(),
        )
        stack.callback(self._checkpoints.close)
        self._log: MetricsLog | None = None
        if processes.writes:
            self._data.report_shares(self.output_dir)
            self._log = stack.enter_context(MetricsLog(self.output_dir, self.progress.global_step, cfg.logging, cfg))
        self._bar = stack.enter_context(
            TrainingBar(
                self._total_updates,
                self.progress.global_step,
                cfg.training.num_epochs,
                visible=processes.writes,
                refresh_seconds=cfg.training.tqdm_interval_sec,
            )
        )

    def _set_compute_threads(self) -> None:
        self._threads: int | None = None
        if self._processes.device.type == "cpu":
            state = self._initialization.run_state
            requested = OmegaConf.select(self.cfg, "training.threads")
            self._threads = set_compute_threads(requested, state.threads if state else None, self._begun)

    @property
    def _total_updates(self) -> int:
        return total_updates(self.progress, len(self._data.train.order), self.cfg.training)

    def _make_loss(self, built: PolicyModule | None) -> BatchLoss | SequenceLoss:
        """The loss of the live policy; `built` is a copy without weights, for the policy that it is held to."""
        cfg = self.cfg
        if not self._data.in_sequences:
            return BatchLoss(self.model, cfg.loss, cfg.observation_dropout, self._data.normalizer).announced()
        reference = None
        if built is not None:
            reference = reference_policy(cfg, built, self._initialization.provenance)
        return SequenceLoss(self.model, cfg, self._data.train.order.batch_size, reference)

    def _make_updates(self, initialization: Initialization) -> None:
        """Build optimizer, schedule, stages and EMA; in a resumed run, restore their state."""
        cfg, training, state = self.cfg, self.cfg.training, initialization.run_state
        roles = roles_of(self.model, initialization.ledger)
        optimizer = make_optimizer(self.model, cfg.optimizer, cfg.learning_rates, roles)
        self.progress = state.progress if state is not None else self.progress
        schedule = make_schedule(optimizer, training, self._total_updates)
        ema = None if self.ema_model is None else initialization.make_ema(cfg.ema, self.ema_model)
        if state is not None:
            resume_rates(optimizer, schedule, initialization.optimizer_state(), state.lr_scheduler)
            resume_generators(state, training.seed, self._processes.rank, self._processes.world_size)
        else:
            seed_process(training.seed, self._processes.rank)
        loss = self._loss
        if isinstance(loss, SequenceLoss) and state is not None:
            loss.restore(state.memory)
        stages = Stages(cfg.stages, self.model, roles, optimizer)
        noise_sampler = NoiseSampler(self.model, training.seed, n_low_dim=len(loss.low_dim))
        self._updates = Updates(loss, optimizer, schedule, stages, ema, noise_sampler, training, self._processes)

    # ---- one epoch ----

    def _epoch(self) -> None:
        """The rest of the current epoch: updates, validation, checkpoint."""
        training, progress = self.cfg.training, self.progress
        started, first = time.monotonic(), progress.windows
        closing = self._train()
        if self._stop.agreed:
            return
        epoch = progress.epoch
        train_loss = progress.loss_sum / progress.windows if progress.windows else math.nan  # every update was skipped
        rate = (progress.windows - first) / (time.monotonic() - started)
        if progress.first_epoch_loss is None and progress.windows:
            progress.first_epoch_loss = train_loss
        metrics = {**closing, "train_loss": train_loss, "samples_per_second": rate}
        metrics |= self._evaluator.after_epoch(progress, train_loss, self._log, self._bar)
        self._write_line(metrics)
        logger.info(epoch_line(epoch, training.num_epochs, metrics))
        progress.epoch, progress.batch, progress.loss_sum, progress.windows = epoch + 1, 0, 0.0, 0
        progress.closing = None
        ended = progress.epoch == training.num_epochs
        due = ended or is_due(epoch, training.checkpoint_every, training.num_epochs)
        names = self._checkpoints.name(metrics, due=due) if self._processes.writes else None
        names = self._processes.from_first(names)  # only the first process validates
        if names.keep:
            self._save(names, metrics)

    def _train(self) -> dict[str, Any]:
        """Make the remaining updates of the epoch; returns the metrics of the last one, without validation."""
        training, progress = self.cfg.training, self.progress
        closing = progress.closing or {"global_step": progress.global_step, "epoch": progress.epoch}
        n_batches = len(self._data.train.order)
        batches = self._data.train.epoch(progress.epoch, progress.batch)
        for group in grouped(batches, training.gradient_accumulate_every):
            self._loss.at_update(progress.global_step)
            result = self._updates.make(group, progress.epoch, progress.global_step)
            progress.global_step, progress.batch = result.global_step, group[-1].number + 1
            ended = progress.batch == n_batches
            due = training.checkpoint_every_steps and progress.global_step % training.checkpoint_every_steps == 0
            fetched = self._monitor.add(result)
            if ended or due:
                fetched += self._monitor.fetch()
            for entry in fetched:
                line = self._count(entry)
                if ended and entry is fetched[-1]:
                    closing = progress.closing = line
                else:
                    self._write_line(line)
            stopping = self._stop.ask(self._processes)
            if stopping:
                for entry in self._monitor.fetch():
                    self._write_line(self._count(entry))
            if ended or stopping:
                break
            if due:
                self._save(CheckpointNames((LATEST,)))
        return closing

    def _count(self, metrics: StepMetrics) -> dict[str, Any]:
        """Add an update to the totals of the epoch; returns its line of the log. Stops the run if it was not finite."""
        result, progress = metrics.result, self.progress
        if not metrics.finite:
            self._skip_or_stop(metrics)
            return {"global_step": result.global_step, "epoch": progress.epoch, "skipped": True, "lr": result.lr}
        progress.loss_sum += metrics.loss * len(result.windows)
        progress.windows += len(result.windows)
        self._bar.update(result.global_step, progress.epoch, metrics.loss, self._rate(len(result.windows)))
        return {
            "train_loss": metrics.loss,
            "global_step": result.global_step,
            "epoch": progress.epoch,
            "lr": result.lr,
            "gradient_norm": metrics.norm,
        }

    def _skip_or_stop(self, metrics: StepMetrics) -> None:
        episodes = self._data.episodes_of(metrics.result.windows)
        stop = self._monitor.must_stop(metrics, episodes)
        self.progress.skipped = self._monitor.skipped
        if not stop:
            return
        where = ""
        if self._processes.writes:
            batch = self._data.batch_of(metrics.result.windows)
            where = f"; {write_dump(self.output_dir, metrics, episodes, self.model, batch)} holds batch and weights"
        raise TrainingError(
            f"update {metrics.result.global_step}: loss {metrics.loss}, gradient norm {metrics.norm}; its windows come "
            f"from episodes {episodes}{where}. The weights were not changed by it; look at these episodes, lower "
            f"{rate_setting(self.cfg)}, or allow such updates with training.max_skipped_updates"
        )

    def _rate(self, n_windows: int) -> float:
        """Windows per second since the previous call."""
        now = time.monotonic()
        elapsed, self._last_rate_time = now - getattr(self, "_last_rate_time", now), now
        return n_windows / elapsed if elapsed > 0 else 0.0

    def _write_line(self, line: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(line)

    # ---- checkpoints ----

    def _save(self, names: CheckpointNames, metrics: Mapping[str, Any] | None = None) -> None:
        """Copy everything that evolves and have it written under these names.

        Args:
            names: of the file.
            metrics: measurements of these weights, if any.
        """
        generators = self._processes.gather(generator_states())
        if not self._processes.writes:
            return
        self._checkpoints.wait()  # never two copies
        updates, progress = self._updates, self.progress
        state = RunState(
            progress=copy.copy(progress),
            lr_scheduler=plain_schedule(updates.schedule.state_dict()),
            generators=generators,
            ema=None if updates.ema is None else updates.ema.state_dict(),
            ranking=self._checkpoints.state(),
            data=self._data.order(),
            threads=self._threads,
            memory=snapshot(self._loss.memory),
        )
        state_dicts: dict[str, Any] = {"model": self.model.state_dict()}
        if self.ema_model is not None:
            state_dicts["ema_model"] = self.ema_model.state_dict()
        state_dicts["optimizer"] = updates.optimizer.state_dict()
        finished = progress.epoch if progress.batch else progress.epoch - 1
        payload = Payload(
            cfg=self.cfg,
            state_dicts=snapshot(state_dicts),
            pickles={
                "_output_dir": str(self.output_dir),
                "global_step": progress.global_step,
                "epoch": max(finished, 0),
            },
            run_state=state.to_plain(),
            provenance={
                **self._initialization.provenance,
                SPLIT: self._data.split.to_plain(),
                "measured": self._evaluator.record(metrics or {}),
            },
        )
        self._checkpoints.write(names, payload)


def grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Batches of one update each; a group never spans two epochs and starts at a multiple of `size`."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if (batch.number + 1) % size == 0:
            yield group
            group = []
    if group:
        yield group


def out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether an error is raised for lack of GPU or main memory; for main memory, torch has no class of its own."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
