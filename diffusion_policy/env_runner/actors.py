"""Actors answer the action requests of episodes; this one is a policy in this process, for many episodes at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_policy.env_runner.simulator import FloatArray, RawStep, Simulator
from diffusion_policy.policy.noise import initial_noise, noise_seed
from diffusion_policy.policy.quaternion_hemisphere import QuaternionHemispheres
from diffusion_policy.policy.robot_action import predict_robot_action
from diffusion_policy.spec import ObsField, StepSpec, arms_of, policy_observation


@dataclass(frozen=True)
class ActionRequest:
    """One episode's request for actions.

        Attributes:
    scene: number of the scene, from 0.
            index: how many requests the episode made before this one.
            step: how many steps the episode has taken.
            history: the last To observed steps, oldest first, as the environment gives them.
    """

    scene: int
    index: int
    step: int
    history: Sequence[RawStep]


@dataclass(frozen=True)
class ActionReply:
    """The reply to one request.

    Attributes:
        actions: (Ta, D) from now on, in the policy's order; None: there are none, and the arm holds its pose.
        refusal: why there are none.
        limited: how many actions each limit of a guard changed.
        latency_s: seconds from request to reply; None where several episodes were answered at once.
    """

    actions: FloatArray | None
    refusal: str | None = None
    limited: Mapping[str, int] = field(default_factory=dict)
    latency_s: float | None = None


class Actor(Protocol):
    """Answers the requests of episodes."""

    spec: StepSpec
    n_obs_steps: int
    n_action_steps: int

    def answer(self, requests: Sequence[ActionRequest]) -> list[ActionReply]:
        """Returns one reply for each request, in order."""


class ActingPolicy(Protocol):
    """The part of a policy's interface that rollouts need."""

    spec: StepSpec
    n_obs_steps: int
    n_action_steps: int
    normalizer: Any

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""

    def predict_action(
        self,
        obs: Mapping[str, torch.Tensor],
        initial_noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, torch.Tensor]:
        """Maps observations (B, To, ...) to {"action": (B, Ta, D)}."""


class PolicyActor:
    """A policy in this process; one call answers many episodes.

    The noise of a request depends on (seed, scene, request) alone, so neither the number of episodes at once nor an
    interruption changes an outcome; a server that is asked for the same scenes in order draws the same.

    Args:
        policy: in eval mode, with its sampler set.
        simulator: the source of its observations.
        seed: seed of the noise.
    """

    def __init__(self, policy: ActingPolicy, simulator: Simulator, seed: int = 0) -> None:
        self.spec, self.n_obs_steps, self.n_action_steps = policy.spec.robot, policy.n_obs_steps, policy.n_action_steps
        self._policy, self._simulator, self._seed = policy, simulator, seed
        self._hemispheres = QuaternionHemispheres(policy.spec, policy.normalizer)

    def answer(self, requests: Sequence[ActionRequest]) -> list[ActionReply]:
        """Returns the policy's action chunks; one that holds NaN or infinity is refused."""
        if not requests:
            return []
        seeds = [noise_seed(self._seed, request.scene + 1, request.index) for request in requests]
        noise = initial_noise(self._policy, seeds)
        generator = torch.Generator(device=self._policy.device).manual_seed(seeds[0])
        with torch.inference_mode():
            answer = predict_robot_action(self._policy, self._batch(requests), initial_noise=noise, generator=generator)
        actions: NDArray[np.float64] = answer["action"].double().cpu().numpy()
        return [
            ActionReply(chunk)
            if np.isfinite(chunk).all()
            else ActionReply(None, "not finite: the chunk holds NaN or infinity")
            for chunk in actions
        ]

    def _batch(self, requests: Sequence[ActionRequest]) -> dict[str, torch.Tensor]:
        def turned(entry: ObsField, values: FloatArray) -> FloatArray:
            return self._hemispheres.turned(values, arms_of(entry.names))

        return policy_input(self.spec, requests, self._simulator, self._policy.device, turned)


def policy_input(
    spec: StepSpec,
    requests: Sequence[ActionRequest],
    simulator: Simulator,
    device: torch.device,
    turned: Callable[[ObsField, FloatArray], FloatArray] = lambda entry, values: values,
) -> dict[str, torch.Tensor]:
    """Policy input (B, To, ...) of some requests, prepared by the function that training uses.

    Args:
        spec: of what the policy observes.
        requests: of B episodes.
        simulator: makes frames as small as the policy's.
        device: of the policy.
        turned: applied to the states (To, D) of each low-dimensional entry.
    """
    raw: dict[str, NDArray[Any]] = {}
    for entry in spec.obs:
        steps = [np.stack([step[entry.key] for step in request.history]) for request in requests]
        if entry.kind == "rgb":
            size = entry.width_height
            steps = [np.stack([simulator.resized(frame, *size) for frame in frames]) for frames in steps]
        else:
            steps = [turned(entry, values) for values in steps]
        raw[entry.key] = np.stack(steps)
    observed = policy_observation(spec, raw)
    return {key: torch.from_numpy(value).to(device) for key, value in observed.items()}
