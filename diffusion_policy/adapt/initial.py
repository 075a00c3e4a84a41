"""Initialization of values without a source: zeros, normal, as a layer, a copied slot, a mean, the target's own.

Random values are seeded by rule and key, so the same plan gives the same checkpoint, and model and EMA get the same
values.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.slots import SlotMap

Kind = Literal["zeros", "normal", "layer", "copy", "mean", "target"]
SHORT_KINDS: tuple[Kind, ...] = ("zeros", "mean", "target")


@dataclass(frozen=True)
class Init:
    """One kind of initialization.

    Attributes:
        kind: "zeros"; "normal" (mean 0, standard deviation `std`); "layer" (as transformers initialize a new layer:
            matrices "normal", the scale of norms 1, biases 0); "copy" (of the source's slot `slot`); "mean" (over the
            kept slots); "target" (the values of a freshly initialized target).
        std: standard deviation of "normal" and of the matrices of "layer".
        slot: name of the slot that "copy" copies.
        seed: seed of random values.
    """

    kind: Kind
    std: float = 0.0
    slot: str = ""
    seed: int = 0

    def describe(self) -> str:
        """A phrase for the ledger."""
        return {
            "zeros": "zeros",
            "normal": f"normal(0, {self.std:g}), seed {self.seed}",
            "layer": f"matrices normal(0, {self.std:g}), seed {self.seed}; norms 1, biases 0",
            "copy": f"copy of slot {self.slot}",
            "mean": "mean of the kept slots",
            "target": "as the target initializes it",
        }[self.kind]

    def whole(self, key: str, target: Tensor) -> Tensor:
        """Values for a tensor that is initialized as a whole; `target` is the freshly built one."""
        if self.kind == "target":
            return target
        if self.kind == "zeros":
            return torch.zeros_like(target)
        if self.kind == "normal":
            return self._normal(key, target)
        if self.kind == "layer":
            return self._layer(key, target)
        raise AdaptError(f"{key}: init {self.kind!r} needs slots of a source tensor; a fresh tensor has no source")

    def _layer(self, key: str, target: Tensor) -> Tensor:
        if key.endswith(".bias") and target.ndim == 1:
            return torch.zeros_like(target)
        if key.endswith(".weight") and target.ndim == 1:
            return torch.ones_like(target)
        if key.endswith(".weight"):
            return self._normal(key, target)
        raise AdaptError(
            f"{key}: init 'layer' is for weights and biases, and this is neither ({tuple(target.shape)}); give "
            "it its own rule"
        )

    def background(self, key: str, source: Tensor, target: Tensor, slots: tuple[SlotMap, ...]) -> Tensor:
        """A tensor of the target's shape filled with this initialization; the caller then overwrites the kept slots."""
        if self.kind in ("zeros", "normal", "target"):
            return self.whole(key, target).clone()
        changed = [slot for slot in slots if slot.new]
        if len(changed) != 1:
            raise AdaptError(f"{key}: init {self.kind!r} needs exactly one grown axis, found {len(changed)}")
        slot = changed[0]
        if self.kind == "copy":
            if self.slot not in slot.source:
                raise AdaptError(f"{key}: no slot {self.slot!r} to copy; axis {slot.name} has {list(slot.source)}")
            row = source.narrow(slot.axis, slot.source.index(self.slot), 1)
        else:
            kept = torch.tensor([old for old, _ in slot.kept])
            row = source.index_select(slot.axis, kept).float().mean(slot.axis, keepdim=True).to(source.dtype)
        return row.expand([*_with_width(source.shape, slot.axis, len(slot.target))]).clone()

    def _normal(self, key: str, target: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {key}".encode()))
        return (torch.randn(target.shape, generator=generator) * self.std).to(target.dtype)


def read_init(value: Any, where: str, seed: int) -> Init:
    """Parse an `init` entry: zeros, mean, target, {normal: std}, {layer: std} or {copy: slot}; else AdaptError."""
    if isinstance(value, str) and value in SHORT_KINDS:
        return Init(value, seed=seed)
    if isinstance(value, Mapping) and len(value) == 1:
        ((kind, argument),) = value.items()
        if kind in ("normal", "layer") and isinstance(argument, int | float) and argument >= 0:
            return Init("normal" if kind == "normal" else "layer", std=float(argument), seed=seed)
        if kind == "copy":
            return Init("copy", slot=str(argument))
    raise AdaptError(
        f"{where}: init is {value!r}; expected zeros, mean, target, {{normal: 0.02}}, {{layer: 0.02}} or {{copy: slot}}"
    )


def _with_width(shape: torch.Size, axis: int, width: int) -> list[int]:
    widths = list(shape)
    widths[axis] = width
    return widths
