"""Closed-loop evaluation of a checkpoint, and its settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_policy.checkpoint import load_policy, read_checkpoint
from diffusion_policy.closed_loop.loop_rollout import LoopConditions, roll_out_in_loop
from diffusion_policy.closed_loop.server_actor import ServerActor, serve_settings, served
from diffusion_policy.cpu import choose_threads
from diffusion_policy.env_runner.actors import ActingPolicy, Actor
from diffusion_policy.env_runner.document import NO_SAMPLER, ClosedLoop, check_same, read_document
from diffusion_policy.env_runner.memory_actor import MemoryActor, actor_of
from diffusion_policy.env_runner.results import SceneResult
from diffusion_policy.env_runner.rollout import FrameRecorder, RolloutSettings, default_action_steps, roll_out
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.policy.contract import DenoisingPolicy
from diffusion_policy.policy.default_sampler import DEFAULT_SAMPLER, Sampler, sampler_note, sampler_of_training
from diffusion_policy.policy.sampler import set_sampler
from diffusion_policy.progress import Progress, no_progress
from diffusion_policy.serve.client import DEFAULT_SMOOTHING
from diffusion_policy.storage import file_sha256

__all__ = ["ClosedLoop", "Evaluation", "check_same", "evaluate", "read_document"]

logger = logging.getLogger(__name__)

_MAX_STEPS = 1000
_AT_ONCE = 16
_AVERAGE = "ema_model"
_UNSAMPLED: dict[str, Any] = {"scheduler": NO_SAMPLER, "steps": 1}


@dataclass(frozen=True)
class Evaluation:
    """Settings of an evaluation.

    Attributes:
        simulator: makes the environments.
        n_scenes: number of episodes.
        seed: seed of the first scene's environment (scene i: seed + i), and of the noise.
        n_action_steps: steps of a chunk that are executed; None: ``rollout.DEFAULT_ACTION_STEPS``.
        latency_ms: injected latency; the simulation goes on for that long while a reply is awaited.
        weights: "ema_model" or "model"; None: the average, or the live weights if the checkpoint has no average.
        scheduler, steps: the sampler, as ``set_sampler`` takes them; with a server its settings decide.
        device: "cpu", "cuda:0", ...
        threads: threads of torch; None: as many as other processes leave free cores.
        through_server: whether actions come from the real server, over a socket.
        serve_config: settings file of the server.
        serve_words: settings of the server as ``key=value``.
        strategy: runs the arm by the control loop with this chunk strategy, in simulated time, through the server;
            None: the environment is stepped between two answers.
        latency_jitter_ms: the control loop's latency varies uniformly by up to this much.
        smoothing: passes of the control loop's filter over a plan's steps; None: ``DEFAULT_SMOOTHING``.
        greedy: whether a policy that gives probabilities takes its most probable action instead of drawing one.
    """

    simulator: Simulator
    n_scenes: int = 100
    seed: int = 100_000
    n_action_steps: int | None = None
    latency_ms: float = 0.0
    weights: str | None = None
    scheduler: str = DEFAULT_SAMPLER.scheduler
    steps: int = DEFAULT_SAMPLER.steps
    device: str = "cpu"
    threads: int | None = None
    through_server: bool = False
    serve_config: Path | None = None
    serve_words: tuple[str, ...] = ()
    strategy: str | None = None
    latency_jitter_ms: float = 0.0
    smoothing: int | None = None
    greedy: bool = False

    @property
    def loop_smoothing(self) -> int:
        """Passes of the filter in the control loop."""
        return DEFAULT_SMOOTHING if self.smoothing is None else self.smoothing

    def scenes(self) -> dict[int, int]:
        """Maps the number of each scene to the seed of its environment."""
        return {scene: self.seed + scene for scene in range(self.n_scenes)}


def evaluate(
    checkpoint: Path,
    evaluation: Evaluation,
    *,
    earlier: Mapping[str, Any] | None = None,
    done: Sequence[SceneResult] = (),
    show: Progress = no_progress,
    recorder: Callable[[int], FrameRecorder | None] = lambda scene: None,
    kept: Callable[[ClosedLoop], None] = lambda found: None,
) -> ClosedLoop:
    """Runs a checkpoint in all scenes.

    Args:
        checkpoint: a checkpoint of the public reference code or of this project, or VPT's ``.weights``.
        evaluation: the settings.
        earlier: document of an interrupted evaluation; ``done`` are its scenes, which are not run again.
        show: called with (scenes ended, scenes in total).
        recorder: returns the recorder of a scene's frames, by number of the scene.
        kept: called with the episodes so far when an interruption ends the evaluation, before it is raised again.

    Raises:
        WorkspaceError: the checkpoint, the simulator and the settings do not match.
    """
    with _open_actor(checkpoint, evaluation) as (actor, described):
        settings = RolloutSettings(
            default_action_steps(actor, evaluation.n_action_steps),
            _MAX_STEPS,
            1 if evaluation.through_server else _AT_ONCE,
            evaluation.latency_ms / 1000,
        )
        conditions = _about(evaluation, actor, settings)
        about = {**described, **conditions, "notes": [*described.get("notes", ()), *conditions["notes"]]}
        if earlier:
            check_same(about, earlier, "the result to resume")
        done = [result for result in done if result.scene < evaluation.n_scenes]
        found = ClosedLoop(about, evaluation.n_scenes, list(done))
        ran = {result.scene for result in done}
        scenes = {scene: seed for scene, seed in evaluation.scenes().items() if scene not in ran}
        show(len(found.results), found.scenes)
        try:
            for result in _episodes(actor, scenes, evaluation, settings, recorder):
                found.results.append(result)
                show(len(found.results), found.scenes)
        except KeyboardInterrupt:
            kept(found)
            raise
    return found


def _episodes(
    actor: Actor,
    scenes: Mapping[int, int],
    evaluation: Evaluation,
    settings: RolloutSettings,
    recorder: Callable[[int], FrameRecorder | None],
) -> Iterator[SceneResult]:
    """Runs the scenes by the control loop, if it has a strategy, else step by step."""
    if evaluation.strategy is None:
        yield from roll_out(evaluation.simulator, actor, scenes, settings, recorder)
        return
    if not isinstance(actor, ServerActor):
        raise WorkspaceError("a chunk strategy is for the control loop, which needs a server: add --through-server")

    def delay(scene: int, request: int) -> float:
        draw = np.random.default_rng((evaluation.seed, scene, request)).uniform(-1, 1)
        return max(0.0, evaluation.latency_ms + draw * evaluation.latency_jitter_ms) / 1000

    conditions = LoopConditions(
        evaluation.strategy,
        settings.n_action_steps,
        delay,
        max_steps=settings.max_steps,
        smoothing=evaluation.loop_smoothing,
    )
    for episode in roll_out_in_loop(evaluation.simulator, actor, scenes, conditions, recorder):
        yield episode.result


@contextmanager
def _open_actor(checkpoint: Path, evaluation: Evaluation) -> Iterator[tuple[Actor, dict[str, Any]]]:
    """Opens the actor, and yields it with its description for the result."""
    threads = choose_threads(evaluation.threads).count
    if evaluation.through_server:
        chosen = {"device": evaluation.device, "weights": evaluation.weights or _AVERAGE, "seed": evaluation.seed}
        words = [f"engine.{key}={value}" for key, value in chosen.items()]
        settings = serve_settings(checkpoint, evaluation.serve_config, [*words, *evaluation.serve_words])
        settings.engine.threads = settings.engine.threads or threads
        with served(settings, evaluation.simulator) as (actor, engine):
            about = engine.describe()
            keys = ("checkpoint", "checkpoint_sha256", "weights", "scheduler", "steps", "precision", "warm_start")
            yield actor, {key: about[key] for key in keys}
        return
    torch.set_num_threads(threads)
    policy, described = _open_policy(checkpoint, evaluation)
    acting = actor_of(policy, evaluation.simulator, evaluation.seed, greedy=evaluation.greedy)
    if isinstance(acting, MemoryActor):
        described["actions"] = "most probable" if evaluation.greedy else "drawn"
    yield acting, described


def _open_policy(checkpoint: Path, evaluation: Evaluation) -> tuple[ActingPolicy, dict[str, Any]]:
    """Opens a checkpoint, and describes it for the result."""
    opened = read_checkpoint(checkpoint)
    # Behavior cloning keeps no average by default, and bare weights have none; the result names the weights used.
    which = evaluation.weights or (_AVERAGE if _AVERAGE in opened.state_dicts else "model")
    policy = load_policy(opened, which=which, device=evaluation.device)
    sampled = _UNSAMPLED
    if isinstance(policy, DenoisingPolicy):
        runs = Sampler(evaluation.scheduler, evaluation.steps)
        note = sampler_note(sampler_of_training(opened.provenance, opened.cfg), runs)
        if note is not None:
            logger.warning("%s: %s", checkpoint, note)
        sampled = asdict(runs)
    set_sampler(policy, evaluation.scheduler, evaluation.steps)
    identity = {"checkpoint": opened.where, "checkpoint_sha256": file_sha256(opened.path)}
    return policy, {**identity, "weights": which, **sampled, "notes": () if opened.pickles else opened.notes}


def _about(evaluation: Evaluation, actor: Actor, settings: RolloutSettings) -> dict[str, Any]:
    env = evaluation.simulator.env
    return {
        "simulator": evaluation.simulator.describe(),
        "task": env.get("task"),
        "referee": env.get("referee"),
        "n_action_steps": settings.n_action_steps,
        "seed": evaluation.seed,
        "latency_injected_ms": evaluation.latency_ms,
        **(
            {}
            if evaluation.strategy is None
            else {"strategy": evaluation.strategy, "smoothing": evaluation.loop_smoothing}
        ),
        **({"latency_jitter_ms": evaluation.latency_jitter_ms} if evaluation.latency_jitter_ms else {}),
        "through_server": evaluation.through_server,
        "serve_settings": list(evaluation.serve_words),
        "notes": evaluation.simulator.check_policy(actor.spec),
    }
