"""The plan of a whole checkpoint: live weights, averaged weights, optimizer and counters, all of it in the ledger.

Live and averaged weights follow the same rules. The optimizer is always dropped: its moments belong to tensors of the
old shapes and to a loss that is no longer optimized. Counters are reset, since a new run starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.ledger import Count, Entry, Ledger, Ref, merged
from diffusion_policy.adapt.named_axes import NamedAxes, policy_axes
from diffusion_policy.adapt.plan import Plan, describe_state, make_plan
from diffusion_policy.adapt.rules import Rules
from diffusion_policy.adapt.target import NORMALIZER, Target
from diffusion_policy.checkpoint import Checkpoint
from diffusion_policy.tensor_file import TensorInfo

WEIGHTS = ("model", "ema_model")
OPTIMIZER_RULE = "drop optimizer (a new run starts with a new optimizer: the old moments belong to other tensors)"
COUNTERS = "counters (a new run starts at step 0)"
RUN_RULE = "drop run state (a new run draws its own random numbers)"
OTHERS_RULE = "drop what is not weights (optimizer, counters, settings and the like belong to another program)"
# The pickled entries of a checkpoint that starts a new run.
NEW_RUN: Mapping[str, Any] = {"_output_dir": None, "global_step": 0, "epoch": 0}


@dataclass(frozen=True)
class CheckpointPlan:
    """The plans of the weights and the ledger of the whole file.

    Attributes:
        parts: plan by part of the new checkpoint, "model" and "ema_model".
        origins: by part, the source's part that fills it.
        ledger: of all parts.
    """

    parts: Mapping[str, Plan]
    origins: Mapping[str, str]
    ledger: Ledger


def plan_checkpoint(source: Checkpoint, target: Target, rules: Rules) -> CheckpointPlan:
    """Plan every part of a checkpoint.

    Raises:
        AdaptError: weights are not accounted for (`PlanError`), the chosen ones are absent, or the file has an unknown
            part.
    """
    unknown = [part for part in source.state_dicts if part not in (*WEIGHTS, "optimizer")]
    if unknown:
        raise AdaptError(f"{source.path}: its state_dicts hold {unknown}, unknown to this version; expected {WEIGHTS}")
    named_axes = policy_axes(source.cfg) if "policy" in source.cfg else NamedAxes()
    names = [key for part in WEIGHTS for key in source.state_dicts.get(part, ())]
    renaming = [rule for rule in rules.renames if any(rule.renamed(key) != key for key in names)]
    plans: dict[str, Plan] = {}
    origins: dict[str, str] = {}
    for part in WEIGHTS:
        if part not in source.state_dicts:
            continue
        origin = origins[part] = part if rules.weights == "each" else rules.weights
        if origin not in source.state_dicts:
            raise AdaptError(f"{source.path} has no weights {origin!r}; it holds {list(source.state_dicts)}")
        infos = describe_state(source.state_dicts[origin])
        plans[part] = make_plan(
            infos, target.infos, rules,
            part=part, origin=origin, source_axes=named_axes, target_axes=target.axes, elsewhere=renaming,
        )  # fmt: skip
    if not plans:
        raise AdaptError(f"{source.path}: no weights; its state_dicts hold {list(source.state_dicts)}")
    left = [part for part in plans if part not in origins.values()]
    others = [_dropped_part(part, source.state_dicts[part], f"weights: {rules.weights}") for part in left]
    if "optimizer" in source.state_dicts:
        others.append(_dropped_part("optimizer", source.state_dicts["optimizer"], OPTIMIZER_RULE))
    others.append(_counters(source))
    if source.others:
        others.append(_dropped_part("others", source.others, OTHERS_RULE))
    if source.run_state:
        others.append(_dropped_part("run_state", source.run_state, RUN_RULE))
    ledger = merged([*(plan.ledger for plan in plans.values()), *others])
    ledger = replace(ledger, notes=(*ledger.notes, *source.notes, *_absent(source), *_statistics_taken(ledger, target)))
    ledger.check()
    return CheckpointPlan(plans, origins, ledger)


def _absent(source: Checkpoint) -> list[str]:
    """Notes on the copies of the weights (live, averaged) that the source lacks."""
    return [
        f"the source holds no {part}, so the new checkpoint has none"
        for part in WEIGHTS
        if part not in source.state_dicts
    ]


def _statistics_taken(ledger: Ledger, target: Target) -> list[str]:
    """Notes on the normalizer's dimensions whose statistics come from the dataset: new ones only."""
    notes = []
    for key, measured in target.measured.items():
        rows = [entry for entry in ledger.of("grown", "fresh") if entry.key == f"{NORMALIZER}{key}.scale"]
        if not rows:
            continue
        new = {slot.target[index] for slot in rows[0].slots for index in slot.new} if rows[0].slots else set(measured)
        taken = [name for name in measured if name in new]
        if taken:
            notes.append(
                f"normalizer statistics of new dimensions of {key} come from {target.dataset}: {', '.join(taken)}"
            )
    return notes


def _dropped_part(part: str, content: Any, rule: str) -> Ledger:
    """Rows for the entries of a part that is dropped as a whole."""
    named = dict(_leaves(content))
    infos = describe_state({key: value for key, value in named.items() if isinstance(value, Tensor)})
    infos |= {key: value for key, value in named.items() if isinstance(value, TensorInfo)}
    refs = [Ref(key, infos[key].shape, infos[key].storage) if key in infos else Ref(key) for key in named]
    entries = tuple(Entry(part, "dropped", rule, source=ref) for ref in refs)
    return Ledger(entries, {part: Count.of(refs)}, {})


def _counters(source: Checkpoint) -> Ledger:
    old = [Ref(key) for key in source.pickles]
    new = [Ref(key) for key in NEW_RUN]
    entries = (
        *(Entry("pickles", "dropped", f"drop {COUNTERS}", source=ref) for ref in old),
        *(Entry("pickles", "fresh", f"fresh {COUNTERS}", target=ref, init=repr(NEW_RUN[ref.key])) for ref in new),
    )
    return Ledger(entries, {"pickles": Count.of(old)}, {"pickles": Count.of(new)})


def _leaves(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every tensor in nested containers, and of every container without tensors."""
    children = _children(content)
    if not path or any(_holds_tensor(child) for _, child in children):
        for key, child in children:
            yield from _leaves(child, f"{path}.{key}" if path else str(key))
    else:
        yield path, content


def _holds_tensor(content: Any) -> bool:
    return isinstance(content, Tensor | TensorInfo) or any(_holds_tensor(child) for _, child in _children(content))


def _children(content: Any) -> list[tuple[Any, Any]]:
    if isinstance(content, Mapping):
        return list(content.items())
    return list(enumerate(content)) if isinstance(content, list | tuple) else []
