"""A checkpoint's weights into the models that a training run has built: all of them, or an error and untouched models.

Used where training starts from `pretrained.path`. Both copies, live and averaged, are planned and filled in memory
first; only when both are complete are they loaded. If the checkpoint says that it was adapted, the ledger keeps what
was grown and fresh then, since that is what has not learned anything yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.apply import apply_plan
from diffusion_policy.adapt.layout import Layout, robot_layout
from diffusion_policy.adapt.ledger import Entry, Ledger, merged
from diffusion_policy.adapt.plan import PlanError, describe_state, make_plan
from diffusion_policy.adapt.rules import Kind, Rule, Rules
from diffusion_policy.adapt.target import NORMALIZER
from diffusion_policy.checkpoint import Checkpoint


def inherit(
    checkpoint: Checkpoint, model: nn.Module, ema_model: nn.Module | None, *, min_coverage: float = 1.0
) -> Ledger:
    """Load a checkpoint's weights into a model and its averaged copy.

    The normaliser's entries, which a fresh model has not, come with the weights.

    Args:
        checkpoint: read from the pretrained path.
        model: gets the checkpoint's `model` weights.
        ema_model: gets its `ema_model` weights, or the `model` weights if the file has no averaged ones; None if the
            run keeps no average.
        min_coverage: share of each model's numbers that must come from the file. Below 1, names that are missing or do
            not fit start fresh, and names that nothing uses are dropped, each with a row that says so.

    Raises:
        AdaptError: the weights do not fit, or cover too little; neither model has been touched then.
    """
    layout = robot_layout(checkpoint.cfg) if "policy" in checkpoint.cfg else Layout()
    states: list[tuple[nn.Module, dict[str, Tensor]]] = []
    ledgers: list[Ledger] = []
    for part, module in (("model", model), ("ema_model", ema_model)):
        if module is None:
            continue
        origin = part if part in checkpoint.state_dicts else "model"
        if origin not in checkpoint.state_dicts:
            raise AdaptError(f"{checkpoint.path} holds {list(checkpoint.state_dicts)}; expected the weights 'model'")
        state, ledger = _part(checkpoint.state_dicts[origin], module, part, origin, layout, min_coverage)
        covered = ledger.coverage(part)
        if covered < min_coverage:
            raise AdaptError(
                f"{checkpoint.path} covers {covered:.2%} of {part}, {min_coverage:.2%} are required; {ledger.summary()}"
            )
        states.append((module, state))
        ledgers.append(_with_history(ledger, part, checkpoint))
    for module, state in states:
        module.load_state_dict(state)
    return merged(ledgers)


def _part(
    source: Mapping[str, Tensor], module: nn.Module, part: str, origin: str, layout: Layout, min_coverage: float
) -> tuple[dict[str, Tensor], Ledger]:
    entries = {key: tensor for key, tensor in source.items() if key.startswith(NORMALIZER)}
    target = {**{key: t for key, t in module.state_dict().items() if not key.startswith(NORMALIZER)}, **entries}
    source_infos, target_infos = describe_state(source), describe_state(target)

    def planned(rules: Rules) -> tuple[dict[str, Tensor], Ledger]:
        plan = make_plan(source_infos, target_infos, rules, part=part, origin=origin, source_layout=layout)
        return apply_plan(plan, source, target), plan.ledger

    try:
        return planned(Rules())
    except PlanError as error:
        if min_coverage >= 1:
            raise
        why = f"allowed by min_coverage {min_coverage:g}"
        problems = error.problems
        groups: tuple[tuple[Kind, list[str]], ...] = (
            ("strip", [mismatch.key for mismatch in problems.mismatched]),
            ("fresh", problems.missing),
            ("drop", problems.unexpected),
        )
        allowed = tuple(Rule(kind, tuple(keys), why=why) for kind, keys in groups if keys)
        return planned(Rules("min_coverage", allowed))


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
