"""How weights change: parameter groups, stages, and one update that never waits for the device.

An update whose gradients are not finite is left out on the device itself (`found_inf` of the fused optimiser), so
weights stay whole although the host only learns of it when it next looks at the losses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.adapt.param_groups import (
    KINDS,
    OldSlots,
    Role,
    Stage,
    parameter_roles,
    read_stages,
    split_groups,
    stage_at,
)
from diffusion_policy.policy.diffusion_transformer_hybrid_image_policy import DiffusionTransformerHybridImagePolicy
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.schedule import make_schedule as make_schedule

Groups = list[dict[str, Any]]


def roles_of(policy: nn.Module, ledger: Ledger | None) -> dict[str, Role]:
    """Which parameters are inherited, grown and fresh; all fresh without a ledger."""
    if ledger is not None:
        return parameter_roles(ledger, policy)
    return {name: Role("fresh") for name, parameter in policy.named_parameters() if parameter.requires_grad}


def make_optimizer(
    policy: DiffusionTransformerHybridImagePolicy,
    settings: DictConfig,
    rates: DictConfig,
    roles: Mapping[str, Role],
) -> torch.optim.AdamW:
    """AdamW over the reference's parameter groups, split where learning rates differ.

    Args:
        policy: whose parameters learn.
        settings: `optimizer` of the config.
        rates: `learning_rates` of the config: factors by kind and of the observation encoder, and the decay by layer.
        roles: from `roles_of`.
    """
    base = policy.get_optimizer(
        transformer_weight_decay=settings.transformer_weight_decay,
        obs_encoder_weight_decay=settings.obs_encoder_weight_decay,
        learning_rate=settings.learning_rate,
        betas=tuple(settings.betas),
    )
    groups: Groups = [{"params": g["params"], "weight_decay": g["weight_decay"]} for g in base.param_groups]
    factors = {kind: float(rates[kind]) for kind in KINDS}
    if len(set(factors.values())) > 1:
        groups = split_groups(
            groups, policy, roles, {kind: settings.learning_rate * factor for kind, factor in factors.items()}
        )
    else:
        groups = [{**group, "lr": settings.learning_rate * factors["inherited"]} for group in groups]
    if rates.layer_decay != 1.0:
        groups = split_by_layer(groups, policy, float(rates.layer_decay))
    encoder = {id(parameter) for parameter in policy.obs_encoder.parameters()}
    for group in groups:
        if id(group["params"][0]) in encoder:  # no group holds parameters of both
            group["lr"] *= rates.obs_encoder
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=tuple(settings.betas), fused=True)


_LAYER = re.compile(r"^model\.(?:decoder|encoder)\.layers\.(\d+)\.")
_TOP = ("model.ln_f.", "model.head.")


def split_by_layer(groups: Groups, policy: nn.Module, decay: float) -> Groups:
    """Multiply learning rates by decay ** (layers between a parameter and the head).

    The top layer has distance 0 like the head itself; embeddings, the condition's encoder and the observation encoder
    lie below all layers.
    """
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    layers = {name: int(match[1]) for name in names.values() if (match := _LAYER.match(name))}
    n_layers = max(layers.values(), default=-1) + 1

    def distance(name: str) -> int:
        return 0 if name.startswith(_TOP) else n_layers - 1 - layers[name] if name in layers else n_layers

    split: Groups = []
    for group in groups:
        by_distance: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_distance.setdefault(distance(names[id(parameter)]), []).append(parameter)
        for steps, parameters in sorted(by_distance.items()):
            split.append({**group, "params": parameters, "lr": group["lr"] * decay**steps})
    return split


class Stages:
    """Who learns at which update (`stages` of the config).

    What does not learn has its gradient dropped before the step. It keeps `requires_grad`: the EMA copies parameters
    without it, and would lose its own average of them.
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
        self._resting: list[nn.Parameter] = []
        self.learn: frozenset[str] = frozenset()
        kinds = set(self._kind.values())
        for stage in self._stages:
            if not kinds & stage.learn:
                raise TrainingError(
                    f"the stage from update {stage.start} on trains {sorted(stage.learn)} parameters, but the model "
                    f"has only {sorted(kinds)} ones"
                )

    def enter(self, global_step: int) -> bool:
        """Make the stage of that update the present one; whether a stage of the config begins."""
        learn = stage_at(self._stages, global_step).learn
        if learn == self.learn:
            return False
        self.learn = learn
        self._resting = [parameter for parameter, kind in self._kind.items() if kind not in learn]
        if not self._resting or "grown" not in learn or "inherited" in learn:
            self._old_slots.release()
        else:
            self._old_slots.freeze(self._optimizer)
        return bool(self._stages)

    def drop_gradients(self) -> None:
        """Before the step: parameters at rest get no gradient, so neither momentum nor weight decay moves them."""
        for parameter in self._resting:
            parameter.grad = None


def step_if_finite(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Make the update unless its gradients hold NaN or infinity, without waiting for the device.

    Returns:
        The norm of all gradients, a scalar on the device; not finite if nothing was updated.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    optimizer.found_inf = (~torch.isfinite(norm)).to(torch.float32)  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
