"""Carries out a plan: fills the target's tensors, proves that the function is preserved, and writes the checkpoint.

Copied tensors share the source's memory-mapped storage, so adapting takes no second copy of the weights. A tensor that
has two names remains one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.checkpoint_plan import NEW_RUN, CheckpointPlan, plan_checkpoint
from diffusion_policy.adapt.initial import Init
from diffusion_policy.adapt.ledger import Count, Entry, Ledger, Ref
from diffusion_policy.adapt.plan import Plan, describe_state
from diffusion_policy.adapt.proof import Proof, prove
from diffusion_policy.adapt.rules import Rules
from diffusion_policy.adapt.target import Target
from diffusion_policy.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from diffusion_policy.hub import address_entry
from diffusion_policy.progress import Progress, ProgressCounter, no_progress
from diffusion_policy.shape_meta import step_spec_of
from diffusion_policy.storage import write_bytes, write_json
from diffusion_policy.tensor_file import open_tensor_file

State = dict[str, Tensor]
Result = TypeVar("Result")


def adapt_checkpoint(
    source: Checkpoint,
    target: Target,
    rules: Rules,
    out: str | Path,
    *,
    ledger_path: str | Path | None = None,
    must_preserve: bool = False,
    overwrite: bool = False,
    on_progress: Progress = no_progress,
) -> Ledger:
    """Convert a checkpoint to the names and shapes of a target: plan, fill, prove, write, read back.

    Checkpoint and ledger are renamed to their final paths after all of these succeeded; an error or an interruption
    leaves neither.

    Args:
        source: the source checkpoint; it is only read.
        target: names and shapes of the new checkpoint; its config becomes the new checkpoint's.
        rules: which differences are allowed.
        out: path of the new checkpoint.
        ledger_path: path of the ledger's JSON; None: `<out>.ledger.json`.
        must_preserve: refuse to write unless shared action dimensions are predicted the same.
        overwrite: replace an existing `out`.
        on_progress: called with the number of steps done and their total: each part filled and proven, the file
            written, and read back.

    Returns:
        The ledger; its notes include the result of the proof.

    Raises:
        AdaptError: `out` exists or is the source, weights are not accounted for, a tensor is not finite, the function
            is not preserved where it must be, or the written file differs from the plan.
    """
    out, ledger_path = Path(out), ledger_of(out, ledger_path)
    refuse_overwriting(out, source.path, ledger_path, overwrite=overwrite)
    if target.cfg is None:
        raise AdaptError(f"{target.name} has no config, so no checkpoint can be made for it; name a config instead")
    can_run = "policy" in source.cfg
    if must_preserve and not can_run:
        raise AdaptError(f"{source.path} holds no policy that can be run here, so nothing can be proven")
    plan = plan_checkpoint(source, target, rules)
    done = step_counter((1 + can_run) * len(plan.parts) + 2, on_progress)
    before = {part: source.state_dicts[plan.origins[part]] for part in plan.parts}
    states = {part: done(apply_plan(plan.parts[part], state, target.state)) for part, state in before.items()}
    renamed = {part: {rules.renamed(key): tensor for key, tensor in state.items()} for part, state in before.items()}
    called = rules.slots.get("action", ((), ()))[0]
    proofs = [
        done(prove(part, (source.cfg, renamed[part]), (target.cfg, state), action_names=called))
        for part, state in states.items()
        if can_run
    ]
    if must_preserve and not all(proof.preserved for proof in proofs):
        raise AdaptError("nothing was written: " + "; ".join(proof.describe() for proof in proofs))
    ledger = replace(plan.ledger, notes=(*plan.ledger.notes, *(proof.describe() for proof in proofs)))
    digest = open_tensor_file(source.path).sha256()
    provenance = _provenance(source, digest, target, rules, ledger, proofs)
    document = ledger_document(ledger, rules, source.path, digest)
    with written_with(ledger_path, document, out) as write_ledger:

        def check(written: Path) -> None:
            done(written)
            _check_written(written, out, plan, states)
            write_ledger(written)
            done(None)

        write_checkpoint(out, cfg=target.cfg, state_dicts=states, pickles=NEW_RUN, provenance=provenance, check=check)
    return ledger


def step_counter(total: int, on_progress: Progress) -> Callable[[Result], Result]:
    """A function to be called with the result of each of `total` steps: it reports one more step and returns it."""
    counter = ProgressCounter(on_progress, total)

    def done(result: Result) -> Result:
        counter.add(1)
        return result

    return done


def ledger_of(out: str | Path, ledger_path: str | Path | None) -> Path:
    """The path of the ledger of `out`: the given one, else `<out>.ledger.json`."""
    return Path(f"{out}.ledger.json" if ledger_path is None else ledger_path)


def refuse_overwriting(out: Path, source: Path, ledger_path: Path, *, overwrite: bool) -> None:
    """Raise AdaptError if the paths of source, `out` and ledger coincide, or `out` exists and may not be replaced."""
    for path in (out, ledger_path):
        if path.exists() and source.exists() and path.samefile(source):
            raise AdaptError(f"{path} is the source itself; inputs are only read, give another name")
    if out.resolve() == ledger_path.resolve():
        raise AdaptError(f"{out} would be both the new file and its ledger; give the ledger another name")
    if out.exists() and not overwrite:
        raise AdaptError(f"{out} exists; give another name, or --overwrite to replace it")
    out.parent.mkdir(parents=True, exist_ok=True)


def ledger_document(ledger: Ledger, rules: Rules, source: str | Path, sha256: str) -> dict[str, Any]:
    """The ledger as plain JSON, with the rules and the source's name and hash."""
    origin = {"name": Path(source).name, "sha256": sha256, **address_entry(source)}
    return {**ledger.to_json(), "rules": rules.to_json(), "source": origin}


