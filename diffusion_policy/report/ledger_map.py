"""The map of a network: nested boxes, one per tensor; area is the number of parameters, color what became of them.

Often only a millionth of the network changed, so parts that changed as a whole are drawn at least large enough to
be seen. Colors are named here and defined in page.css, for light, dark and paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

from plotly.graph_objects import Figure, Treemap

from diffusion_policy.adapt.ledger import Entry, Ref

HEIGHT = 620
# A part that changed as a whole takes at least this share of the map.
VISIBLE = 0.012
# A part gets a frame with its name if it takes at least this share; in a smaller one, the frame would fill it.
FRAMED = 0.015
GROUP = "group"
"""Color of boxes that are not tensors."""


@dataclass
class Node:
    """A part of a tree of names: either a leaf of some size, or the sum of its children."""

    name: str
    size: float = 0.0
    leaf: int | None = None
    children: dict[str, Node] = field(default_factory=dict)

    def add(self, path: Sequence[str], size: float, leaf: int) -> None:
        """Puts a leaf at the end of a path."""
        self.size += size
        if not path:
            self.children[f"{leaf}"] = Node("", size, leaf)
            return
        self.children.setdefault(path[0], Node(path[0])).add(path[1:], size, leaf)

    def leaves(self) -> Iterator[int]:
        """Yields all leaves below, or this node if it is a leaf."""
        if self.leaf is not None:
            yield self.leaf
        for child in self.children.values():
            yield from child.leaves()

    def scaled(self, factor: float) -> Node:
        """Returns the same tree with all sizes multiplied."""
        children = {name: child.scaled(factor) for name, child in self.children.items()}
        return Node(self.name, self.size * factor, self.leaf, children)

    def collapsed(self) -> Node:
        """Returns the same tree without single-child inner nodes, whose names are joined."""
        children = {name: child.collapsed() for name, child in self.children.items()}
        if len(children) == 1:
            (only,) = children.values()
            return Node(joined(self.name, only.name), only.size, only.leaf, only.children)
        return Node(self.name, self.size, self.leaf, children)


@dataclass(frozen=True)
class Box:
    """One box of the map: `leaf` is an index, None for a part; `parent` is the enclosing box's index, -1 for none."""

    label: str
    size: float
    leaf: int | None
    parent: int


def joined(*names: str) -> str:
    """Returns the names that are not empty, joined by dots."""
    return ".".join(name for name in names if name)


def network_map(name: str, entries: Sequence[Entry]) -> Figure:
    """Returns the map of a network, one entry per tensor; hovering over a box shows its name, shape, rule and slots."""
    root = Node(name)
    for index, entry in enumerate(entries):
        if ref_of(entry).numel:
            root.add(entry.key.split("."), ref_of(entry).numel, index)
    boxes = list(framed(visible(root.collapsed(), entries)))
    leaves = [None if box.leaf is None else entries[box.leaf] for box in boxes]
    texts = [_hover_text(entry) if entry else box.label for entry, box in zip(leaves, boxes, strict=True)]
    figure = Figure(
        Treemap(
            ids=[str(number) for number in range(len(boxes))],
            labels=[escape(box.label, quote=False) for box in boxes],
            parents=["" if box.parent < 0 else str(box.parent) for box in boxes],
            values=[0.0 if box.leaf is None else box.size for box in boxes],  # a part is the sum of its contents
            branchvalues="remainder",
            customdata=[GROUP if entry is None else entry.action for entry in leaves],
            hovertext=[escape(text, quote=False).replace("\n", "<br>") for text in texts],
            hovertemplate="%{hovertext}<extra></extra>",
            textinfo="label",
            textposition="top left",
            textfont={"size": 11},
            marker={"pad": {"t": 19, "l": 2, "r": 2, "b": 2}, "line": {"width": 0.8}},
            tiling={"pad": 1},
            pathbar={"visible": False},
        )
    )
    figure.update_layout(margin={"l": 0, "r": 0, "t": 0, "b": 0}, uniformtext={"minsize": 9, "mode": "hide"})
    return figure


def visible(root: Node, entries: Sequence[Entry]) -> Node:
    """Returns the tree with each largest part that changed as a whole scaled to at least VISIBLE of the network."""
    smallest = VISIBLE * root.size

    def enlarged(node: Node) -> Node:
        actions = {entries[leaf].action for leaf in node.leaves()}
        if actions == {"copied"} or not node.size:
            return node
        if len(actions) == 1:
            return node.scaled(max(1.0, smallest / node.size))
        children = {name: enlarged(child) for name, child in node.children.items()}
        return Node(node.name, sum(child.size for child in children.values()), node.leaf, children)

    return enlarged(root)


def framed(root: Node) -> Iterator[Box]:
    """Yields the boxes of a tree, outer ones first. Inside a part without a frame, names are prefixed with its own."""
    boxes: list[Box] = []

    def put(node: Node, parent: int, prefix: str) -> None:
        label = joined(prefix, node.name)
        has_frame = node.leaf is not None or node is root or node.size >= FRAMED * root.size
        if has_frame:
            boxes.append(Box(label, node.size, node.leaf, parent))
            parent = len(boxes) - 1
        for child in sorted(node.children.values(), key=lambda child: -child.size):
            put(child, parent, "" if has_frame else label)

    put(root, -1, "")
    return iter(boxes)


def ref_of(entry: Entry) -> Ref:
    """Returns the tensor of an entry: the new one if there is one."""
    ref = entry.target or entry.source
    assert ref is not None
    return ref


def _hover_text(entry: Entry) -> str:
    shapes = " -> ".join(str(list(ref.shape)) for ref in (entry.source, entry.target) if ref)
    lines = [entry.key, f"{entry.action} {shapes}, {ref_of(entry).numel:,} parameters", entry.rule]
    lines.extend(slot.describe() for slot in entry.slots)
    return "\n".join([*lines, f"new numbers: {entry.init}"] if entry.init else lines)
