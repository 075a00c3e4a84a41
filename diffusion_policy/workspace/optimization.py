"""Optimizer: parameter groups, stages, and an optimizer step that never waits for the device.

An update whose gradients are not finite is skipped on the device itself (`found_inf` of the fused optimizer), so
weights stay intact although the host only learns of it when it next reads the losses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.policy.contract import PolicyModule
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.param_groups import (
    KINDS,
    OldSlots,
    Role,
    Stage,
    parameter_roles,
    read_stages,
    split_groups,
    stage_at,
)
from diffusion_policy.workspace.schedule import make_schedule as make_schedule

Groups = list[dict[str, Any]]


def roles_of(policy: nn.Module, ledger: Ledger | None) -> dict[str, Role]:
    """The role of each parameter: inherited, grown or fresh; without a ledger all are fresh."""
    if ledger is not None:
        return parameter_roles(ledger, policy)
    return {name: Role("fresh") for name, parameter in policy.named_parameters() if parameter.requires_grad}


def make_optimizer(
    policy: PolicyModule,
    settings: DictConfig,
    rates: DictConfig,
    roles: Mapping[str, Role],
) -> torch.optim.Adam:
    """AdamW over the policy's parameter groups, split where learning rates differ.

    Args:
        policy: whose parameters learn.
        settings: `optimizer` of the config; with `decoupled_weight_decay: false` weight decay is part of the gradient
            (L2, torch's Adam).
        rates: `learning_rates` of the config: factors by kind and of the observation encoder, and the decay by layer.
        roles: from `roles_of`.
    """
    groups: Groups = policy.parameter_groups(settings)
    rate = groups[0]["lr"]
    encoder = {id(parameter) for parameter in policy.encoder_parameters()}
    if rates.obs_encoder != 1.0:
        groups = _split_at(groups, encoder)
    factors = {kind: float(rates[kind]) for kind in KINDS}
    if len(set(factors.values())) > 1:
        groups = split_groups(groups, policy, roles, {kind: rate * factor for kind, factor in factors.items()})
    else:
        groups = [{**group, "lr": rate * factors["inherited"]} for group in groups]
    if rates.layer_decay != 1.0:
        groups = split_by_layer(groups, policy, float(rates.layer_decay))
    for group in groups:
        if rates.obs_encoder != 1.0 and id(group["params"][0]) in encoder:
            group["lr"] *= rates.obs_encoder
    kind = torch.optim.AdamW if settings.get("decoupled_weight_decay", True) else torch.optim.Adam
    return kind(groups, lr=rate, betas=groups[0]["betas"], fused=True)


def _split_at(groups: Groups, encoder: Collection[int]) -> Groups:
    """Split groups so that none mixes parameters of the observation encoder with others."""
    split: Groups = []
    for group in groups:
        for of_encoder in (False, True):
            parameters = [p for p in group["params"] if (id(p) in encoder) == of_encoder]
            split += [{**group, "params": parameters}] if parameters else []
    return split


def split_by_layer(groups: Groups, policy: PolicyModule, decay: float) -> Groups:
    """Multiply learning rates by decay ** (layers between a parameter and the policy's answer)."""
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    split: Groups = []
    for group in groups:
        by_distance: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_distance.setdefault(policy.layers_above(names[id(parameter)]), []).append(parameter)
        for steps, parameters in sorted(by_distance.items()):
            split.append({**group, "params": parameters, "lr": group["lr"] * decay**steps})
    return split


class Stages:
    """Which parameters learn at which update (`stages` of the config).

    Parameters that do not learn have their gradient dropped before the step. They keep `requires_grad`: the EMA copies
    parameters without it verbatim, and would lose their average.
    """

    def __init__(
        self,
        entries: Sequence[Any],
        policy: nn.Module,
        roles: Mapping[str, Role],
        optimizer: torch.optim.Optimizer,
    ):
        plain = OmegaConf.to_container(entries) if OmegaConf.is_list(entries) else list(entries)
        assert isinstance(plain, list)
        self._stages: tuple[Stage, ...] = read_stages(plain)
        self._optimizer = optimizer
        self._old_slots = OldSlots.of(policy, roles)
        self._kind = {p: roles[name].kind for name, p in policy.named_parameters() if name in roles}
        self._frozen: list[nn.Parameter] = []
        self.learn: frozenset[str] = frozenset()
        kinds = set(self._kind.values())
        for stage in self._stages:
            if not kinds & stage.learn:
                raise TrainingError(
                    f"the stage from update {stage.start} on trains {sorted(stage.learn)} parameters, but the model "
                    f"has only {sorted(kinds)} ones"
                )

    def enter(self, global_step: int) -> bool:
        """Switch to the stage of that update; returns whether a stage of the config begins."""
        learn = stage_at(self._stages, global_step).learn
        if learn == self.learn:
            return False
        self.learn = learn
        self._frozen = [parameter for parameter, kind in self._kind.items() if kind not in learn]
        if not self._frozen or "grown" not in learn or "inherited" in learn:
            self._old_slots.release()
        else:
            self._old_slots.freeze(self._optimizer)
        return bool(self._stages)

    def drop_gradients(self) -> None:
        """Before the step: drop the gradient of frozen parameters, so neither momentum nor weight decay moves them."""
        for parameter in self._frozen:
            parameter.grad = None


def step_if_finite(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], max_norm: float | None = None
) -> Tensor:
    """Make the update unless its gradients hold NaN or infinity, without waiting for the device.

    Args:
        optimizer: makes the update.
        parameters: whose gradients count.
        max_norm: longer gradients are scaled to this norm; None: no scaling.

    Returns:
        The norm of all gradients before they are scaled, a scalar on the device; not finite if nothing was updated.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    optimizer.found_inf = (~torch.isfinite(norm)).to(torch.float32)  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
