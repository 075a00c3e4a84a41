"""A checkpoint's weights into the models that a training run has built: all of them, or an error and untouched models.

Used where training starts from `pretrained.path`. Both copies, live and averaged, are planned and filled in memory
first; only when both are complete are they loaded. If the checkpoint says that it was adapted, the ledger keeps what
was grown and fresh then, since that is what has not learned anything yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.apply import apply_plan
from diffusion_policy.adapt.layout import Layout, follows_from_config, robot_layout
from diffusion_policy.adapt.ledger import Entry, Ledger, merged
from diffusion_policy.adapt.plan import Plan, PlanError, describe_state, make_plan
from diffusion_policy.adapt.rules import Kind, Rule, Rules
from diffusion_policy.adapt.target import NORMALIZER
from diffusion_policy.checkpoint import Checkpoint


@dataclass(frozen=True)
class Inheritance:
    """What a run would take of a checkpoint.

    Attributes:
        plans: per part of the run, "model" and "ema_model".
        origins: the checkpoint's part that each is filled from.
        ledger: of all.
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
    """Load a checkpoint's weights into a model and its averaged copy, as `plan_inheritance` plans it.

    The normalizer's entries, which a fresh model has not, come with the weights.

    Args:
        checkpoint: read from the pretrained path.
        model: gets the checkpoint's `model` weights.
        ema_model: gets its `ema_model` weights, or the `model` weights if the file has no averaged ones; None if the
            run keeps no average.
        min_coverage, recompute: see `plan_inheritance`.

    Raises:
        AdaptError: the weights do not fit, or cover too little; neither model has been touched then.
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
) -> Inheritance:
    """Decide what a run's models take of a checkpoint; no number is looked at.

    Args:
        checkpoint: that the run starts from.
        states: per part of the run its fresh tensors, which may be on torch's meta device.
        min_coverage: share of each model's numbers that must come from the file. Below 1, names that are missing or do
            not fit start fresh, and names that nothing uses are dropped, each with a row that says so.
        recompute: masks and grids that follow from the config are those of the run, where they differ.

    Raises:
        AdaptError: the weights do not fit, or cover too little.
    """
    layout = robot_layout(checkpoint.cfg) if "policy" in checkpoint.cfg else Layout()
    plans: dict[str, Plan] = {}
    origins: dict[str, str] = {}
    for part, state in states.items():
        origin = origins[part] = part if part in checkpoint.state_dicts else "model"
        if origin not in checkpoint.state_dicts:
            raise AdaptError(f"{checkpoint.path} holds {list(checkpoint.state_dicts)}; expected the weights 'model'")
        plan = _plan_part(checkpoint.state_dicts[origin], state, part, origin, layout, min_coverage, recompute)
        covered = plan.ledger.coverage(part)
        if covered < min_coverage:
            raise AdaptError(
                f"{checkpoint.path} covers {covered:.2%} of {part}, {min_coverage:.2%} are required; "
                f"{plan.ledger.summary()}"
            )
        plans[part] = plan
    ledger = merged([_with_history(plan.ledger, part, checkpoint) for part, plan in plans.items()])
    return Inheritance(plans, origins, ledger)


def _target(state: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A fresh model's tensors and the source's normalizer."""
    entries = {key: tensor for key, tensor in source.items() if key.startswith(NORMALIZER)}
    return {**{key: tensor for key, tensor in state.items() if not key.startswith(NORMALIZER)}, **entries}


def _plan_part(
    source: Mapping[str, Tensor], state: Mapping[str, Tensor], part: str, origin: str, layout: Layout,
    min_coverage: float, recompute: bool,
) -> Plan:  # fmt: skip
    source_infos, target_infos = describe_state(source), describe_state(_target(state, source))

    def planned(rules: Rules) -> Plan:
        return make_plan(source_infos, target_infos, rules, part=part, origin=origin, source_layout=layout)

    try:
        return planned(Rules())
    except PlanError as error:
        problems = error.problems
        mismatched = [mismatch.key for mismatch in problems.mismatched]
        follow: tuple[Kind, list[str]] = ("recompute", [])
        gone: tuple[Kind, list[str]] = ("drop", [])
        if recompute:
            follow[1].extend(key for key in (*mismatched, *problems.missing) if follows_from_config(key))
            gone[1].extend(key for key in problems.unexpected if follows_from_config(key))
        settled = {*follow[1], *gone[1]}
        groups: tuple[tuple[Kind, list[str]], ...] = (
            ("strip", [key for key in mismatched if key not in settled]),
            ("fresh", [key for key in problems.missing if key not in settled]),
            ("drop", [key for key in problems.unexpected if key not in settled]),
        )
        if min_coverage >= 1 and any(keys for _, keys in groups):
            raise
        why = f"allowed by min_coverage {min_coverage:g}"
        rules = [Rule(kind, tuple(keys), why="follows from the config") for kind, keys in (follow, gone) if keys]
        rules += [Rule(kind, tuple(keys), why=why) for kind, keys in groups if keys]
        return planned(Rules("min_coverage", tuple(rules)))


def _with_history(ledger: Ledger, part: str, checkpoint: Checkpoint) -> Ledger:
    """What was grown or fresh when the checkpoint was adapted still is, if it has not been trained since."""
    adaptation = (checkpoint.provenance or {}).get("adaptation")
    if not adaptation or checkpoint.pickles.get("global_step", 0):
        return ledger
    before = {
        entry.target.key: entry
        for entry in Ledger.from_json(adaptation["ledger"]).of("grown", "fresh", part=part)
        if entry.target is not None
    }
    return replace(ledger, entries=tuple(_remembered(entry, before) for entry in ledger))


def _remembered(entry: Entry, before: Mapping[str, Entry]) -> Entry:
    known = before.get(entry.key) if entry.action == "copied" else None
    if known is None:
        return entry
    return replace(entry, action=known.action, slots=known.slots, init=known.init, rule=known.rule)
