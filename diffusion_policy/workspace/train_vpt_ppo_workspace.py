"""Reinforcement learning of a VPT policy: plays, learns from its play, and writes checkpoints and metrics.

    open the pretrained policy -> make environments -> iterations of (collect, learn, measure) -> summary

A checkpoint is written at the end of an iteration, with everything that evolves: weights, optimizer, statistics of
returns, memory, generators, and each environment's episode with its actions so far, which are replayed when the run is
resumed. So a killed and resumed run is bit-identical to an uninterrupted one.
"""

from __future__ import annotations

import copy
import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffusion_policy.checkpoint import Checkpoint, read_checkpoint
from diffusion_policy.cpu import CpuTimes
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.ppo.games import Game, Shaping
from diffusion_policy.ppo.learner import Learner, PretrainedPolicy
from diffusion_policy.ppo.outcomes import LastEpisodes
from diffusion_policy.ppo.rollouts import Collector
from diffusion_policy.ppo.settings import PPOSettings
from diffusion_policy.run_folder import LATEST
from diffusion_policy.storage import write_text
from diffusion_policy.training_config import config_errors
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.batches import derived_seed
from diffusion_policy.workspace.checkpointing import CheckpointFolder, CheckpointNames, Payload, snapshot
from diffusion_policy.workspace.interruption import StopRequest
from diffusion_policy.workspace.metrics import MetricsLog, figure
from diffusion_policy.workspace.ppo_summary import SIMULATOR_NAME, PPOSummary
from diffusion_policy.workspace.processes import Processes, join_processes
from diffusion_policy.workspace.progress import TrainingBar
from diffusion_policy.workspace.run_settings import completed
from diffusion_policy.workspace.run_state import (
    RunState,
    TrainingProgress,
    generator_states,
    seed_process,
    set_generator_states,
)
from diffusion_policy.workspace.run_status import RunStatus
from diffusion_policy.workspace.start import config_changes, own_start
from diffusion_policy.workspace.threads import set_compute_threads
from diffusion_policy.workspace.vpt_start import PretrainedVPT, open_pretrained, vpt_policy

logger = logging.getLogger(__name__)

# Streams of random numbers of a run, besides those of `workspace.batches`.
ACTING, ORDER = 101, 102
SHOWN = ("success_share", "episode_return", "kl_to_pretrained", "clip_share", "explained_variance")


@dataclass
class PPORunState(RunState):
    """A `RunState` plus the state of reinforcement learning.

    Attributes:
        ppo: the environments and memories, the order of chunks, the last episodes, and the frames played.
    """

    ppo: dict[str, Any] = field(default_factory=dict)


