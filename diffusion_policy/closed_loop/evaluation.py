"""A checkpoint in closed loop: the settings of an evaluation, and the evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusion_policy.checkpoint import load_policy, read_checkpoint
from diffusion_policy.closed_loop.server_actor import serve_settings, served
from diffusion_policy.cpu import choose_threads
from diffusion_policy.env_runner.actors import Actor, PolicyActor
from diffusion_policy.env_runner.document import ClosedLoop, check_same, read_document
from diffusion_policy.env_runner.results import SceneResult
from diffusion_policy.env_runner.rollout import Film, Rules, roll_out, usual_action_steps
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.policy.default_sampler import DEFAULT_SAMPLER, Sampler, sampler_note, sampler_of_training
from diffusion_policy.policy.sampler import set_sampler
from diffusion_policy.storage import file_sha256

__all__ = ["ClosedLoop", "Evaluation", "check_same", "evaluate", "read_document"]

logger = logging.getLogger(__name__)

_MAX_STEPS = 1000
_AT_ONCE = 16


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and how.

    Attributes:
        simulator: where.
        n_scenes: episodes.
        seed: of the first scene's environment (scene i: seed + i), and of the noise.
        n_action_steps: steps of a chunk that are carried out; None: ``rollout.USUAL_ACTION_STEPS``.
        latency_ms: injected; the world goes on for so long while an answer is awaited.
        weights: "ema_model" or "model".
        scheduler, steps: the sampler, as ``set_sampler`` takes them; with a server its settings decide.
        device: "cpu", "cuda:0", ...
        threads: of torch; None: as many as other processes leave cores.
        through_server: whether the real server stands between policy and simulator.
        serve_config: its settings' file.
        serve_words: its settings as ``key=value``.
    """

    simulator: Simulator
    n_scenes: int = 100
    seed: int = 100_000
    n_action_steps: int | None = None
    latency_ms: float = 0.0
    weights: str = "ema_model"
    scheduler: str = DEFAULT_SAMPLER.scheduler
    steps: int = DEFAULT_SAMPLER.steps
    device: str = "cpu"
    threads: int | None = None
    through_server: bool = False
    serve_config: Path | None = None
    serve_words: tuple[str, ...] = ()

    def scenes(self) -> dict[int, int]:
        """Number of each scene to the seed of its environment."""
        return {scene: self.seed + scene for scene in range(self.n_scenes)}


def evaluate(
    checkpoint: Path,
    evaluation: Evaluation,
    *,
    earlier: Mapping[str, Any] | None = None,
    done: Sequence[SceneResult] = (),
    show: Callable[[int, int], None] = lambda done, total: None,
    film: Callable[[int], Film | None] = lambda scene: None,
    kept: Callable[[ClosedLoop], None] = lambda found: None,
) -> ClosedLoop:
    """Run a checkpoint through its scenes.

    Args:
        checkpoint: any checkpoint of the reference or of this project.
        evaluation: where and how.
        earlier: the document of an interrupted evaluation, and ``done``, its scenes: they are not run again.
        show: told (scenes ended, scenes in all).
        film: by number of a scene, what takes its frames.
        kept: gets the episodes so far if an interruption ends the evaluation; the interruption then goes on.

    Raises:
        WorkspaceError: the checkpoint, the simulator or the settings do not fit together.
    """
    with _acting(checkpoint, evaluation) as (actor, described):
        rules = Rules(
            usual_action_steps(actor, evaluation.n_action_steps),
            _MAX_STEPS,
            1 if evaluation.through_server else _AT_ONCE,
            evaluation.latency_ms / 1000,
        )
        about = {**described, **_about(evaluation, actor, rules)}
        if earlier:
            check_same(about, earlier, "the result to go on with")
        done = [result for result in done if result.scene < evaluation.n_scenes]
        found = ClosedLoop(about, evaluation.n_scenes, list(done))
        ran = {result.scene for result in done}
        scenes = {scene: seed for scene, seed in evaluation.scenes().items() if scene not in ran}
        show(len(found.results), found.scenes)
        try:
            for result in roll_out(evaluation.simulator, actor, scenes, rules, film):
                found.results.append(result)
                show(len(found.results), found.scenes)
        except KeyboardInterrupt:
            kept(found)
            raise
    return found


@contextmanager
def _acting(checkpoint: Path, evaluation: Evaluation) -> Iterator[tuple[Actor, dict[str, Any]]]:
    """Who answers, and what is said of it in the result."""
    threads = choose_threads(evaluation.threads).count
    if evaluation.through_server:
        chosen = {key: getattr(evaluation, key) for key in ("device", "weights", "seed")}
        words = [f"engine.{key}={value}" for key, value in chosen.items()]
        settings = serve_settings(checkpoint, evaluation.serve_config, [*words, *evaluation.serve_words])
        settings.engine.threads = settings.engine.threads or threads
        with served(settings, evaluation.simulator) as (actor, engine):
            about = engine.describe()
            keys = ("checkpoint", "checkpoint_sha256", "weights", "scheduler", "steps", "precision", "warm_start")
            yield actor, {key: about[key] for key in keys}
        return
    torch.set_num_threads(threads)
    opened = read_checkpoint(checkpoint)
    note = sampler_note(
        sampler_of_training(opened.provenance, opened.cfg), Sampler(evaluation.scheduler, evaluation.steps)
    )
    if note is not None:
        logger.warning("%s: %s", checkpoint, note)
    policy = load_policy(opened, which=evaluation.weights, device=evaluation.device)
    set_sampler(policy, evaluation.scheduler, evaluation.steps)
    identity = {"checkpoint": str(checkpoint), "checkpoint_sha256": file_sha256(checkpoint)}
    chosen = {key: getattr(evaluation, key) for key in ("weights", "scheduler", "steps")}
    yield PolicyActor(policy, evaluation.simulator, evaluation.seed), {**identity, **chosen}


def _about(evaluation: Evaluation, actor: Actor, rules: Rules) -> dict[str, Any]:
    env = evaluation.simulator.env
    return {
        "simulator": evaluation.simulator.describe(),
        "task": env.get("task"),
        "referee": env.get("referee"),
        "n_action_steps": rules.n_action_steps,
        "seed": evaluation.seed,
        "latency_injected_ms": evaluation.latency_ms,
        "through_server": evaluation.through_server,
        "serve_settings": list(evaluation.serve_words),
        "notes": evaluation.simulator.check_policy(actor.spec),
    }
