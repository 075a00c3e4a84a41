"""What the ledger means for training: which parameters are inherited, grown or fresh, and which learn when and how
fast.

A grown tensor is one parameter with old and new slots, so learning rates and freezing cannot be set per parameter
alone: `OldSlots` holds the old slots fixed while the new ones learn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.adapt.slots import SlotMap

Kind = Literal["inherited", "grown", "fresh"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ROLE_OF = {"copied": "inherited", "recomputed": "inherited", "grown": "grown", "fresh": "fresh"}


@dataclass(frozen=True)
class Role:
    """Where one parameter's numbers came from.

    Attributes:
        kind: inherited, grown or fresh.
        slots: for a grown parameter, the axes along which it has new slots.
    """

    kind: Kind
    slots: tuple[SlotMap, ...] = ()

    def new_mask(self, shape: Sequence[int]) -> Tensor:
        """bool tensor of that shape, True where numbers are new: everywhere if fresh, nowhere if inherited."""
        if self.kind != "grown":
            return torch.full(tuple(shape), self.kind == "fresh")
        old = torch.ones(tuple(shape), dtype=torch.bool)
        for slot in self.slots:
            for index in slot.new:
                old.select(slot.axis, index).zero_()
        return ~old


def parameter_roles(ledger: Ledger, model: nn.Module, part: str = "model") -> dict[str, Role]:
    """The role of each trainable parameter of a model, by its name in `named_parameters`.

    Raises:
        AdaptError: the ledger does not account for a parameter, so it is not this model's.
    """
    rows = {entry.target.key: entry for entry in ledger.of(part=part) if entry.target is not None}
    roles: dict[str, Role] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name not in rows:
            raise AdaptError(f"the ledger's {part} has no row for parameter {name!r}; it belongs to another model")
        entry = rows[name]
        grown = entry.action == "grown" and any(slot.new for slot in entry.slots)
        kind = ROLE_OF[entry.action] if entry.action != "grown" or grown else "inherited"
        roles[name] = Role(kind, entry.slots if grown else ())  # type: ignore[arg-type]
    return roles


def split_groups(
    groups: Iterable[Mapping[str, Any]],
    model: nn.Module,
    roles: Mapping[str, Role],
    learning_rates: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Split an optimizer's parameter groups by role, each with its own learning rate.

    Args:
        groups: as torch optimizers take them, with "params" and options such as "weight_decay".
        model: whose parameters they hold.
        roles: from `parameter_roles`.
        learning_rates: kind -> learning rate; kinds not named keep the optimizer's.

    Returns:
        Groups with the same options, a "role", and "lr" if one is given; empty ones are left out.
    """
    _check_kinds(learning_rates, "learning rates")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    split: list[dict[str, Any]] = []
    for group in groups:
        for kind in KINDS:
            params = [p for p in group["params"] if id(p) in names and _kind(roles, names[id(p)]) == kind]
            if params:
                rate = {"lr": learning_rates[kind]} if kind in learning_rates else {}
                split.append({**group, "params": params, "role": kind, **rate})
    return split


@dataclass
class OldSlots:
    """Holds the old slots of grown parameters fixed while their new slots learn.

    The gradient of old slots is zeroed before the step, so neither the optimizer's moments nor the gradient's norm see
    it, and their values are put back after it, since weight decay moves numbers without a gradient too.
    """

    parameters: dict[str, nn.Parameter]
    masks: dict[str, Tensor]
    handles: list[RemovableHandle] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, roles: Mapping[str, Role]) -> OldSlots:
        """The grown parameters of a model."""
        grown = {name: p for name, p in model.named_parameters() if name in roles and roles[name].kind == "grown"}
        masks = {name: roles[name].new_mask(p.shape).to(p.device) for name, p in grown.items()}
        return cls(grown, masks)

    def freeze(self, optimizer: Optimizer) -> None:
        """Hold them fixed from now on, until `release`."""
        if self.handles:
            return
        for name, parameter in self.parameters.items():
            self.handles.append(parameter.register_hook(lambda grad, new=self.masks[name]: grad * new))
        kept = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

        def put_back(*_: object) -> None:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(torch.where(self.masks[name], parameter, kept[name]))

        self.handles.append(optimizer.register_step_post_hook(put_back))

    def release(self) -> None:
        """Let all slots learn."""
        while self.handles:
            self.handles.pop().remove()


@dataclass(frozen=True)
class Stage:
    """Which parameters learn from one step on.

    Attributes:
        start: first global step of the stage.
        learn: kinds whose parameters change; old slots of grown ones only change if "inherited" is among them.
    """

    start: int
    learn: frozenset[str]


def read_stages(entries: Sequence[Mapping[str, Any]]) -> tuple[Stage, ...]:
    """Read ``[{steps: 1000, learn: [grown, fresh]}, {learn: [inherited, grown, fresh]}]``; the last has no `steps`.

    Raises:
        AdaptError: an entry is not of that form.
    """
    stages: list[Stage] = []
    start = 0
    for number, entry in enumerate(entries):
        learn = entry.get("learn")
        if set(entry) - {"steps", "learn"} or not isinstance(learn, Sequence) or isinstance(learn, str) or not learn:
            raise AdaptError(f"training stage {number} is {dict(entry)}; expected steps and learn: [kinds]")
        _check_kinds(learn, f"training stage {number}")
        stages.append(Stage(start, frozenset(learn)))
        steps, last = entry.get("steps"), number == len(entries) - 1
        if (steps is None) != last or not (last or (isinstance(steps, int) and steps > 0)):
            raise AdaptError(f"training stage {number}: steps is {steps!r}; all but the last need a positive number")
        start += steps or 0
    return tuple(stages)


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """The stage that a global step falls into; everything learns if there are none."""
    begun = [stage for stage in stages if stage.start <= step]
    return begun[-1] if begun else Stage(0, frozenset(KINDS))


def _kind(roles: Mapping[str, Role], name: str) -> Kind:
    return roles[name].kind if name in roles else "inherited"


def _check_kinds(kinds: Iterable[str], where: str) -> None:
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise AdaptError(f"{where}: {unknown} are not kinds of parameters; expected {', '.join(KINDS)}")
