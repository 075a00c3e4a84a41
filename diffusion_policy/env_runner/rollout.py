"""Episodes of a policy in a simulator: it observes, answers a chunk, some steps of it are carried out, and again.

Several episodes advance together, so that one call of the policy answers all of them; one that ends makes room for the
next. A scene is a seed of the environment: two policies that are asked for the same seeds are compared scene by scene.

With an injected latency the world goes on while an answer is awaited, as it does for a robot: what is left of the last
chunk is carried out, then the pose is held, and the steps of the answer whose time is over are left out.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from diffusion_policy.env_runner.actors import Actor, Answer, Question
from diffusion_policy.env_runner.results import REFUSED_BY_GUARD, TIMEOUT, SceneResult
from diffusion_policy.env_runner.simulator import Env, FloatArray, RawStep, Simulator, SimulatorError
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_events import CLIENT_THRESHOLD
from diffusion_policy.spec import ImageArray
from diffusion_policy.spec.action_layout import is_gripper_name

USUAL_ACTION_STEPS = 6  # of a chunk, as the robot's clients mean to run; others were measured: docs/closed_loop.md
_MOSTLY_REFUSED = 0.5


@dataclass(frozen=True)
class Rules:
    """How episodes are run.

    Attributes:
        n_action_steps: steps of a chunk that are carried out before the policy is asked again.
        max_steps: after which an episode has failed, if the environment does not say so before.
        at_once: episodes that advance together.
        latency_s: injected; how long the world goes on while an answer is awaited.
    """

    n_action_steps: int
    max_steps: int = 1000
    at_once: int = 16
    latency_s: float = 0.0

    def check(self, actor: Actor) -> None:
        """Raises WorkspaceError: a setting with which nothing can be run."""
        if not 1 <= self.n_action_steps <= actor.n_action_steps:
            raise WorkspaceError(
                f"n_action_steps is {self.n_action_steps}; expected 1 to the {actor.n_action_steps} of a chunk"
            )
        for name, least in (("max_steps", 1), ("at_once", 1), ("latency_s", 0)):
            if not getattr(self, name) >= least:
                raise WorkspaceError(f"{name} is {getattr(self, name)}; expected {least} or more")


def usual_action_steps(actor: Actor, asked: int | None) -> int:
    """As asked; else USUAL_ACTION_STEPS, or all of a shorter chunk."""
    return min(USUAL_ACTION_STEPS, actor.n_action_steps) if asked is None else asked


class Film(Protocol):
    """Takes the frames of one episode."""

    def add(self, frame: ImageArray, caption: str) -> None:
        """One frame (H, W, 3) and a line of text."""

    def finish(self, result: SceneResult | None) -> None:
        """The episode is over; None: it was broken off."""


def roll_out(
    simulator: Simulator,
    actor: Actor,
    scenes: Mapping[int, int],
    rules: Rules,
    film: Callable[[int], Film | None] = lambda scene: None,
) -> Iterator[SceneResult]:
    """Run episodes; yields each as it ends, so an interruption keeps those that have.

    Args:
        simulator: makes and reads the environments.
        actor: answers.
        scenes: number of each scene to the seed that its environment is reset with.
        rules: see ``Rules``.
        film: by number of a scene, what takes its frames.

    Raises:
        WorkspaceError: rules, policy and simulator do not fit together.
    """
    rules.check(actor)
    simulator.check_policy(actor.spec)
    waiting = deque(scenes.items())
    running: list[_Episode] = []
    idle: list[Env] = []
    made: list[Env] = []
    try:
        while waiting or running:
            while waiting and len(running) < rules.at_once:
                if not idle:
                    idle.append(simulator.make())
                    made.append(idle[-1])
                scene, seed = waiting.popleft()
                running.append(_Episode(simulator, idle.pop(), actor, scene, seed, rules, film(scene)))
            answers = actor.answer([episode.question() for episode in running])
            for episode, answer in zip(running, answers, strict=True):
                episode.carry_out(answer)
            for episode in [episode for episode in running if episode.ended]:
                result = episode.result()
                running.remove(episode)
                idle.append(episode.env)
                yield result
    finally:
        for episode in running:
            episode.break_off()
        for env in made:
            env.close()


@dataclass
class _Count:
    """What happened to the requests of an episode."""

    requests: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    limited: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)


class _Episode:
    """One environment from its reset to its end."""

    def __init__(
        self, simulator: Simulator, env: Env, actor: Actor, scene: int, seed: int, rules: Rules, film: Film | None
    ) -> None:
        self.env, self.ended = env, False
        self._simulator, self._actor, self._rules, self._film = simulator, actor, rules, film
        self._scene, self._seed = scene, seed
        self._late = math.ceil(rules.latency_s * simulator.control_hz - 1e-9)
        observation, self._info = env.reset(seed=seed)
        self._position = simulator.noted(self._info, "position")
        now = simulator.read_step(observation, actor.spec)
        # As the windows of a dataset start: nothing came before.
        self._history: deque[RawStep] = deque([now] * actor.n_obs_steps, maxlen=actor.n_obs_steps)
        self._left: FloatArray = np.empty((0, len(simulator.action)))
        self._grippers: dict[str, float] = {}  # as last commanded, by name
        self._steps, self._success, self._count = 0, False, _Count()

    def question(self) -> Question:
        return Question(self._scene, self._count.requests, self._steps, tuple(self._history))

    def carry_out(self, answer: Answer) -> None:
        """Take the answer's steps, or hold for one step where there is none."""
        self._count.requests += 1
        self._count.limited.update(answer.limited)
        if answer.latency_s is not None:
            self._count.latencies.append(answer.latency_s)
        self._bridge(self._late)
        if answer.actions is None:
            self._count.refusals[(answer.refusal or "refused").partition(":")[0]] += 1
            self._left = self._left[:0]
            self._bridge(1)
            return
        chunk = self._simulator.to_env(answer.actions, self._actor.spec.action_names)
        due, self._left = np.split(chunk[self._late :], [self._rules.n_action_steps])
        for action in due:
            self._step(action)
        if not len(due):  # the answer came after its last step
            self._bridge(1)

    def _bridge(self, steps: int) -> None:
        """Go on without an answer: with what is left of the last chunk, else holding the pose."""
        for _ in range(steps):
            action, self._left = (self._left[0], self._left[1:]) if len(self._left) else (self._hold(), self._left)
            self._step(action)

    def _hold(self) -> FloatArray:
        """The measured pose, and each gripper as it was last commanded, or as it is measured."""
        measured = {
            name: float(value)
            for entry in self._actor.spec.low_dim
            for name, value in zip(entry.names, self._history[-1][entry.key], strict=True)
        }
        measured = {**self._simulator.absent, **measured, **self._grippers}
        unknown = [name for name in self._simulator.action if name not in measured]
        if unknown:
            raise SimulatorError(f"the arm cannot be held: the policy observes no {unknown}")
        return np.array([measured[name] for name in self._simulator.action])

    def _step(self, action: FloatArray) -> None:
        if self.ended:
            return
        space = self.env.action_space
        observation, reward, terminated, truncated, self._info = self.env.step(action.astype(space.dtype))
        self._steps += 1
        commands = zip(self._simulator.action, action.tolist(), strict=True)
        self._grippers = {name: command for name, command in commands if is_gripper_name(name)}
        self._history.append(self._simulator.read_step(observation, self._actor.spec))
        self._success = self._simulator.succeeded(self._info, float(reward), terminated=bool(terminated))
        self.ended = bool(terminated or truncated or self._success or self._steps >= self._rules.max_steps)
        if self._film is not None:
            self._film.add(self._frame(), self._caption())

    def _frame(self) -> ImageArray:
        frame: ImageArray = self._history[-1][self._actor.spec.rgb[0].key]
        return frame

    def _caption(self) -> str:
        said = (
            f"   {name} {'open' if command > CLIENT_THRESHOLD else 'close'}" for name, command in self._grippers.items()
        )
        return f"scene {self._scene}   step {self._steps}{''.join(said)}{'   done' if self._success else ''}"

    def break_off(self) -> None:
        """Interrupted: no result, no film."""
        if self._film is not None:
            self._film.finish(None)

    def result(self) -> SceneResult:
        """What came of it."""
        grasped = self._simulator.noted(self._info, "grasped")
        result = SceneResult(
            scene=self._scene,
            seed=self._seed,
            success=self._success,
            steps=self._steps,
            reason=None if self._success else self._reason(),
            grasped=None if grasped is None else bool(grasped),
            position=_pair(self._position),
            requests=self._count.requests,
            refusals=dict(self._count.refusals),
            limited=dict(self._count.limited),
            latencies_ms=tuple(round(1000 * seconds, 3) for seconds in self._count.latencies),
        )
        if self._film is not None:
            self._film.finish(result)
        return result

    def _reason(self) -> str:
        if self._count.refusals.total() > _MOSTLY_REFUSED * self._steps:  # each holds the arm for one step
            return REFUSED_BY_GUARD
        return str(self._simulator.noted(self._info, "failure") or TIMEOUT)


def _pair(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    numbers: Sequence[float] = np.asarray(value, dtype=np.float64).reshape(-1).tolist()
    return (numbers[0], numbers[1]) if len(numbers) >= 2 else None
