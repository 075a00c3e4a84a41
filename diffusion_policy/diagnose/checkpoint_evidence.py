"""Evidence from a checkpoint: widths, statistics, averaged weights and their origin. None of its code is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from diffusion_policy.adapt.ledger import Ledger
from diffusion_policy.checkpoint import Checkpoint, read_checkpoint
from diffusion_policy.dataset.split import Split, split_of
from diffusion_policy.policy.registry import policy_classes
from diffusion_policy.shape_meta import find_step_spec
from diffusion_policy.spec import Layout, StepSpec, layout_of_statistics
from diffusion_policy.spec.action_layout import is_gripper_name

# Weights through which a sample leaves and enters the denoiser, by policy class.
# These have a row for each number of the action; classification heads have a row for each class.
HEADS = tuple(
    tensors.head
    for tensors in (kind.tensors for kind in policy_classes())
    if any(named.pattern == tensors.head and named.axes.get(0) == "sample" for named in tensors.named)
)
ENTRIES = tuple(kind.tensors.entry for kind in policy_classes())
STATISTICS = "normalizer.params_dict."


@dataclass(frozen=True)
class Statistics:
    """The normalizer's statistics of one key, (D,) each."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]


@dataclass(frozen=True)
class CheckpointEvidence:
    """A checkpoint in a few numbers.

    Attributes:
        path: path of the file.
        spec: what the policy reads and predicts, from the checkpoint's config; None if not given there.
        head_width, input_width: widths of the action projections, model then EMA; None if absent.
        epoch, updates: as stored; None if absent.
        not_finite: tensors that hold NaN or infinity.
        has_average: whether it holds ema_model.
        expects_average: whether the config trains one.
        average_distance: |EMA - model| / |model| over all floating-point parameters; None if one is missing or widths
            differ.
        statistics: statistics of the normalizer, by key.
        layout: layout of the action, derived from the normalizer's ranges.
        gripper_row: largest weight of the head's gripper row in the deployed weights, the smallest over several
            grippers; None without a gripper.
        semantics: semantics of the action, as stored.
        start: how training started, as stored: "pretrained", "scratch", "own checkpoint", or None.
        inherited: share of the parameters that came from another checkpoint, None if not stored.
        proofs: per part, whether growing it kept its function.
        split: the episodes that it was trained on; None if not stored.
        ledger: the ledger of its weights' origin, and its title; None if not stored.
    """

    path: str
    spec: StepSpec | None
    head_width: tuple[int | None, int | None]
    input_width: tuple[int | None, int | None]
    epoch: int | None = None
    updates: int | None = None
    not_finite: tuple[str, ...] = ()
    has_average: bool = True
    expects_average: bool = True
    average_distance: float | None = None
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    layout: Layout = "unknown"
    gripper_row: float | None = None
    semantics: Mapping[str, Any] | None = None
    start: str | None = None
    inherited: float | None = None
    proofs: Mapping[str, bool] = field(default_factory=dict)
    split: Split | None = None
    ledger: tuple[Ledger, str] | None = None


