"""The loss of policies with a memory: behavior cloning over sequences, and the pull towards the pretrained policy.

Gradients run through a chunk and end where it begins: the memory that was carried there is detached (truncated
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
    """Mean over the frames that count of -log p of the recorded action, and of the KL divergence; as a module.

    With the interface of `BatchLoss`; random numbers are not taken.

    Args:
        policy: the live policy.
        cfg: of the run, whose `cloning` counts.
        rows: R.
        reference: the pretrained policy, frozen; None: no pull towards it.

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
        """The next update is the one after so many: the KL's weight decays with them."""
        self._pull = self._kl_weight * self._kl_decay**global_step

    def restore(self, memory: Mapping[str, PolicyMemory]) -> None:
        """Go on with the memory of a run that was saved.

        Raises:
            TrainingError: it is that of other batches, or of another policy.
        """
        found, own = ({of: {n: tuple(t.shape) for n, t in part.items()} for of, part in m.items()}
                      for m in (memory, self.memory))  # fmt: skip
        if found != own:
            raise TrainingError(
                "the memory in the checkpoint is not that of this run's rows (dataloader.batch_size, policy, "
                "cloning.kl.weight); resume with the settings of the run"
            )
        device = self.policy.device
        self.memory = {of: {name: t.to(device) for name, t in part.items()} for of, part in memory.items()}

    def forward(
        self, data: Mapping[str, Any], sampled: Mapping[str, Tensor], hidden: Tensor, low_dim: Tensor | None = None
    ) -> Tensor:
        """The loss of the next chunk, a scalar; the memory moves on."""
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
    """The same policy, as one with a memory."""
    if not isinstance(policy, RecurrentPolicy):
        raise TrainingError(f"{type(policy).__name__} has no memory; sequences train a policy that has one")
    return policy


def _refuse_windows_settings(cfg: DictConfig) -> None:
    """Refuse settings that only policies of windows know, rather than pass over them."""
    loss, dropout = cfg.loss, cfg.observation_dropout
    if (loss.gripper_weight, loss.event_weight) != (1.0, 1.0):
        raise TrainingError("loss weighs a gripper, and this policy's action has none; set loss=plain")
    if dropout.gripper or OmegaConf.select(dropout, "low_dim"):
        raise TrainingError("observation_dropout hides states, and this policy sees frames only; set it to none")


def detached(memory: PolicyMemory) -> PolicyMemory:
    """The same numbers, through which no gradient runs."""
    return {name: part.detach() for name, part in memory.items()}


def reference_policy(cfg: DictConfig, built: PolicyModule, provenance: Mapping[str, Any]) -> PolicyModule:
    """The pretrained policy as the run began with it, frozen: to it `cloning.kl` pulls.

    Args:
        cfg: of the run.
        built: a copy of the policy as it was built, before weights were loaded; it becomes the reference.
        provenance: of the run, which names the pretrained file by its hash.

    Raises:
        TrainingError: there is none, or it is another file than the run began with.
        WorkspaceError: it does not open or fit.
    """
    path, begun = cfg.pretrained.path, provenance.get("pretrained")
    if begun is None or path is None:
        raise TrainingError(
            f"cloning.kl.weight is {cfg.cloning.kl.weight}, but the run begins from scratch: there is no pretrained "
            "policy to stay near; set pretrained.path, or cloning.kl.weight=0"
        )
    file = local_copy(path)
    if not file.is_file() or file_sha256(file) != begun["sha256"]:
        raise TrainingError(
            f"pretrained.path={path} is not the file that the run began with ({begun['name']}, SHA-256 "
            f"{begun['sha256'][:12]}...), to which cloning.kl pulls; put that one back"
        )
    load_pretrained(file, cfg, built, None)
    return built.to(find_device(cfg.training.device)).eval().requires_grad_(requires_grad=False)