@contextmanager
def written_with(path: Path, document: Mapping[str, Any], out: Path) -> Iterator[Callable[[Path], None]]:
    """Yield the function that writes the ledger just before `out` is renamed, so that both files exist or neither does.

    It is called with the finished file that will become `out`. If that file has not become `out` when the block ends,
    for any reason, the former ledger is restored.

    Raises:
        StorageError: the ledger cannot be written.
    """
    former = path.read_bytes() if path.is_file() else None
    finished: list[int] = []

    def write(file: Path) -> None:
        finished.append(file.stat().st_ino)
        write_json(path, document)

    try:
        yield write
    finally:
        if finished and not (out.exists() and out.stat().st_ino == finished[0]):
            if former is not None:
                write_bytes(path, former)
            elif path.exists():
                path.unlink()


def _provenance(
    source: Checkpoint, digest: str, target: Target, rules: Rules, ledger: Ledger, proofs: list[Proof]
) -> dict[str, Any]:
    origin: dict[str, Any] = {"name": source.path.name, "sha256": digest, "which": rules.weights}
    origin |= address_entry(source.path)
    if source.provenance:
        origin["provenance"] = source.provenance
    adaptation = {
        "ledger": ledger.to_json(),
        "rules": rules.to_json(),
        "source": origin,
        "proof": {proof.part: proof.to_json() for proof in proofs},
    }
    assert target.cfg is not None
    return {"adaptation": adaptation, "action_semantics": step_spec_of(target.cfg).semantics}


def _check_written(file: Path, out: Path, plan: CheckpointPlan, states: Mapping[str, State]) -> None:
    """Open the written file, which will become `out`, and compare it with the plan: totals, then every number."""
    written = read_checkpoint(file)
    for part, state in states.items():
        written_back = written.state_dicts[part]
        infos = describe_state(written_back).values()
        count = Count.of(Ref(info.name, info.shape, info.storage) for info in infos)
        planned = plan.ledger.target_totals[part]
        if count != planned:
            raise AdaptError(f"{out}: {part} holds {count} after writing; planned were {planned}")
        differing = [key for key in state if not torch.equal(written_back[key], state[key])]
        if differing:
            raise AdaptError(f"{out}: {part} differs from the plan after writing, at {differing[:5]}")


