"""A recurrent policy in closed loop: each episode's memory is kept between its requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from diffusion_policy.env_runner.actors import (
    ActingPolicy,
    ActionReply,
    ActionRequest,
    Actor,
    PolicyActor,
    policy_input,
)
from diffusion_policy.env_runner.simulator import Simulator
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.policy.contract import PolicyMemory, RecurrentPolicy
from diffusion_policy.policy.noise import noise_seed
from diffusion_policy.policy.sequences import draw_classes


class ActingRecurrentPolicy(ActingPolicy, RecurrentPolicy, Protocol):
    """The part of a recurrent policy's interface that rollouts need."""


class MemoryActor:
    """A recurrent policy in this process; one call answers many episodes.

    An episode's memory is empty at its first request. A draw depends on (seed, scene, step) alone, so neither the
    number of episodes at once nor an interruption changes an outcome, except for float32 rounding in batches of other
    sizes.

    Args:
        policy: in eval mode.
        simulator: the source of its observations.
        seed: of the draws.
        greedy: whether to take the most probable action instead of drawing one.
    """

    def __init__(
        self, policy: ActingRecurrentPolicy, simulator: Simulator, seed: int = 0, *, greedy: bool = False
    ) -> None:
        self.spec, self.n_obs_steps, self.n_action_steps = policy.spec, 1, 1
        self._policy, self._simulator, self._seed, self._greedy = policy, simulator, seed, greedy
        self._memories: dict[int, PolicyMemory] = {}

    def answer(self, requests: Sequence[ActionRequest]) -> list[ActionReply]:
        """Returns the policy's actions, and forgets scenes that no longer send requests."""
        if not requests:
            return []
        observed = policy_input(self.spec, requests, self._simulator, self._policy.device)
        first = torch.tensor([[request.index == 0] for request in requests], device=self._policy.device)
        with torch.inference_mode():
            found, after = self._policy.log_probabilities(observed, first, self._memory(requests))
            rows = [
                draw_classes({name: part[row, None].cpu() for name, part in found.items()}, self._generator(request))
                for row, request in enumerate(requests)
            ]
            classes = {name: torch.cat([row[name] for row in rows]) for name in found}
            actions = self._policy.action_of(classes).double().cpu().numpy()
        self._memories = {
            request.scene: {name: part[row, None] for name, part in after.items()}
            for row, request in enumerate(requests)
        }
        finite = [all(bool(torch.isfinite(part[row]).all()) for part in found.values()) for row in range(len(requests))]
        return [
            ActionReply(chunk) if is_finite else ActionReply(None, "not finite: a probability is NaN or infinity")
            for chunk, is_finite in zip(actions, finite, strict=True)
        ]

    def _memory(self, requests: Sequence[ActionRequest]) -> PolicyMemory:
        """The memory of the episodes, as one batch."""
        rows = [
            self._policy.initial_memory(1) if request.index == 0 else self._memories[request.scene]
            for request in requests
        ]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _generator(self, request: ActionRequest) -> torch.Generator | None:
        """The generator of one draw, on the CPU whatever the device; None: nothing is drawn."""
        if self._greedy:
            return None
        return torch.Generator().manual_seed(noise_seed(self._seed, request.scene + 1, request.step))


def actor_of(policy: ActingPolicy, simulator: Simulator, seed: int, *, greedy: bool = False) -> Actor:
    """The actor for a policy in this process, with or without memory.

    Raises:
        WorkspaceError: ``greedy``, for a policy that does not draw actions.
    """
    if isinstance(policy, RecurrentPolicy):
        return MemoryActor(policy, simulator, seed, greedy=greedy)
    if greedy:
        raise WorkspaceError(
            "--greedy is for policies that give probabilities of actions, such as VPT; this one does not"
        )
    return PolicyActor(policy, simulator, seed)
