"""Nested rectangles whose areas are numbers: the squarified treemap of Bruls, Huizing and van Wijk (2000)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, (x, y) its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    def inset(self, header: float, margin: float) -> Box:
        """What is left below a header and inside a margin; never negative."""
        width, height = self.width - 2 * margin, self.height - header - 2 * margin
        return Box(self.x + margin, self.y + header + margin, max(width, 0.0), max(height, 0.0))


@dataclass
class Node:
    """A part of a tree of names: either a leaf of some size, or the sum of its children."""

    name: str
    size: float = 0.0
    leaf: int | None = None
    children: dict[str, Node] = field(default_factory=dict)

    def add(self, path: Sequence[str], size: float, leaf: int) -> None:
        """Put a leaf at the end of a path."""
        self.size += size
        if not path:
            self.children[f"{leaf}"] = Node("", size, leaf)
            return
        self.children.setdefault(path[0], Node(path[0])).add(path[1:], size, leaf)

    def leaves(self) -> Iterator[int]:
        """All leaves below, and this one if it is one."""
        if self.leaf is not None:
            yield self.leaf
        for child in self.children.values():
            yield from child.leaves()

    def scaled(self, factor: float) -> Node:
        """The same tree with all sizes multiplied."""
        children = {name: child.scaled(factor) for name, child in self.children.items()}
        return Node(self.name, self.size * factor, self.leaf, children)

    def collapsed(self) -> Node:
        """The same tree without inner nodes of a single child; their names are joined."""
        children = {name: child.collapsed() for name, child in self.children.items()}
        if len(children) == 1:
            (only,) = children.values()
            name = ".".join(part for part in (self.name, only.name) if part)
            return Node(name, only.size, only.leaf, only.children)
        return Node(self.name, self.size, self.leaf, children)


@dataclass(frozen=True)
class Placed:
    """A node and where it is drawn. `label` is its name, after those of groups around it that have no header."""

    node: Node
    box: Box
    depth: int
    label: str
    headed: bool


def place(root: Node, box: Box, header: float = 15.0, smallest: tuple[float, float] = (54.0, 34.0)) -> Iterator[Placed]:
    """Boxes of a tree, outer ones first. A group gets a header if its box is larger than `smallest`."""
    yield from _place(root, box, 0, "", header, smallest)


def _place(
    node: Node, box: Box, depth: int, prefix: str, header: float, smallest: tuple[float, float]
) -> Iterator[Placed]:
    label = f"{prefix}.{node.name}" if prefix and node.name else prefix or node.name
    headed = bool(node.children) and depth > 0 and box.width > smallest[0] and box.height > smallest[1]
    yield Placed(node, box, depth, label, headed)
    inner = box.inset(header, 1.5) if headed else box
    children = sorted(node.children.values(), key=lambda child: -child.size)
    for child, spot in zip(children, squarify([child.size for child in children], inner), strict=True):
        yield from _place(child, spot, depth + 1, "" if headed else label, header, smallest)


def squarify(sizes: Sequence[float], box: Box) -> list[Box]:
    """Cut a box into boxes of these relative areas, as square as it goes. Sizes are positive, largest first."""
    total = sum(sizes)
    if not sizes or total <= 0:
        return [Box(box.x, box.y, 0.0, 0.0) for _ in sizes]
    areas = [size * box.width * box.height / total for size in sizes]
    boxes: list[Box] = []
    while areas:
        side = min(box.width, box.height)
        count = 1
        while count < len(areas) and _worst(areas[: count + 1], side) <= _worst(areas[:count], side):
            count += 1
        row, areas = areas[:count], areas[count:]
        placed, box = _row(row, box)
        boxes.extend(placed)
    return boxes


def _worst(row: Sequence[float], side: float) -> float:
    """The worst ratio of sides in a row of these areas along a side."""
    total = sum(row)
    if total <= 0 or side <= 0:
        return float("inf")
    return max(side**2 * max(row) / total**2, total**2 / (side**2 * max(min(row), 1e-12)))


def _row(areas: Sequence[float], box: Box) -> tuple[list[Box], Box]:
    """Lay a row along the shorter side; returns its boxes and what is left of the box."""
    total = sum(areas)
    upright = box.width >= box.height
    side = box.height if upright else box.width
    depth = total / side if side > 0 else 0.0
    boxes, offset = [], 0.0
    for area in areas:
        length = area / depth if depth > 0 else 0.0
        boxes.append(
            Box(box.x, box.y + offset, depth, length) if upright else Box(box.x + offset, box.y, length, depth)
        )
        offset += length
    if upright:
        return boxes, Box(box.x + depth, box.y, max(box.width - depth, 0.0), box.height)
    return boxes, Box(box.x, box.y + depth, box.width, max(box.height - depth, 0.0))
