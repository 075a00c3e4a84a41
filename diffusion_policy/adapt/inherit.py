"""Loads a checkpoint's weights into the models of a training run: all of them, or an error and unchanged models.

Used where training starts from `pretrained.path`. Live and averaged weights are both planned and filled in memory
before either is loaded. If the checkpoint was adapted and not trained since, the ledger keeps the actions `grown` and
`fresh` of the adaptation, since these parameters are still untrained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.apply import apply_plan
from diffusion_policy.adapt.ledger import Entry, Ledger, merged
from diffusion_policy.adapt.named_axes import NamedAxes, follows_from_config, policy_axes, policy_config
from diffusion_policy.adapt.plan import Plan, PlanError, describe_state, make_plan
from diffusion_policy.adapt.rules import Kind, Rule, Rules
from diffusion_policy.adapt.target import NORMALIZER
from diffusion_policy.checkpoint import Checkpoint
from diffusion_policy.policy.registry import class_of_options, without_place


@dataclass(frozen=True)
class InheritancePlan:
    """Which weights of a checkpoint a run starts from.

    Attributes:
        plans: plan by part of the run, "model" and "ema_model".
        origins: by part of the run, the checkpoint's part that fills it.
        ledger: of all parts.
    """

    plans: Mapping[str, Plan]
    origins: Mapping[str, str]
    ledger: Ledger


def inherit(
    checkpoint: Checkpoint,
    model: nn.Module,
    ema_model: nn.Module | None,
    *,
    min_coverage: float = 1.0,
    recompute: bool = False,
) -> Ledger:
    """Load a checkpoint's weights into a model and its average, as planned by `plan_inheritance`.

    The normalizer's entries, which a freshly built model lacks, are loaded with the weights.

    Args:
        checkpoint: read from the pretrained path.
        model: receives the checkpoint's `model` weights.
        ema_model: receives its `ema_model` weights, or the `model` weights if the file has no averaged ones; None if
            the run keeps no average.
        min_coverage, recompute: see `plan_inheritance`.

    Raises:
        AdaptError: the weights do not fit, or cover too little; both models are unchanged.
    """
    modules = {"model": model} if ema_model is None else {"model": model, "ema_model": ema_model}
    states = {part: module.state_dict() for part, module in modules.items()}
    planned = plan_inheritance(checkpoint, states, min_coverage=min_coverage, recompute=recompute)
    filled = {}
    for part, plan in planned.plans.items():
        source = checkpoint.state_dicts[planned.origins[part]]
        filled[part] = apply_plan(plan, source, _target(states[part], source))
    for part, module in modules.items():
        module.load_state_dict(filled[part])
    return planned.ledger


def plan_inheritance(
    checkpoint: Checkpoint,
    states: Mapping[str, Mapping[str, Tensor]],
    *,
    min_coverage: float = 1.0,
    recompute: bool = False,
) -> InheritancePlan:
    """Decide which weights of a checkpoint a run's models start from, by names and shapes only.

    Args:
        checkpoint: the source checkpoint.
        states: freshly initialized state dict by part of the run; its tensors may be on torch's meta device.
        min_coverage: share of each model's parameters that must come from the file. Below 1, names that are missing or
            do not fit are initialized, and unused names are dropped, each with a row of the ledger.
        recompute: where masks and grids that are computed from the config differ, the run's are used.

    Raises:
        AdaptError: the weights do not fit, or cover too little.
    """
    named_axes = policy_axes(checkpoint.cfg) if "policy" in checkpoint.cfg else NamedAxes()
    drops = _rules_of_class(checkpoint)
    plans: dict[str, Plan] = {}
    origins: dict[str, str] = {}
    for part, state in states.items():
        origin = origins[part] = part if part in checkpoint.state_dicts else "model"
        if origin not in checkpoint.state_dicts:
            raise AdaptError(f"{checkpoint.path} has {list(checkpoint.state_dicts)}; expected the weights 'model'")
        plan = _plan_part(
            checkpoint.state_dicts[origin], state, part, origin, named_axes, min_coverage, recompute, drops
        )
        covered = plan.ledger.coverage(part)
        if covered < min_coverage:
            raise AdaptError(
                f"{checkpoint.path} covers {covered:.2%} of {part}, but {min_coverage:.2%} are required; "
                f"{plan.ledger.summary()}"
            )
        plans[part] = plan
    ledger = merged([_with_history(plan.ledger, part, checkpoint) for part, plan in plans.items()])
    return InheritancePlan(plans, origins, ledger)


def _target(state: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a freshly built model, with the source's normalizer."""
    entries = {key: tensor for key, tensor in source.items() if key.startswith(NORMALIZER)}
    return {**{key: tensor for key, tensor in state.items() if not key.startswith(NORMALIZER)}, **entries}


