"""Rollouts: a policy observes, returns an action chunk, some steps of it are executed, and it is asked again.

Several episodes advance together, so that one call of the policy serves all of them; when one ends, the next scene
starts. A scene is a seed of the environment: two policies that are rolled out on the same seeds are compared scene by
scene.

With an injected latency the simulation goes on while a reply is awaited, as time does for a robot: the remainder of the
last chunk is executed, then the pose is held, and steps of the reply whose time has passed are skipped.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from diffusion_policy.env_runner.actors import ActionReply, ActionRequest, Actor
from diffusion_policy.env_runner.results import REFUSED_BY_GUARD, TIMEOUT, SceneResult
from diffusion_policy.env_runner.simulator import Env, FloatArray, RawStep, Simulator, SimulatorError
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_events import CLIENT_THRESHOLD
from diffusion_policy.spec import ImageArray
from diffusion_policy.spec.action_layout import is_gripper_name

DEFAULT_ACTION_STEPS = 6  # of a chunk, as the robot's clients execute; docs/closed_loop.md compares other numbers
_MOSTLY_REFUSED = 0.5


@dataclass(frozen=True)
class RolloutSettings:
    """Settings of a rollout.

    Attributes:
        n_action_steps: steps of a chunk that are executed before the policy is asked again.
        max_steps: number of steps after which an episode has failed, if the environment does not end it before.
        at_once: number of episodes that advance together.
        latency_s: injected latency; the simulation goes on for this long while a reply is awaited.
    """

    n_action_steps: int
    max_steps: int = 1000
    at_once: int = 16
    latency_s: float = 0.0

    def check(self, actor: Actor) -> None:
        """Checks the settings against an actor.

        Raises:
            WorkspaceError: a setting is out of range.
        """
        if not 1 <= self.n_action_steps <= actor.n_action_steps:
            raise WorkspaceError(
                f"n_action_steps is {self.n_action_steps}; expected 1 to the {actor.n_action_steps} of a chunk"
            )
        for name, least in (("max_steps", 1), ("at_once", 1), ("latency_s", 0)):
            if not getattr(self, name) >= least:
                raise WorkspaceError(f"{name} is {getattr(self, name)}; expected {least} or more")


def default_action_steps(actor: Actor, asked: int | None) -> int:
    """Returns ``asked``; if that is None, DEFAULT_ACTION_STEPS, or all steps of a shorter chunk."""
    return min(DEFAULT_ACTION_STEPS, actor.n_action_steps) if asked is None else asked


class FrameRecorder(Protocol):
    """Records the frames of one episode."""

    def add(self, frame: ImageArray, caption: str) -> None:
        """Adds one frame (H, W, 3) with a line of text."""

    def finish(self, result: SceneResult | None) -> None:
        """Ends the recording; ``result`` is None if the episode was interrupted."""


def roll_out(
    simulator: Simulator,
    actor: Actor,
    scenes: Mapping[int, int],
    settings: RolloutSettings,
    recorder: Callable[[int], FrameRecorder | None] = lambda scene: None,
) -> Iterator[SceneResult]:
    """Runs episodes, and yields each result as its episode ends, so an interruption keeps those that have ended.

    Args:
        simulator: makes the environments and reads their observations.
        actor: answers action requests.
        scenes: maps the number of each scene to the seed that its environment is reset with.
        settings: see ``RolloutSettings``.
        recorder: returns the recorder of a scene's frames, by number of the scene; None: they are not recorded.

    Raises:
        WorkspaceError: settings, policy and simulator do not match.
    """
    settings.check(actor)
    simulator.check_policy(actor.spec)
    waiting = deque(scenes.items())
    running: list[_Episode] = []
    idle: list[Env] = []
    made: list[Env] = []
    try:
        while waiting or running:
            while waiting and len(running) < settings.at_once:
                if not idle:
                    idle.append(simulator.make())
                    made.append(idle[-1])
                scene, seed = waiting.popleft()
                running.append(_Episode(simulator, idle.pop(), actor, scene, seed, settings, recorder(scene)))
            answers = actor.answer([episode.request() for episode in running])
            for episode, answer in zip(running, answers, strict=True):
                episode.execute(answer)
            for episode in [episode for episode in running if episode.ended]:
                result = episode.result()
                running.remove(episode)
                idle.append(episode.env)
                yield result
    finally:
        for episode in running:
            episode.interrupt()
        for env in made:
            env.close()


@dataclass
class _RequestCounts:
    """Counts of an episode's requests and their outcomes."""

    requests: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    limited: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)


