"""The updates of one iteration: clipped objective, value loss, KL divergence from the pretrained policy.

Legend of shapes: B environments, T frames of an iteration, S chunks of an update, t frames of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusion_policy.policy.contract import PolicyMemory
from diffusion_policy.policy.vpt_image_policy import VPTImagePolicy, as_state
from diffusion_policy.policy.vpt_policy import FACTORS
from diffusion_policy.ppo import PPOError
from diffusion_policy.ppo.advantages import explained_variance, generalized_advantages
from diffusion_policy.ppo.objective import clipped_objective
from diffusion_policy.ppo.rollouts import Rollout, look
from diffusion_policy.ppo.settings import PPOSettings

Sequences = Sequence[tuple[int, int]]  # (row, number of the chunk)


class PretrainedPolicy:
    """The policy that reinforcement learning starts from, frozen, with its own memory of the same frames.

    Args:
        policy: will be frozen.
        environments: B, whose frames it sees.
    """

    def __init__(self, policy: VPTImagePolicy, environments: int):
        self._policy = policy.requires_grad_(requires_grad=False)
        self._memory = policy.initial_memory(environments)

    @torch.no_grad()
    def log_probs(self, rollout: Rollout) -> dict[str, Tensor]:
        """Log-probabilities (B, T, 1, n) by factor: 35 kB per frame, the largest part of an iteration's memory."""
        device, parts = self._policy.device, []
        for number in range(len(rollout.memories)):
            chunk = rollout.chunk(number)
            frames, first = rollout.frames[:, chunk].to(device), rollout.first[:, chunk].to(device)
            found, _, self._memory = look(self._policy, frames, first, self._memory)
            parts.append(found)
        return {name: torch.cat([part[name] for part in parts], dim=1) for name in FACTORS}

    def to_plain(self) -> PolicyMemory:
        """Its memory."""
        return self._memory

    def restore(self, plain: PolicyMemory) -> None:
        """Inverse of ``to_plain``."""
        self._memory = {name: part.to(self._policy.device) for name, part in plain.items()}


class Learner:
    """Makes the updates of a policy.

    Args:
        policy: the policy that learns.
        optimizer: of its trainable parameters.
        settings: of the updates.
        seed: of the order of chunks.
    """

    def __init__(self, policy: VPTImagePolicy, optimizer: torch.optim.Optimizer, settings: PPOSettings, seed: int):
        self._policy, self._optimizer, self._settings = policy, optimizer, settings
        self._generator = torch.Generator().manual_seed(seed)
        self._learns = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def learn(self, rollout: Rollout, pretrained: PretrainedPolicy | None, iteration: int) -> dict[str, float]:
        """Make the updates of an iteration; returns their mean figures.

        The statistics by which returns are normalized are updated once, before the first update.

        Raises:
            PPOError: gradients are not finite; the weights are those before that update.
        """
        settings = self._settings
        advantages = generalized_advantages(
            rollout.rewards, rollout.values, rollout.next_values, rollout.ended, settings.discount, settings.gae_lambda
        )
        returns = advantages + rollout.values
        self._policy.value_head.normalizer.update(returns)
        if settings.normalize_advantages:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        targets = {"advantages": advantages, "returns": self._policy.value_head.normalizer.normalize(returns)}
        reference = None if pretrained is None else pretrained.log_probs(rollout)
        acts = settings.learns_policy(iteration)
        lines: list[dict[str, float]] = []
        for sequences in self._order(rollout):
            batch = _gathered(rollout, targets, reference, sequences)
            loss, figures = self._losses(batch, iteration) if acts else self._value_loss(batch)
            lines.append(figures | {"gradient_norm": self._step(loss, len(lines))})
        means = {name: sum(line[name] for line in lines) / len(lines) for name in lines[0]}
        return means | {
            "explained_variance": explained_variance(rollout.values, returns),
            "kl_coefficient": settings.kl_coefficient_at(iteration),
            "mean_return": float(returns.mean()),
        }

    def _order(self, rollout: Rollout) -> Iterator[Sequences]:
        """Chunks of each update: each chunk once per pass, in random order."""
        chunks = len(rollout.memories)
        for _ in range(self._settings.passes):
            order = torch.randperm(len(rollout.first) * chunks, generator=self._generator).tolist()
            for start in range(0, len(order), self._settings.sequences_per_update):
                chosen = order[start : start + self._settings.sequences_per_update]
                yield [divmod(number, chunks) for number in chosen]

    def _losses(self, batch: dict[str, Any], iteration: int) -> tuple[Tensor, dict[str, float]]:
        settings, policy = self._settings, self._policy
        found, values, _ = look(policy, batch["frames"], batch["first"], batch["memory"])
        clipped = clipped_objective(
            policy.log_prob(found, batch), batch["log_probs"], batch["advantages"], settings.clip
        )
        value_loss = functional.mse_loss(values, batch["returns"])
        entropy = policy.entropy(found).mean()
        loss = clipped.loss + settings.value_coefficient * value_loss - settings.entropy_coefficient * entropy
        figures = {
            "policy_loss": clipped.loss, "value_loss": value_loss, "entropy": entropy,
            "clip_share": clipped.clip_share, "kl_to_behavior": clipped.kl_to_behavior,
        }  # fmt: skip
        if "reference" in batch:
            kl = policy.kl(batch["reference"], found).mean()
            loss = loss + settings.kl_coefficient_at(iteration) * kl
            figures["kl_to_pretrained"] = kl
        return loss, {"loss": float(loss.detach()), **{name: float(part.detach()) for name, part in figures.items()}}

    def _value_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The loss of the value head alone; the trunk gets no gradient."""
        with torch.no_grad():
            latent, _ = self._policy.net(batch["frames"], batch["first"], as_state(batch["memory"]))
        loss = functional.mse_loss(self._policy.value_head(latent)[..., 0], batch["returns"])
        return loss, {"loss": float(loss.detach()), "value_loss": float(loss.detach())}

    def _step(self, loss: Tensor, number: int) -> float:
        """Make the update; returns the norm of the gradients before they were scaled down."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self._learns, self._settings.max_gradient_norm))
        if not math.isfinite(norm):
            raise PPOError(
                f"update {number + 1} of the iteration: loss {float(loss)}, gradient norm {norm}; the weights were not "
                "changed by it. Lower optimizer.learning_rate, and resume"
            )
        self._optimizer.step()
        return norm

    def to_plain(self) -> dict[str, Any]:
        """State of the generator; the optimizer's is saved separately."""
        return {"generator": self._generator.get_state()}

    def restore(self, plain: dict[str, Any]) -> None:
        """Inverse of ``to_plain``."""
        self._generator.set_state(plain["generator"])


def _gathered(
    rollout: Rollout, targets: dict[str, Tensor], reference: dict[str, Tensor] | None, sequences: Sequences
) -> dict[str, Any]:
    """The data of S chunks for an update: (S, t, ...) by name, and the memory of S rows."""
    device = rollout.log_probs.device

    def chosen(part: Tensor) -> Tensor:
        return torch.stack([part[row, rollout.chunk(number)] for row, number in sequences]).to(device)

    parts = {
        "frames": rollout.frames, "first": rollout.first, "log_probs": rollout.log_probs, **rollout.actions, **targets,
    }  # fmt: skip
    batch: dict[str, Any] = {name: chosen(part) for name, part in parts.items()}
    if reference is not None:
        batch["reference"] = {name: chosen(part) for name, part in reference.items()}
    batch["memory"] = {
        name: torch.stack([rollout.memories[number][name][row] for row, number in sequences])
        for name in rollout.memories[0]
    }
    return batch
