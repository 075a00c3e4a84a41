"""A simulator as the arm of the control loop, in simulated or in real time.

The environment takes one step for each of its periods that has passed, with the last command; while the arm is held,
the command is the measured pose, with grippers as last commanded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.env_runner.simulator import Env, FloatArray, RawStep, Simulator, SimulatorError
from diffusion_policy.serve.client.arm import Picture, Reading
from diffusion_policy.serve.client.clock import Clock
from diffusion_policy.serve.engine.wire import Wire
from diffusion_policy.shape_meta import step_spec_of
from diffusion_policy.sim.recorder import encode_jpeg
from diffusion_policy.spec import SpecError, StepSpec
from diffusion_policy.spec.action_layout import is_gripper_name

_MAX_STEPS = 1000


class SimulatedArm:
    """One episode in a simulator. Implements ``serve.client.Arm``.

    Args:
        simulator: reads the environment's observations.
        env: the environment; it is reset with ``seed``.
        spec: what the policy observes and commands, in the robot's numbers (``StepSpec.robot``).
        wire: the numbers of the policy's messages.
        clock: of the loop; the episode begins now.
        seed: of the scene.
        max_steps: steps after which the episode has failed.

    Attributes:
        steps: steps that the environment has taken.
        succeeded: whether the task is completed.
        ended: whether the episode is over.
        info: the environment's last info.
        path: (steps + 1, D) measured states, in the order of messages.
        frames: the newest frame (H, W, 3) of each camera.
        on_step: called after each step of the environment.
    """

    def __init__(
        self, simulator: Simulator, env: Env, spec: StepSpec, wire: Wire, clock: Clock, seed: int, max_steps: int
    ) -> None:
        self._simulator, self._env, self._spec, self._wire, self._clock = simulator, env, spec, wire, clock
        self._start, self._max_steps = clock.now(), max_steps
        self._target: FloatArray | None = None
        self._grippers: dict[str, float] = {}
        self.steps, self.succeeded, self.ended = 0, False, False
        self.on_step: Callable[[], None] = lambda: None
        observation, self.info = env.reset(seed=seed)
        self.path: list[FloatArray] = []
        self._take_in(simulator.read_step(observation, spec))

    def observe(self) -> Reading:
        """Returns the current measurement, after the environment's steps up to now."""
        due = int((self._clock.now() - self._start) * self._simulator.control_hz + 1e-6)
        while self.steps < due and not self.ended:
            self._step()
        moment = self._start + self.steps / self._simulator.control_hz
        pictures = {camera: Picture(data, moment) for camera, data in self._encoded.items()}
        return Reading(self.path[-1], moment, pictures)

    def move(self, action: FloatArray) -> None:
        """Commands a target (D,) until the next one."""
        self._target = action

    def hold(self, reason: str) -> None:
        """Commands the measured pose."""
        self._target = None

    def stop(self) -> None:
        """Does nothing: the environment only steps while it is observed."""

    @property
    def frames(self) -> Mapping[str, Any]:
        """The newest frame (H, W, 3) uint8 of each camera."""
        return {field.key: self._raw[field.key] for field in self._spec.rgb}

    def _take_in(self, raw: RawStep) -> None:
        self._raw = raw
        observed = {field.key: np.asarray(raw[field.key], dtype=np.float64)[None] for field in self._spec.low_dim}
        try:
            self.path.append(self._wire.measured(observed)[0])
        except SpecError as error:
            raise SimulatorError(str(error)) from error
        self._encoded = {field.key: encode_jpeg(raw[field.key]) for field in self._spec.rgb}

    def _step(self) -> None:
        layout, policy = self._wire.layout, self._wire.policy_layout
        if self._target is None:
            target = self.path[-1].copy()
            for column in layout.gripper_columns:
                target[column] = self._grippers.get(layout.names[column], target[column])
        else:
            target = self._target
        action = self._simulator.to_env(layout.converted(target, policy), policy.names)
        commands = zip(self._simulator.action, action.tolist(), strict=True)
        self._grippers = {name: value for name, value in commands if is_gripper_name(name)}
        space = self._env.action_space
        observation, reward, terminated, truncated, self.info = self._env.step(action.astype(space.dtype))
        self.steps += 1
        self._take_in(self._simulator.read_step(observation, self._spec))
        self.succeeded = self._simulator.succeeded(self.info, float(reward), terminated=bool(terminated))
        self.ended = bool(terminated or truncated or self.succeeded or self.steps >= self._max_steps)
        self.on_step()


def open_simulated_arm(settings: Path, checkpoint: Path, clock: Clock, seed: int) -> tuple[SimulatedArm, float]:
    """Returns the arm of a simulator for the policy of a checkpoint, and the simulator's rate.

    Args:
        settings: YAML of the simulator.
        checkpoint: the served checkpoint; it determines which observations the policy reads.
        clock: of the loop; the episode begins now.
        seed: of the scene.

    Raises:
        WorkspaceError: simulator and policy do not match, or one of them cannot be read.
    """
    simulator, opened = Simulator.load(settings), read_checkpoint(checkpoint)
    spec = step_spec_of(opened.cfg).robot
    simulator.check_policy(spec)
    wire = Wire(spec, (opened.provenance or {}).get("action_semantics"))
    arm = SimulatedArm(simulator, simulator.make(), spec, wire, clock, seed, _MAX_STEPS)
    return arm, simulator.control_hz