def look_at_checkpoint(path: str | Path, checkpoint: Checkpoint | None = None) -> CheckpointEvidence:
    """Gathers the evidence; every tensor is read once.

    Raises:
        CheckpointError: absent, damaged or of another kind.
        DatasetError: its record of the training episodes is invalid.
        SpecError: two places in its config contradict each other on what its policy reads and predicts.
    """
    checkpoint = checkpoint or read_checkpoint(path)
    model = checkpoint.state_dicts.get("model", {})
    average = checkpoint.state_dicts.get("ema_model", {})
    spec = find_step_spec(checkpoint.cfg)
    provenance = checkpoint.provenance or {}
    statistics = _statistics(average or model)
    action = statistics.get("action")
    adaptation = provenance.get("adaptation") or {}
    return CheckpointEvidence(
        path=str(path),
        spec=spec,
        head_width=(_width(model, HEADS, 0), _width(average, HEADS, 0)),
        input_width=(_width(model, ENTRIES, 1), _width(average, ENTRIES, 1)),
        epoch=checkpoint.pickles.get("epoch"),
        updates=checkpoint.pickles.get("global_step"),
        not_finite=tuple(
            f"{part}.{key}"
            for part, state in (("model", model), ("ema_model", average))
            for key, tensor in state.items()
            if not (torch.isfinite(tensor) | _is_mask(key)).all()
        ),
        has_average=bool(average),
        # Bare weights, of which no training is known, are nothing but the live ones.
        expects_average=bool(OmegaConf.select(checkpoint.cfg, "training.use_ema", default=bool(checkpoint.pickles))),
        average_distance=_distance(model, average),
        statistics=statistics,
        layout="unknown"
        if action is None
        else layout_of_statistics(spec.action_names if spec else (), action.low, action.high),
        gripper_row=_gripper_row(average or model, spec),
        semantics=provenance.get("action_semantics"),
        start=(provenance.get("start") or {}).get("origin"),
        inherited=_inherited(provenance.get("inheritance")),
        proofs={part: bool(proof["preserved"]) for part, proof in (adaptation.get("proof") or {}).items()},
        split=split_of(provenance, str(path)),
        ledger=_ledger(provenance),
    )


def _first(state: Mapping[str, Tensor], keys: Sequence[str]) -> Tensor | None:
    return next((state[key] for key in keys if key in state), None)


def _width(state: Mapping[str, Tensor], keys: Sequence[str], axis: int) -> int | None:
    tensor = _first(state, keys)
    return None if tensor is None else tensor.shape[axis]


def _statistics(state: Mapping[str, Tensor]) -> dict[str, Statistics]:
    keys = [key.removeprefix(STATISTICS).removesuffix(".scale") for key in state if _is_scale(key)]
    names = ("input_stats.min", "input_stats.max", "scale", "offset")
    return {
        key: Statistics(*(tuple(state[f"{STATISTICS}{key}.{name}"].flatten().tolist()) for name in names))
        for key in keys
        if all(f"{STATISTICS}{key}.{name}" in state for name in names)
    }


def _is_mask(key: str) -> bool:
    """Whether a tensor is an attention mask, which holds minus infinity at masked positions."""
    return key.endswith("mask")


def _is_scale(key: str) -> bool:
    return key.startswith(STATISTICS) and key.endswith(".scale")


def _distance(model: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> float | None:
    if not model or model.keys() != average.keys():
        return None
    if any(model[key].shape != average[key].shape for key in model):
        return None
    difference = size = 0.0
    for key, tensor in model.items():
        if tensor.is_floating_point() and not key.startswith("normalizer.") and not _is_mask(key):
            difference += float((average[key].double() - tensor.double()).square().sum())
            size += float(tensor.double().square().sum())
    return (difference / size) ** 0.5 if size else None


def _gripper_row(state: Mapping[str, Tensor], spec: StepSpec | None) -> float | None:
    head = _first(state, HEADS)
    if spec is None or head is None:
        return None
    rows = [row for row, name in enumerate(spec.action_names) if is_gripper_name(name) and row < len(head)]
    return min((float(head[row].abs().max()) for row in rows), default=None)


def _ledger(provenance: Mapping[str, Any]) -> tuple[Ledger, str] | None:
    """Returns the ledger of its adaptation, otherwise that of the weights that training inherited."""
    adaptation = provenance.get("adaptation") or {}
    if "ledger" in adaptation:
        source = (adaptation.get("source") or {}).get("name", "its source")
        return Ledger.from_json(adaptation["ledger"]), f"Adapted from {source}"
    if "inheritance" in provenance:
        source = (provenance.get("pretrained") or {}).get("name", "its source")
        return Ledger.from_json(provenance["inheritance"]), f"Inherited from {source}"
    return None


def _inherited(ledger: Mapping[str, Any] | None) -> float | None:
    """Returns the share of the live model's parameters in tensors that were copied or grown."""
    counts = (ledger or {}).get("counts", {}).get("model")
    if not counts:
        return None
    total = sum(counts[action]["parameters"] for action in ("copied", "grown", "recomputed", "fresh"))
    return (total - counts["fresh"]["parameters"]) / total if total else None
