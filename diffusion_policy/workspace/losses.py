"""The loss of one batch: its random numbers, the weights of steps and dimensions, and the module that DDP wraps.

The random numbers are a function of seed and batch, the same for any number of processes: each process draws those of
the whole batch and keeps the ones of its share.

Legend of shapes: B batch, T horizon, Da action width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional

from diffusion_policy.model.normalizer import LinearNormalizer
from diffusion_policy.policy.contract import PolicyModule
from diffusion_policy.spec import GRIPPER_CLOSED, GRIPPER_OPEN
from diffusion_policy.spec.action_layout import is_gripper_name
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.batches import NOISE, Batch, derived_seed

logger = logging.getLogger(__name__)

GRIPPER_THRESHOLD = (GRIPPER_OPEN + GRIPPER_CLOSED) / 2
HIDDEN_GRIPPER = GRIPPER_THRESHOLD  # neither open nor closed


@dataclass(frozen=True)
class BatchNoise:
    """Random numbers of one process's share of a batch.

    Attributes:
        sampled: (B, ...) each, the random numbers of the policy's own loss, see `Policy.draw`.
        hidden: (B,) uniform in [0, 1); windows whose number is below `observation_dropout.gripper` are hidden.
        low_dim: (B, K) the same for each key of `observation_dropout.low_dim`.
    """

    sampled: Mapping[str, Tensor]
    hidden: Tensor
    low_dim: Tensor


class NoiseSampler:
    """Draws the random numbers of batches for one policy, on its device.

    Args:
        policy: draws the random numbers of its own loss.
        seed: seed of the run.
        stream: stream number of `derived_seed`; streams are independent.
        n_low_dim: K, keys of `observation_dropout.low_dim`.
    """

    def __init__(self, policy: PolicyModule, seed: int, stream: int = NOISE, n_low_dim: int = 0):
        self._draw = policy.draw
        self._seed, self._stream, self._device, self._n_low_dim = seed, stream, policy.device, n_low_dim
        self._generator = torch.Generator(policy.device)

    def draw(self, batch: Batch, *key: int) -> BatchNoise:
        """Draw the random numbers of this process's share of a batch; `key` (such as epoch, batch) identifies it."""
        n, generator, device = len(batch.indices), self._generator, self._device
        generator.manual_seed(derived_seed(self._seed, self._stream, *key))
        sampled = self._draw(n, generator)
        hidden = torch.rand(n, generator=generator, device=device)
        low_dim = torch.rand((n, self._n_low_dim), generator=generator, device=device)
        share = batch.share or range(1)
        if len(share) < n:
            rows = slice(share[0], None, share[1] - share[0]) if len(share) > 1 else slice(share[0], share[0] + 1)
            sampled = {name: numbers[rows] for name, numbers in sampled.items()}
            hidden, low_dim = hidden[rows], low_dim[rows]
        return BatchNoise(sampled, hidden, low_dim)