class _Episode:
    """One episode, from the reset of its environment to its end."""

    def __init__(
        self,
        simulator: Simulator,
        env: Env,
        actor: Actor,
        scene: int,
        seed: int,
        settings: RolloutSettings,
        recorder: FrameRecorder | None,
    ) -> None:
        self.env, self.ended = env, False
        self._simulator, self._actor, self._settings, self._recorder = simulator, actor, settings, recorder
        self._scene, self._seed = scene, seed
        self._late_steps = math.ceil(settings.latency_s * simulator.control_hz - 1e-9)
        observation, self._info = env.reset(seed=seed)
        self._position = simulator.optional_info(self._info, "position")
        now = simulator.read_step(observation, actor.spec)
        # The first observation is repeated, as the padding of a dataset's windows repeats it.
        self._history: deque[RawStep] = deque([now] * actor.n_obs_steps, maxlen=actor.n_obs_steps)
        self._remaining: FloatArray = np.empty((0, len(simulator.action)))
        self._grippers: dict[str, float] = {}  # as last commanded, by name
        self._steps, self._success, self._counts = 0, False, _RequestCounts()

    def request(self) -> ActionRequest:
        return ActionRequest(self._scene, self._counts.requests, self._steps, tuple(self._history))

    def execute(self, answer: ActionReply) -> None:
        """Executes the steps of a reply, or holds the pose for one step if the reply has no actions."""
        self._counts.requests += 1
        self._counts.limited.update(answer.limited)
        if answer.latency_s is not None:
            self._counts.latencies.append(answer.latency_s)
        self._advance(self._late_steps)
        if answer.actions is None:
            self._counts.refusals[(answer.refusal or "refused").partition(":")[0]] += 1
            self._remaining = self._remaining[:0]
            self._advance(1)
            return
        chunk = self._simulator.to_env(answer.actions, self._actor.spec.action_names)
        due, self._remaining = np.split(chunk[self._late_steps :], [self._settings.n_action_steps])
        for action in due:
            self._step(action)
        if not len(due):  # the reply came after the time of its last step
            self._advance(1)

    def _advance(self, steps: int) -> None:
        """Advances without a reply: executes the remainder of the last chunk, then holds the pose."""
        for _ in range(steps):
            action, self._remaining = (
                (self._remaining[0], self._remaining[1:]) if len(self._remaining) else (self._hold(), self._remaining)
            )
            self._step(action)

    def _hold(self) -> FloatArray:
        """Returns the action that holds the measured pose, with each gripper as last commanded, or as measured."""
        measured = {
            name: float(value)
            for entry in self._actor.spec.low_dim
            for name, value in zip(entry.names, self._history[-1][entry.key], strict=True)
        }
        measured = {**self._simulator.absent, **measured, **self._grippers}
        unknown = [name for name in self._simulator.action if name not in measured]
        if unknown:
            raise SimulatorError(f"the arm cannot hold its pose: the policy observes no {unknown}")
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
        self.ended = bool(terminated or truncated or self._success or self._steps >= self._settings.max_steps)
        if self._recorder is not None:
            self._recorder.add(self._frame(), self._caption())

    def _frame(self) -> ImageArray:
        frame: ImageArray = self._history[-1][self._actor.spec.rgb[0].key]
        return frame

    def _caption(self) -> str:
        commands = (
            f"   {name} {'open' if command > CLIENT_THRESHOLD else 'close'}" for name, command in self._grippers.items()
        )
        return f"scene {self._scene}   step {self._steps}{''.join(commands)}{'   done' if self._success else ''}"

    def interrupt(self) -> None:
        """Ends the episode without a result, and discards its recording."""
        if self._recorder is not None:
            self._recorder.finish(None)

    def result(self) -> SceneResult:
        """Returns the result of the episode."""
        grasped = self._simulator.optional_info(self._info, "grasped")
        result = SceneResult(
            scene=self._scene,
            seed=self._seed,
            success=self._success,
            steps=self._steps,
            reason=None if self._success else self._reason(),
            grasped=None if grasped is None else bool(grasped),
            position=_pair(self._position),
            requests=self._counts.requests,
            refusals=dict(self._counts.refusals),
            limited=dict(self._counts.limited),
            latencies_ms=tuple(round(1000 * seconds, 3) for seconds in self._counts.latencies),
        )
        if self._recorder is not None:
            self._recorder.finish(result)
        return result

    def _reason(self) -> str:
        if self._counts.refusals.total() > _MOSTLY_REFUSED * self._steps:  # each refusal holds the arm for one step
            return REFUSED_BY_GUARD
        return str(self._simulator.optional_info(self._info, "failure") or TIMEOUT)


def _pair(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    numbers: Sequence[float] = np.asarray(value, dtype=np.float64).reshape(-1).tolist()
    return (numbers[0], numbers[1]) if len(numbers) >= 2 else None
