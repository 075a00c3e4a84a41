"""Episodes in which the arm is run by the control loop of ``serve.client``, in simulated time.

Unlike in ``env_runner.rollout``, which steps the environment between two answers, nothing waits here: the loop commands
the arm in every control period, the real server's answer comes a given delay after the request, and the strategy
decides what is executed in the meantime. Time is the simulator's, so any delay can be studied, and runs are exactly
repeatable.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusion_policy.closed_loop.server_actor import REPLY_TIMEOUT_S, ServerActor
from diffusion_policy.closed_loop.simulated_arm import SimulatedArm
from diffusion_policy.env_runner.results import TIMEOUT, SceneResult
from diffusion_policy.env_runner.rollout import FrameRecorder
from diffusion_policy.env_runner.simulator import Env, FloatArray, Simulator
from diffusion_policy.serve.client import (
    Chunk,
    ChunkRequest,
    ControlLoop,
    DelayedRequester,
    LineClient,
    LinesInMemory,
    LoopSettings,
    PolicyClient,
    ServerError,
    VirtualClock,
    chosen_strategy,
    make_strategy,
)

_EPOCH_S = 1000.0  # of the simulated clock at the beginning of an episode
_SERVED_AGAIN_S = 10.0  # within which the server notices that its last client is gone


@dataclass(frozen=True)
class LoopConditions:
    """The conditions under which an arm is run.

    Attributes:
        strategy: name of a chunk strategy, or "auto", see ``serve.client.strategies.chosen_strategy``.
        n_action_steps: steps of a chunk that are executed before the next one should take over.
        delay: seconds from the request to its answer, by scene and request.
        control_hz: commands per second; None: the simulator's rate.
        max_steps: steps of the environment after which an episode has failed.
        smoothing: passes of the filter over a plan's steps, see ``serve.client.smoothing``.
    """

    strategy: str
    n_action_steps: int
    delay: Callable[[int, int], float] = lambda scene, request: 0.0
    control_hz: float | None = None
    max_steps: int = 1000
    smoothing: int = 0

    def settings(self, simulator: Simulator) -> LoopSettings:
        """Settings of the loop: its limits exceed any simulated delay, since the delay is what is studied."""
        patience = 1e6
        return LoopSettings(
            self.control_hz or simulator.control_hz,
            answer_timeout_s=patience,
            max_action_age_s=patience,
            retry_s=0.0,
            smoothing=self.smoothing,
        )


@dataclass(frozen=True)
class LoopEpisode:
    """One episode, and what was sent to the arm.

    Attributes:
        result: its outcome.
        lines: of the arm's log, see ``serve.client.arm_log``.
        path: measured states (D,), one for each step of the environment and the first one.
    """

    result: SceneResult
    lines: list[dict[str, Any]] = field(repr=False)
    path: list[FloatArray] = field(repr=False)


def roll_out_in_loop(
    simulator: Simulator,
    actor: ServerActor,
    scenes: Mapping[int, int],
    conditions: LoopConditions,
    recorder: Callable[[int], FrameRecorder | None] = lambda scene: None,
) -> Iterator[LoopEpisode]:
    """Runs episodes one after another, and yields each as it ends.

    Args:
        simulator: makes the environment.
        actor: provides the server's port and the policy's numbers.
        scenes: seed of the environment by number of the scene.
        conditions: how the arm is run.
        recorder: returns the recorder of a scene's frames; None: they are not recorded.

    Raises:
        WorkspaceError: simulator, policy and conditions do not match, or another robot is using the server.
    """
    simulator.check_policy(actor.spec)
    env = simulator.make()
    try:
        with _connected(actor.port) as client:
            for scene, seed in scenes.items():
                yield _episode(simulator, env, actor, client, (scene, seed), conditions, recorder(scene))
    finally:
        env.close()


def _connected(port: int) -> LineClient:
    """A client of the server, as soon as it has released the previous one; ServerError (busy) after a while."""
    until = time.monotonic() + _SERVED_AGAIN_S
    while True:
        try:
            return LineClient(port=port, timeout=REPLY_TIMEOUT_S)
        except ServerError as error:
            if error.code != "busy" or time.monotonic() > until:
                raise
        time.sleep(0.02)


def _episode(
    simulator: Simulator,
    env: Env,
    actor: ServerActor,
    client: LineClient,
    numbered: tuple[int, int],
    conditions: LoopConditions,
    recorder: FrameRecorder | None,
) -> LoopEpisode:
    (scene, seed), clock, log = numbered, VirtualClock(_EPOCH_S), LinesInMemory()
    arm = SimulatedArm(simulator, env, actor.spec, actor.wire, clock, seed, conditions.max_steps)
    if recorder is not None:
        recording = recorder
        arm.on_step = lambda: recording.add(arm.frames[actor.spec.rgb[0].key], f"scene {scene}   step {arm.steps}")
    policy_client, limited = PolicyClient(client), Counter[str]()

    def ask(query: ChunkRequest) -> Chunk:
        chunk = policy_client(query)
        limited.update({str(name): int(count) for name, count in chunk.reply.get("interventions", {}).items()})
        return chunk

    position = simulator.optional_info(arm.info, "position")
    loop = ControlLoop(
        arm,
        DelayedRequester(ask, clock, lambda request: conditions.delay(scene, request)),
        policy_client.form,
        make_strategy(
            chosen_strategy(conditions.strategy, policy_client.form.continuations), conditions.n_action_steps
        ),
        conditions.settings(simulator),
        clock=clock,
        log=log,
        run_id=f"scene-{scene}",
        about={"scene": scene, "seed": seed},
    )
    result: SceneResult | None = None
    try:
        loop.run(lambda: arm.ended)
        result = _result(simulator, arm, numbered, position, log.lines, limited)
    finally:  # an interrupted episode has no result
        if recorder is not None:
            recorder.finish(result)
    return LoopEpisode(result, log.lines, arm.path)


def _result(
    simulator: Simulator,
    arm: SimulatedArm,
    numbered: tuple[int, int],
    position: Any,
    lines: list[dict[str, Any]],
    limited: Counter[str],
) -> SceneResult:
    """The outcome of an episode, in the form of all rollouts."""
    sent = {line["request_id"]: line["time"] for line in lines if line["event"] == "request"}
    answers = [line for line in lines if line["event"] == "answer"]
    grasped = simulator.optional_info(arm.info, "grasped")
    reason = None if arm.succeeded else str(simulator.optional_info(arm.info, "failure") or TIMEOUT)
    return SceneResult(
        scene=numbered[0],
        seed=numbered[1],
        success=arm.succeeded,
        steps=arm.steps,
        reason=reason,
        grasped=None if grasped is None else bool(grasped),
        position=None if position is None else (float(position[0]), float(position[1])),
        requests=len(sent),
        refusals=dict(Counter(line["code"] for line in lines if line["event"] == "error")),
        limited=dict(limited),
        latencies_ms=tuple(round(1000 * (line["time"] - sent[line["request_id"]]), 3) for line in answers),
    )
