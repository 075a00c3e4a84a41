"""The loss of policies with memory: behavior cloning over sequences, and a pull toward the pretrained policy.

Gradients flow through a chunk and stop at its beginning: the memory carried into it is detached (truncated
backpropagation through time). The memory is part of the run's state.

Legend of shapes: R rows, T frames, Da action width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from diffusion_policy.adapt.starting_point import load_pretrained
from diffusion_policy.hub import local_copy
from diffusion_policy.policy.contract import PolicyMemory, PolicyModule, RecurrentPolicy
from diffusion_policy.policy.sequences import divergence, mean_of_valid, total_surprise
from diffusion_policy.storage import file_sha256
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.processes import find_device


class SequenceLoss(nn.Module):
    """Mean over the valid frames of -log p of the recorded action, plus the KL divergence; as a module.

    It has the interface of `BatchLoss`, but uses no random numbers.

    Args:
        policy: the live policy.
        cfg: of the run; its section `cloning` is used.
        rows: R.
        reference: the pretrained policy, frozen; None: no pull toward it.

    Attributes:
        memory: of the policy and of the reference after the last chunk, detached.
    """

    low_dim: Mapping[str, float] = {}

    def __init__(self, policy: PolicyModule, cfg: DictConfig, rows: int, reference: PolicyModule | None = None) -> None:
        super().__init__()
        _refuse_windows_settings(cfg)
        settings = cfg.cloning
        self.policy, self._recurrent = policy, recurrent(policy)
        self._null_weight = float(settings.null_action_weight)
        self._kl_weight, self._kl_decay = float(settings.kl.weight), float(settings.kl.decay)
        if self._null_weight < 0 or self._kl_weight < 0 or not 0 < self._kl_decay <= 1:
            raise TrainingError(
                f"cloning.null_action_weight {self._null_weight}, cloning.kl.weight {self._kl_weight} and "
                f"cloning.kl.decay {self._kl_decay}; expected at least 0, at least 0, and above 0 up to 1"
            )
        self.memory: dict[str, PolicyMemory] = {"policy": self._recurrent.initial_memory(rows)}
        self._reference = None if reference is None else recurrent(reference)
        if self._reference is not None:
            self.memory["reference"] = self._reference.initial_memory(rows)
        self._pull = self._kl_weight
        nothing, starts = torch.zeros(1, 1, policy.spec.action_dim), torch.ones(1, 1, dtype=torch.bool)
        self._null, _ = self._recurrent.classes_of(nothing, starts, self._recurrent.initial_memory(1))

    def at_update(self, global_step: int) -> None:
        """Set the number of updates made, with which the KL's weight decays."""
        self._pull = self._kl_weight * self._kl_decay**global_step

    def restore(self, memory: Mapping[str, PolicyMemory]) -> None:
        """Continue with the memory of a saved run.

        Raises:
            TrainingError: it belongs to other batches, or to another policy.
        """
        found, own = ({of: {n: tuple(t.shape) for n, t in part.items()} for of, part in m.items()}
                      for m in (memory, self.memory))  # fmt: skip
        if found != own:
            raise TrainingError(
                "the memory in the checkpoint does not match this run's rows (dataloader.batch_size, policy, "
                "cloning.kl.weight); resume with the settings of the run"
            )
        device = self.policy.device
        self.memory = {of: {name: t.to(device) for name, t in part.items()} for of, part in memory.items()}

    def forward(
        self, data: Mapping[str, Any], sampled: Mapping[str, Tensor], hidden: Tensor, low_dim: Tensor | None = None
    ) -> Tensor:
        """The loss of the next chunk, a scalar; advances the memory."""
        policy, first, valid = self._recurrent, data["first"], data["valid"]
        found, memory = policy.log_probabilities(data["obs"], first, self.memory["policy"])
        classes, memory = policy.classes_of(data["action"], first, memory)
        losses = total_surprise(found, classes)
        if self._null_weight != 1.0:
            is_null = torch.stack([part == self._null[name] for name, part in classes.items()]).all(dim=0)
            losses = torch.where(is_null, self._null_weight * losses, losses)
        self.memory = {**self.memory, "policy": detached(memory)}
        loss = mean_of_valid(losses, valid)
        if self._reference is None:
            return loss
        return loss + self._pull * mean_of_valid(self._kl(self._reference, data, found), valid)

    def _kl(self, reference: RecurrentPolicy, data: Mapping[str, Any], found: Mapping[str, Tensor]) -> Tensor:
        """(R, T) divergence of the pretrained policy from the live one."""
        with torch.no_grad():
            before, memory = reference.log_probabilities(data["obs"], data["first"], self.memory["reference"])
        self.memory = {**self.memory, "reference": detached(memory)}
        return divergence(before, found)


def recurrent(policy: PolicyModule) -> RecurrentPolicy:
    """The same policy, typed as one with memory."""
    if not isinstance(policy, RecurrentPolicy):
        raise TrainingError(f"{type(policy).__name__} has no memory; sequences can only train a policy with memory")
    return policy


def _refuse_windows_settings(cfg: DictConfig) -> None:
    """Refuse settings that apply only to policies trained on windows, instead of ignoring them."""
    loss, dropout = cfg.loss, cfg.observation_dropout
    if (loss.gripper_weight, loss.event_weight) != (1.0, 1.0):
        raise TrainingError("loss weights a gripper, but this policy's action has none; set loss=plain")
    if dropout.gripper or OmegaConf.select(dropout, "low_dim"):
        raise TrainingError("observation_dropout hides states, but this policy sees only frames; set it to none")


def detached(memory: PolicyMemory) -> PolicyMemory:
    """The same numbers, detached from gradients."""
    return {name: part.detach() for name, part in memory.items()}


def reference_policy(cfg: DictConfig, built: PolicyModule, provenance: Mapping[str, Any]) -> PolicyModule:
    """The pretrained policy that the run started from, frozen; `cloning.kl` pulls toward it.

    Args:
        cfg: of the run.
        built: a copy of the policy before weights were loaded; it becomes the reference.
        provenance: of the run; identifies the pretrained file by its hash.

    Raises:
        TrainingError: there is none, or it is not the file that the run started from.
        WorkspaceError: it does not open or fit.
    """
    path, begun = cfg.pretrained.path, provenance.get("pretrained")
    if begun is None or path is None:
        raise TrainingError(
            f"cloning.kl.weight is {cfg.cloning.kl.weight}, but the run starts from scratch: there is no "
            "pretrained policy to stay near; set pretrained.path, or cloning.kl.weight=0"
        )
    file = local_copy(path)
    if not file.is_file() or file_sha256(file) != begun["sha256"]:
        raise TrainingError(
            f"pretrained.path={path} is not the file that the run started from ({begun['name']}, SHA-256 "
            f"{begun['sha256'][:12]}...), toward which cloning.kl pulls; put that one back"
        )
    load_pretrained(file, cfg, built, None)
    return built.to(find_device(cfg.training.device)).eval().requires_grad_(requires_grad=False)