def apply_plan(plan: Plan, source_state: Mapping[str, Tensor], target_state: Mapping[str, Tensor]) -> State:
    """Carry out a plan.

    Args:
        plan: from `make_plan`, for exactly these two sets of tensors.
        source_state: the source's weights; they are only read, and returned tensors may share their storage.
        target_state: state dict of a freshly initialized target: fresh and recomputed tensors, and the order of names.

    Returns:
        The target's state dict.

    Raises:
        AdaptError: two source tensors with different values would become one tensor, a tensor contains NaN or +inf, or
            no value is known for a new slot.
    """
    made: dict[str, Tensor] = {}
    taken: set[int] = set()
    rows = {entry.target.key: entry for entry in plan.ledger.of(part=plan.part) if entry.target is not None}
    state: State = {}
    for key in target_state:
        entry = rows[key]
        assert entry.target is not None
        known = made.get(entry.target.tensor)
        if known is None:
            known = _fill(plan, entry, source_state, target_state[key])
            # A source tensor that is copied to two target tensors (a copied encoder) must not make them share storage.
            known = made[entry.target.tensor] = known.clone() if known.data_ptr() in taken else known
            taken.add(known.data_ptr())
        elif entry.action == "copied":
            _check_same(entry, source_state, known)
        state[key] = known
    return state


def _check_finite(key: str, tensor: Tensor, where: str) -> None:
    # A finite sum implies finite numbers, so the elements are inspected one by one only where the sum is not finite.
    if not tensor.is_floating_point() or torch.isfinite(tensor.sum(dtype=torch.float64)):
        return
    broken = int((torch.isnan(tensor) | torch.isposinf(tensor)).sum())
    if broken:
        raise AdaptError(f"{where}: {key} holds {broken} numbers that are NaN or infinite, of {tensor.numel()}")


def _fill(plan: Plan, entry: Entry, source_state: Mapping[str, Tensor], target: Tensor) -> Tensor:
    assert entry.target is not None
    key = entry.target.key
    rule = plan.rules.get(key)
    if entry.action == "recomputed":
        return target
    if entry.action == "fresh":
        filled = (rule.init if rule else Init("target")).whole(key, target)
        _check_known(filled, key, "the whole tensor")
        return filled
    assert entry.source is not None
    source = source_state[entry.source.key]
    _check_finite(entry.source.key, source, "source")
    if entry.action == "copied":
        return source if source.dtype == target.dtype else source.to(target.dtype)
    assert rule is not None
    return _grow(entry, source.to(target.dtype), target, rule.init)


def _grow(entry: Entry, source: Tensor, target: Tensor, init: Init) -> Tensor:
    """A tensor of the target's shape: kept slots from the source, the others initialized by `init`."""
    key = entry.key
    grows = any(slot.new for slot in entry.slots)
    filled = init.background(key, source, target, entry.slots) if grows else torch.empty_like(target)
    kept = source
    indices = [torch.arange(width) for width in target.shape]
    for slot in entry.slots:
        old, new = torch.tensor(slot.kept, dtype=torch.long).reshape(-1, 2).T
        kept = kept.index_select(slot.axis, old)
        indices[slot.axis] = new
    last = len(indices) - 1
    filled[tuple(index.reshape(-1, *[1] * (last - axis)) for axis, index in enumerate(indices))] = kept
    _check_known(filled, key, ", ".join(slot.describe() for slot in entry.slots))
    return filled


def _check_known(filled: Tensor, key: str, what: str) -> None:
    if filled.is_floating_point() and torch.isnan(filled).any():
        raise AdaptError(
            f"{key}: no value is known for {what}; statistics of new dimensions come from a dataset that has them "
            "(--dataset), weights of a target that is only described, such as a config.json, from the rule's init: "
            "zeros, {normal: 0.02} or {layer: 0.02}"
        )


def _check_same(entry: Entry, source_state: Mapping[str, Tensor], known: Tensor) -> None:
    assert entry.source is not None
    other = source_state[entry.source.key]
    same_storage = other.data_ptr() == known.data_ptr() and other.shape == known.shape
    if not same_storage and not torch.equal(other.to(known.dtype), known):
        raise AdaptError(
            f"{entry.source.key}: the source has different values under the two names of this tensor, but in the "
            "target both names are one tensor; the file lost its sharing and does not say which of the two counts"
        )
