"""Frames, actions and values of many environments in parallel, with the memory at the start of each chunk.

An episode that ends is followed by the next one in the same row; `first` marks where. Memory is carried over chunks and
iterations, and is the one that the policy had when it acted: gradients do not flow through it (truncated
backpropagation).

Legend of shapes: B environments, T frames of an iteration, N chunks, H W frame size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_policy.minecraft.actions import degrees_of, to_factored
from diffusion_policy.policy.contract import PolicyMemory
from diffusion_policy.policy.vpt_image_policy import VPTImagePolicy, as_memory, as_state
from diffusion_policy.policy.vpt_policy import FACTORS
from diffusion_policy.ppo.games import Game, Played
from diffusion_policy.ppo.outcomes import Outcome

logger = logging.getLogger(__name__)

Seen = tuple[dict[str, Tensor], Tensor, PolicyMemory]


@dataclass(frozen=True)
class Rollout:
    """One iteration's experience.

    Attributes:
        frames: (B, T, H, W, 3) uint8.
        first: (B, T) bool, true where an episode starts.
        actions: by factor (B, T, 1).
        log_probs: (B, T) of the actions under the policy that took them.
        rewards: (B, T).
        values: (B, T) of the frames, in units of returns.
        next_values: (B, T) of what was seen after the action: 0 after the end of an episode, unless it was truncated.
        ended: (B, T) bool, whether the episode ended with the action.
        memories: N of them, each of all rows at the start of a chunk.
        outcomes: of the episodes that ended.
    """

    frames: Tensor
    first: Tensor
    actions: dict[str, Tensor]
    log_probs: Tensor
    rewards: Tensor
    values: Tensor
    next_values: Tensor
    ended: Tensor
    memories: tuple[PolicyMemory, ...]
    outcomes: tuple[Outcome, ...]

    def chunk(self, number: int) -> slice:
        """Frames of a chunk."""
        length = self.frames.shape[1] // len(self.memories)
        return slice(number * length, (number + 1) * length)


class Collector:
    """Plays many environments with one policy, continuing where the last iteration ended.

    Args:
        games: B environments.
        policy: the acting policy; its weights may change between two calls of ``collect``.
        seed: of the draws of actions.
    """

    def __init__(self, games: Sequence[Game], policy: VPTImagePolicy, seed: int):
        self._games, self._policy = games, policy
        self._device = policy.device
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._memory = policy.initial_memory(len(games))
        self._first = torch.ones(len(games), 1, dtype=torch.bool)
        self._frames = _stacked([game.reset() for game in games])  # (B, 1, H, W, 3), of the next action

    @torch.no_grad()
    def collect(self, frames: int, chunk_frames: int) -> Rollout:
        """Play.

        Args:
            frames: T, of each environment.
            chunk_frames: the memory is stored at the start of every chunk of this many frames.
        """
        seen: dict[str, list[Tensor]] = {}
        memories, outcomes = [], list[Outcome]()
        for number in range(frames):
            if number % chunk_frames == 0:
                memories.append(self._memory)
            step = self._act() | {"frames": self._frames, "first": self._first}
            played = [game.step(action) for game, action in zip(self._games, _to_numbers(step), strict=True)]
            step |= self._judge(played)
            outcomes += [one.outcome for one in played if one.outcome is not None]
            self._advance(played)
            for name, part in step.items():
                seen.setdefault(name, []).append(part)
        found = {name: torch.cat(parts, dim=1) for name, parts in seen.items()}
        found["next_values"] = self._next_values(found)
        actions = {name: found.pop(name) for name in FACTORS}
        found.pop("cut_off_values")
        return Rollout(**found, actions=actions, memories=tuple(memories), outcomes=tuple(outcomes))

    def _act(self) -> dict[str, Tensor]:
        """Actions for the current frames; advances the memory."""
        found, values, self._memory = self._look(self._memory)
        actions = self._policy.sample(found, self._generator)
        log_probs = self._policy.log_prob(found, actions)
        return {**actions, "log_probs": log_probs, "values": self._policy.value_head.denormalize(values)}

    def _look(self, memory: PolicyMemory, rows: Sequence[int] | slice = slice(None)) -> Seen:
        """The policy's outputs for the current frames of some rows."""
        frames, first = self._frames[rows].to(self._device), self._first[rows].to(self._device)
        return look(self._policy, frames, first, memory)

    def _judge(self, played: Sequence[Played]) -> dict[str, Tensor]:
        """Rewards and ends (B, 1), and the value (B, 1) of the last observation where an episode was truncated."""
        ended = [one.terminated or one.truncated for one in played]
        cut_off = [row for row, one in enumerate(played) if one.truncated and not one.terminated]
        self._frames = _stacked([one.frame for one in played])
        self._first = torch.zeros(len(played), 1, dtype=torch.bool)
        values = torch.zeros(len(played), 1, device=self._device)
        if cut_off:
            values[cut_off] = self._value({name: part[cut_off] for name, part in self._memory.items()}, cut_off)
        rewards = torch.tensor([[one.reward] for one in played], device=self._device)
        return {
            "rewards": rewards.float(),
            "ended": torch.tensor([[end] for end in ended], device=self._device),
            "cut_off_values": values,
        }

    def _value(self, memory: PolicyMemory, rows: Sequence[int] | slice = slice(None)) -> Tensor:
        """(rows, 1) the value of the current frames, in units of returns; the memory is unchanged."""
        return self._policy.value_head.denormalize(self._look(memory, rows)[1])

    def _advance(self, played: Sequence[Played]) -> None:
        """Start the next episode where one has ended."""
        for row, one in enumerate(played):
            if one.outcome is not None:
                self._frames[row, 0] = torch.from_numpy(self._games[row].reset())
                self._first[row, 0] = True

    def _next_values(self, found: dict[str, Tensor]) -> Tensor:
        """(B, T): the next frame's value; where an episode ended, the value found for its last observation."""
        following = torch.cat([found["values"][:, 1:], self._value(self._memory)], dim=1)
        return torch.where(found["ended"], found["cut_off_values"], following)

    def to_plain(self) -> dict[str, Any]:
        """Everything that the next ``collect`` depends on besides the policy."""
        return {
            "generator": self._generator.get_state(),
            "memory": self._memory,
            "first": self._first,
            "frames": self._frames,
            "games": [game.to_plain() for game in self._games],
        }

    def restore(self, plain: dict[str, Any]) -> None:
        """Inverse of ``to_plain``; environments that do not return to their frame start a new episode."""
        self._generator.set_state(plain["generator"])
        self._memory = {name: part.to(self._device) for name, part in plain["memory"].items()}
        self._first, self._frames = plain["first"].clone(), plain["frames"].clone()
        for row, (game, state) in enumerate(zip(self._games, plain["games"], strict=True)):
            frame = game.restore(state, self._frames[row, 0].numpy())
            if frame is None:
                logger.warning(
                    "environment %d shows another frame after the same actions: it is not deterministic. Its "
                    "episode is discarded and a new one begins, so this run does not equal an uninterrupted one",
                    game.number,
                )
                self._frames[row, 0], self._first[row, 0] = torch.from_numpy(game.reset()), True


def look(policy: VPTImagePolicy, frames: Tensor, first: Tensor, memory: PolicyMemory) -> Seen:
    """A policy's outputs for frames.

    Args:
        policy: the policy.
        frames: (B, T, H, W, 3) uint8.
        first: (B, T) bool, true where an episode starts.
        memory: of the earlier frames.

    Returns:
        Log-probabilities (B, T, 1, n) by factor, values (B, T) in normalized units, and the memory after the frames.
    """
    (found, values, _), state = policy({"img": frames}, first, as_state(memory))
    return found, values[..., 0], as_memory(state)


def _stacked(frames: Sequence[NDArray[np.uint8]]) -> Tensor:
    """(B, 1, H, W, 3) of B frames."""
    return torch.from_numpy(np.stack(frames)[:, None])


def _to_numbers(actions: dict[str, Tensor]) -> NDArray[np.float64]:
    """(B, Da) buttons and degrees of drawn actions (B, 1, 1)."""
    buttons, camera = to_factored({name: actions[name][:, 0, 0].cpu().numpy() for name in FACTORS})
    return np.concatenate([buttons, degrees_of(camera)], axis=-1)