class TrainVPTPPOWorkspace:
    """One run of reinforcement learning; `run` carries it out.

    Args:
        cfg: `config/train_ppo_from_vpt.yaml` with its overrides.
        output_dir: the run folder; None: the one that Hydra created.

    Attributes:
        progress: position of the run: `epoch` counts iterations, `global_step` updates.
    """

    def __init__(self, cfg: DictConfig, output_dir: str | Path | None = None):
        self._begun = CpuTimes.now()
        self.cfg = completed(copy.deepcopy(cfg))
        self.output_dir = Path(HydraConfig.get().runtime.output_dir if output_dir is None else output_dir)
        self.progress = TrainingProgress()
        self._frames_played = 0
        self._measured: dict[str, float] = {}  # of the last iteration

    def run(self) -> PPOSummary:
        """Train until `training.iterations` are done, or the run is asked to stop.

        Raises:
            WorkspaceError: the run cannot start with these settings, or cannot continue.
        """
        with config_errors(self.cfg), ExitStack() as stack:
            processes = stack.enter_context(join_processes(self.cfg.training.device))
            if processes.world_size > 1:
                raise TrainingError(
                    f"reinforcement learning runs in one process; torchrun started {processes.world_size}. Raise "
                    "ppo.environments, and start it with python"
                )
            self._prepare(processes, stack)
            status = RunStatus(self.output_dir, self.progress, self._iterations, self._updates_of_run)
            stack.enter_context(status)
            stop = stack.enter_context(StopRequest())
            while self.progress.epoch < self._iterations and not stop.ask(processes):
                self._iterate()
            if stop.agreed:
                self._save(CheckpointNames((LATEST,)))
                status.stopped_by = stop.agreed
            self._checkpoints.wait(last=True)
            figures = self._measured | self._episodes.figures()
            return PPOSummary.of(self.output_dir, self.progress, self._frames_played, figures, stop.agreed)

    @property
    def _iterations(self) -> int:
        return int(self.cfg.training.iterations)

    @property
    def _updates_of_run(self) -> int:
        return self._iterations * self._settings.updates_per_iteration

    # ---- before the first iteration ----

    def _prepare(self, processes: Processes, stack: ExitStack) -> None:
        """Open weights and environments, logs and checkpoints; wrong settings raise here."""
        cfg = self.cfg
        self._settings = PPOSettings.read(OmegaConf.to_container(cfg.ppo, resolve=True))  # type: ignore[arg-type]
        simulator = Simulator.read(cfg.simulator)
        resumed = self._resumed_checkpoint()
        state = None if resumed is None else _state_of(resumed)
        pretrained = open_pretrained(cfg.pretrained, None if resumed is None else resumed.provenance or {})
        logger.info("start: %s", pretrained.account)
        kept = None if state is None else state.threads
        self._threads = (
            set_compute_threads(cfg.training.threads, kept, self._begun) if processes.device.type == "cpu" else None
        )
        seed_process(cfg.training.seed)
        self._make(pretrained, simulator, resumed, processes.device, stack)
        if resumed is not None and state is not None:
            self._restore(resumed, state)
        self._provenance = {**pretrained.provenance, "action_semantics": self._policy.spec.semantics}
        self._checkpoints = CheckpointFolder(
            self.output_dir / "checkpoints",
            cfg.checkpoint,
            None if state is None else state.ranking,
            self.progress.global_step,
            {"episodes": self._settings.window_episodes, "simulator": simulator.describe()},
        )
        stack.callback(self._checkpoints.close)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        write_text(self.output_dir / SIMULATOR_NAME, OmegaConf.to_yaml(cfg.simulator, resolve=True))
        self._log = stack.enter_context(MetricsLog(self.output_dir, self.progress.global_step, cfg.logging, cfg))
        self._bar = stack.enter_context(
            TrainingBar(
                self._updates_of_run,
                self.progress.global_step,
                self._iterations,
                refresh_seconds=cfg.training.tqdm_interval_sec,
            )
        )

    def _resumed_checkpoint(self) -> Checkpoint | None:
        start = own_start(self.cfg.training.resume, self.output_dir)
        if start is None or start.path is None:
            return None
        checkpoint = read_checkpoint(start.path)
        changed = [change for change in config_changes(checkpoint.cfg, self.cfg) if not change.startswith("policy.")]
        for change in changed:
            logger.warning("the config differs from that of the run: %s", change)
        return checkpoint

    def _make(
        self, pretrained: PretrainedVPT, simulator: Simulator, resumed: Checkpoint | None, device: torch.device,
        stack: ExitStack,
    ) -> None:  # fmt: skip
        """Build the policy, its frozen reference, the environments and the learner."""
        cfg, settings, seed = self.cfg, self._settings, int(self.cfg.training.seed)
        self._policy = copy.deepcopy(pretrained.policy) if resumed is None else vpt_policy(resumed, "model")
        policy = self._policy.to(device).train()
        OmegaConf.update(cfg, "policy", pretrained.options, force_add=True)
        simulator.check_policy(policy.spec)
        shaping = Shaping(settings.shaping, settings.discount)
        games = [Game(simulator, policy.spec, seed, number, shaping) for number in range(settings.environments)]
        for game in games:
            stack.callback(game.close)
        self._collector = Collector(games, policy, derived_seed(seed, ACTING))
        self._frozen: PretrainedPolicy | None = None
        if settings.kl_coefficient:
            self._frozen = PretrainedPolicy(pretrained.policy.to(device), settings.environments)
        learning = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        counts = [sum(parameter.numel() for parameter in some) for some in (learning, policy.parameters())]
        logger.info("%d of the policy's %d numbers learn", *counts)
        rates = cfg.optimizer
        self._optimizer = torch.optim.AdamW(
            learning,
            lr=rates.learning_rate,
            betas=tuple(rates.betas),
            weight_decay=rates.weight_decay,
        )
        self._learner = Learner(policy, self._optimizer, settings, derived_seed(seed, ORDER))
        self._episodes = LastEpisodes(settings.window_episodes)

    def _restore(self, checkpoint: Checkpoint, state: PPORunState) -> None:
        if len(state.ppo["collector"]["games"]) != self._settings.environments:
            raise TrainingError(
                f"{checkpoint.path} continues with {len(state.ppo['collector']['games'])} environments; "
                f"ppo.environments is {self._settings.environments}. Resume with the same number, or start a new run "
                "from it: "
                f"pretrained.path={checkpoint.path}"
            )
        self.progress = state.progress
        self._optimizer.load_state_dict(checkpoint.state_dicts["optimizer"])
        for group in self._optimizer.param_groups:
            group["lr"] = self.cfg.optimizer.learning_rate
        self._learner.restore(state.ppo["learner"])
        if self._frozen is not None:
            self._frozen.restore(state.ppo["frozen"])
        self._episodes.restore(state.ppo["episodes"])
        self._frames_played = int(state.ppo["frames"])
        self._collector.restore(state.ppo["collector"])
        set_generator_states(state.generators[0])
        logger.info("resumed at iteration %d, update %d", self.progress.epoch, self.progress.global_step)

    # ---- iterations ----

    def _iterate(self) -> None:
        """Play, learn, measure, and save when due."""
        settings, progress, training = self._settings, self.progress, self.cfg.training
        began = time.monotonic()
        rollout = self._collector.collect(settings.frames, settings.chunk_frames)
        self._episodes.add(rollout.outcomes)
        figures = self._learner.learn(rollout, self._frozen, progress.epoch)
        frames = rollout.rewards.numel()
        self._frames_played += frames
        progress.epoch += 1
        progress.global_step += settings.updates_per_iteration
        metrics = {
            "global_step": progress.global_step, "epoch": progress.epoch - 1, **figures, **self._episodes.figures(),
            "frames": self._frames_played, "frames_per_second": frames / (time.monotonic() - began),
            "lr": self.cfg.optimizer.learning_rate,
        }  # fmt: skip
        self._measured = metrics
        self._log.write(metrics)
        self._bar.update(progress.global_step, progress.epoch - 1, figures["loss"], metrics["frames_per_second"])
        logger.info(_iteration_line(progress.epoch, self._iterations, metrics))
        due = progress.epoch == self._iterations or progress.epoch % training.checkpoint_every == 0
        names = self._checkpoints.name(metrics, due=due)
        if names.keep:
            self._save(names)

    def _save(self, names: CheckpointNames) -> None:
        """Copy everything that evolves and have it written under these names."""
        self._checkpoints.wait()  # never two copies
        state = PPORunState(
            progress=copy.copy(self.progress),
            lr_scheduler={},
            generators=[generator_states()],
            ranking=self._checkpoints.state(),
            threads=self._threads,
            ppo={
                "collector": self._collector.to_plain(),
                "learner": self._learner.to_plain(),
                "frozen": None if self._frozen is None else self._frozen.to_plain(),
                "episodes": self._episodes.to_plain(),
                "frames": self._frames_played,
            },
        )
        weights = {"model": self._policy.state_dict(), "optimizer": self._optimizer.state_dict()}
        payload = Payload(
            cfg=self.cfg,
            state_dicts=snapshot(weights),
            pickles={
                "_output_dir": str(self.output_dir),
                "global_step": self.progress.global_step,
                "epoch": max(self.progress.epoch - 1, 0),
            },
            run_state=snapshot(state.to_plain()),
            provenance=self._provenance,
        )
        self._checkpoints.write(names, payload)


def _state_of(checkpoint: Checkpoint) -> PPORunState:
    """The state of the run that wrote a checkpoint.

    Raises:
        TrainingError: another kind of run wrote it.
    """
    if not (checkpoint.run_state or {}).get("ppo"):
        raise TrainingError(
            f"{checkpoint.path} is not from a reinforcement learning run, so there is nothing to continue; start "
            f"from it: pretrained.path={checkpoint.path} in a new folder"
        )
    state = PPORunState.from_plain(checkpoint.run_state or {}, str(checkpoint.path))
    assert isinstance(state, PPORunState)
    return state


def _iteration_line(iteration: int, iterations: int, metrics: dict[str, Any]) -> str:
    figures = "  ".join(f"{name} {figure(name, metrics, '.3g')}" for name in SHOWN if name in metrics)
    return f"iteration {iteration}/{iterations}  {figures}  {metrics['frames_per_second']:.1f} frames/s"