def _rules_of_class(checkpoint: Checkpoint) -> tuple[Rule, ...]:
    """Rules that drop tensors that files of the checkpoint's class may hold but the policy does not use."""
    if "policy" not in checkpoint.cfg:
        return ()
    tensors = class_of_options(policy_config(checkpoint.cfg)).tensors
    names = (name for state in checkpoint.state_dicts.values() for name in state)
    return tuple(Rule("drop", (glob,), why=why) for glob, why in without_place(names, tensors))


def _plan_part(
    source: Mapping[str, Tensor], state: Mapping[str, Tensor], part: str, origin: str, named_axes: NamedAxes,
    min_coverage: float, recompute: bool, drops: tuple[Rule, ...],
) -> Plan:  # fmt: skip
    source_infos, target_infos = describe_state(source), describe_state(_target(state, source))

    def planned(rules: Rules) -> Plan:
        return make_plan(source_infos, target_infos, rules, part=part, origin=origin, source_axes=named_axes)

    try:
        return planned(Rules("released files", drops))
    except PlanError as error:
        problems = error.problems
        mismatched = [mismatch.key for mismatch in problems.mismatched]
        recomputed: tuple[Kind, list[str]] = ("recompute", [])
        dropped: tuple[Kind, list[str]] = ("drop", [])
        if recompute:
            recomputed[1].extend(key for key in (*mismatched, *problems.missing) if follows_from_config(key))
            dropped[1].extend(key for key in problems.unexpected if follows_from_config(key))
        decided = {*recomputed[1], *dropped[1]}
        groups: tuple[tuple[Kind, list[str]], ...] = (
            ("strip", [key for key in mismatched if key not in decided]),
            ("fresh", [key for key in problems.missing if key not in decided]),
            ("drop", [key for key in problems.unexpected if key not in decided]),
        )
        if min_coverage >= 1 and any(keys for _, keys in groups):
            raise
        why = f"allowed by min_coverage {min_coverage:g}"
        rules = [*drops]
        rules += [
            Rule(kind, tuple(keys), why="follows from the config") for kind, keys in (recomputed, dropped) if keys
        ]
        rules += [Rule(kind, tuple(keys), why=why) for kind, keys in groups if keys]
        return planned(Rules("min_coverage", tuple(rules)))


def _with_history(ledger: Ledger, part: str, checkpoint: Checkpoint) -> Ledger:
    """The ledger in which tensors that the adaptation had grown or initialized keep that action if still untrained."""
    adaptation = (checkpoint.provenance or {}).get("adaptation")
    if not adaptation or checkpoint.pickles.get("global_step", 0):
        return ledger
    before = {
        entry.target.key: entry
        for entry in Ledger.from_json(adaptation["ledger"]).of("grown", "fresh", part=part)
        if entry.target is not None
    }
    return replace(ledger, entries=tuple(_with_former_action(entry, before) for entry in ledger))


def _with_former_action(entry: Entry, before: Mapping[str, Entry]) -> Entry:
    known = before.get(entry.key) if entry.action == "copied" else None
    if known is None:
        return entry
    return replace(entry, action=known.action, slots=known.slots, init=known.init, rule=known.rule)