class BatchLoss(nn.Module):
    """Loss of a policy on a batch, as a module: DDP and torch.compile act on its forward.

    Args:
        policy: the live policy.
        weights: `loss` of the config: weights of the gripper and of the steps around its changes.
        dropout: `observation_dropout` of the config: how often the observed gripper, and other low-dimensional keys,
            are hidden.
        fitted: statistics of the dataset; a hidden key is set to the middle of its range. None: the policy's.

    Raises:
        TrainingError: negative weights, settings for a gripper that the task does not have, or a dropout share
            for a key that is not low-dimensional.
    """

    def __init__(
        self,
        policy: PolicyModule,
        weights: DictConfig,
        dropout: DictConfig,
        fitted: LinearNormalizer | None = None,
    ):
        super().__init__()
        self.policy = policy
        self.gripper_weight, self.event_weight = float(weights.gripper_weight), float(weights.event_weight)
        self.event_radius = int(weights.event_radius)
        self.hide_share, self.hide_key = float(dropout.gripper), str(dropout.key)
        shares = OmegaConf.select(dropout, "low_dim", default=None) or {}
        self.low_dim = {str(key): float(shares[key]) for key in sorted(shares)}
        self._grippers = _grippers(policy.spec.action_names)
        self._check(policy.spec.action_names)
        self._hidden = _gripper_mask(policy, self.hide_key) if self.hide_share else None
        self._middles = {key: _middle(fitted or policy.normalizer, key).to(policy.device) for key in self.low_dim}

    def _check(self, names: tuple[str, ...]) -> None:
        if min(self.gripper_weight, self.event_weight) < 0 or self.event_radius < 0:
            raise TrainingError(
                f"loss.gripper_weight {self.gripper_weight}, loss.event_weight {self.event_weight} and "
                f"loss.event_radius {self.event_radius} must not be negative"
            )
        if not 0 <= self.hide_share <= 1:
            raise TrainingError(f"observation_dropout.gripper is {self.hide_share}; expected a share from 0 to 1")
        known = [field.key for field in self.policy.spec.low_dim]
        for key, share in self.low_dim.items():
            if key not in known or not 0 <= share <= 1:
                raise TrainingError(
                    f"observation_dropout.low_dim.{key} is {share}; expected a share from 0 to 1 for one of "
                    f"{', '.join(known)}"
                )
        if self.weighted and not self._grippers:
            raise TrainingError(f"loss weights the gripper, but actions are {list(names)}; set loss=plain")
        why_not = self.policy.lacks("loss_weights") if self.weighted else None
        if why_not is not None:
            raise TrainingError(f"loss weights need a policy that denoises only actions; for this one {why_not}")
        if self.hide_share:
            self.policy.spec.field(self.hide_key)

    memory: Mapping[str, Any] = {}  # nothing is carried over between batches

    def at_update(self, global_step: int) -> None:
        """Does nothing: all updates are alike."""

    def announced(self) -> BatchLoss:
        """Log the weights; returns self."""
        if self.weighted:
            logger.info(
                "train_loss counts the gripper %g times and steps near its changes %g times; losses before the "
                "first update and on held-out windows count all equally, so they are smaller",
                self.gripper_weight, self.event_weight,
            )  # fmt: skip
        return self

    @property
    def weighted(self) -> bool:
        """Whether any weight differs from 1."""
        return (self.gripper_weight, self.event_weight) != (1.0, 1.0)

    def forward(
        self, data: Mapping[str, Any], sampled: Mapping[str, Tensor], hidden: Tensor, low_dim: Tensor | None = None
    ) -> Tensor:
        """Mean loss of the windows in `data`, a scalar; the random numbers are the fields of a `BatchNoise`."""
        if self.low_dim:
            assert low_dim is not None
            data = {**data, "obs": self._hide_low_dim(data["obs"], low_dim)}
        if self.hide_share:
            data = {**data, "obs": self._hide_gripper(data["obs"], hidden)}
        weights = self.weights_of(data["action"]) if self.weighted else None
        return self.policy.loss(data, sampled, weights)

    def _hide_gripper(self, obs: Mapping[str, Tensor], hidden: Tensor) -> dict[str, Tensor]:
        observed = obs[self.hide_key]
        hide = (hidden < self.hide_share).view(-1, *(1,) * (observed.ndim - 1))
        if self._hidden is not None:
            hide = hide & self._hidden
        return {**obs, self.hide_key: observed.masked_fill(hide, HIDDEN_GRIPPER)}

    def _hide_low_dim(self, obs: Mapping[str, Tensor], drawn: Tensor) -> dict[str, Tensor]:
        hidden = dict(obs)
        for column, (key, share) in enumerate(self.low_dim.items()):
            hide = (drawn[:, column] < share).view(-1, *(1,) * (obs[key].ndim - 1))
            hidden[key] = torch.where(hide, self._middles[key], obs[key])
        return hidden

    def weights_of(self, action: Tensor) -> Tensor:
        """(B, T, Da) weight of each number of these actions in the loss."""
        weights = torch.ones_like(action)
        changes = [near_gripper_change(action[..., gripper], self.event_radius) for gripper in self._grippers]
        near = torch.stack(changes).any(dim=0)
        weights = weights * torch.where(near, self.event_weight, 1.0)[..., None]
        weights[..., self._grippers] *= self.gripper_weight
        return weights


def _grippers(names: tuple[str, ...]) -> list[int]:
    """Columns of a vector's grippers."""
    return [column for column, name in enumerate(names) if is_gripper_name(name)]


def _gripper_mask(policy: PolicyModule, key: str) -> Tensor | None:
    """(D,) bool of the grippers among other numbers of a key; None if the whole key is hidden."""
    names = policy.spec.field(key).names
    grippers = _grippers(names)
    if len(grippers) in (0, len(names)):
        return None
    return torch.tensor([column in grippers for column in range(len(names))], device=policy.device)


def _middle(normalizer: LinearNormalizer, key: str) -> Tensor:
    """(D,) middle of the range of a key."""
    statistics = normalizer[key].get_input_stats()
    return ((statistics["min"] + statistics["max"]) / 2).detach()


def near_gripper_change(gripper: Tensor, radius: int) -> Tensor:
    """(B, T) bool: which steps are within `radius` of a change of the gripper command (B, T)."""
    is_open = gripper > GRIPPER_THRESHOLD
    changed = functional.pad(is_open[:, 1:] != is_open[:, :-1], (1, 0)).to(gripper.dtype)
    return functional.max_pool1d(changed[:, None], 2 * radius + 1, stride=1, padding=radius)[:, 0] > 0
