"""Slots: named positions along an axis of a tensor, and the map from the slots of a source to those of a target.

A width of 7 does not say what its numbers mean; seven names do. Growth, removal and reordering of dimensions are one
operation: target slots are looked up among the source's by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffusion_policy.adapt import AdaptError

Names = tuple[str, ...]


@dataclass(frozen=True)
class SlotMap:
    """How one axis of a target tensor is filled.

    Attributes:
        axis: dimension of the tensor.
        name: name of the axis, such as "action" or "horizon".
        source: names of the source's slots along the axis.
        target: names of the target's slots along the axis.
    """

    axis: int
    name: str
    source: Names
    target: Names

    def __post_init__(self) -> None:
        for side, names in (("source", self.source), ("target", self.target)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise AdaptError(f"axis {self.name!r}: the {side} names {twice} more than once")

    @property
    def kept(self) -> tuple[tuple[int, int], ...]:
        """(source index, target index) of the slots that both sides have."""
        position = {name: index for index, name in enumerate(self.source)}
        return tuple((position[name], index) for index, name in enumerate(self.target) if name in position)

    @property
    def new(self) -> tuple[int, ...]:
        """Target indices that the source does not have."""
        known = set(self.source)
        return tuple(index for index, name in enumerate(self.target) if name not in known)

    @property
    def removed(self) -> tuple[int, ...]:
        """Source indices that the target does not have."""
        wanted = set(self.target)
        return tuple(index for index, name in enumerate(self.source) if name not in wanted)

    @property
    def changes(self) -> bool:
        """Whether source and target differ along this axis."""
        return self.source != self.target

    def describe(self) -> str:
        """One phrase, such as "axis 1 (action): 7 kept, new gripper"."""
        parts = [f"{len(self.kept)} kept"]
        if self.new:
            parts.append("new " + _listed([self.target[index] for index in self.new]))
        if self.removed:
            parts.append("removed " + _listed([self.source[index] for index in self.removed]))
        if [old for old, _ in self.kept] != sorted(old for old, _ in self.kept):
            parts.append("reordered")
        return f"axis {self.axis} ({self.name}): " + ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON of the two lists of names."""
        return {"axis": self.axis, "name": self.name, "source": list(self.source), "target": list(self.target)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SlotMap:
        """Inverse of `to_json`."""
        return cls(data["axis"], data["name"], tuple(data["source"]), tuple(data["target"]))


def numbered(width: int) -> Names:
    """Names of slots that are only known by position: 0, 1, ..."""
    return tuple(str(index) for index in range(width))


def _listed(names: Sequence[str], limit: int = 6) -> str:
    listed_names = ", ".join(names[:limit])
    return listed_names if len(names) <= limit else f"{listed_names} and {len(names) - limit} more"
