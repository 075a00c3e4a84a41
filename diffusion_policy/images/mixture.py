"""Whether the frames of a set are of one size and one EXIF orientation: the check of converter and inspection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

# Larger relative differences of aspect ratios are reported as such.
_SAME_ASPECT = 0.01
_UPRIGHT = 1


@dataclass(frozen=True)
class FrameKind:
    """Frames that were recorded alike.

    Attributes:
        width, height: of the upright picture, pixels.
        orientation: of EXIF, 1 to 8; 1 is upright.
        count: how many.
        first: the file of the first of them.
    """

    width: int
    height: int
    orientation: int = _UPRIGHT
    count: int = 1
    first: str = ""

    def __str__(self) -> str:
        turned = "" if self.orientation == _UPRIGHT else f" turned by EXIF orientation {self.orientation}"
        return f"{self.width}x{self.height}{turned} ({self.count}, the first {self.first})"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def kinds_of(frames: Iterable[FrameKind]) -> tuple[FrameKind, ...]:
    """The kinds that occur, each once, the most frequent first."""
    kinds: dict[tuple[int, int, int], FrameKind] = {}
    for one in frames:
        key = (one.width, one.height, one.orientation)
        before = kinds.get(key)
        kinds[key] = one if before is None else replace(before, count=before.count + one.count)
    return tuple(sorted(kinds.values(), key=lambda kind: -kind.count))


def mixture(cameras: Mapping[str, Sequence[FrameKind]]) -> str | None:
    """What is mixed in the frames of a set, by camera; None if those of each camera are of one kind."""
    for camera, frames in cameras.items():
        kinds = kinds_of(frames)
        if len(kinds) > 1:
            return f"frames of camera {camera!r} differ in {_difference(kinds)}: {', '.join(map(str, kinds))}"
    return None


def _difference(kinds: Sequence[FrameKind]) -> str:
    ratios = [kind.width / kind.height for kind in kinds]
    if max(ratios) / min(ratios) > 1 + _SAME_ASPECT:
        differing = "aspect ratio"
    else:
        differing = "size" if len({(kind.width, kind.height) for kind in kinds}) > 1 else ""
    turned = "EXIF orientation" if len({kind.orientation for kind in kinds}) > 1 else ""
    return " and ".join(filter(None, (differing, turned)))
