"""Finds the weights in a file of any program: live weights, their average, and everything else, by nesting and names.

A file nests its state dict under keys of the program's own (`state_dict`, `model.state_dict`, `state_dicts.model`),
with optimizers, callbacks and counters next to it. The search descends as long as the way is unique: an entry without
its own tensors in which exactly one entry holds tensors and is neither an optimizer's nor an average. Where it ends are
the live weights; several entries on one level are parts of one network.

An average may be anywhere and is found by its name (`ema_model`, `state_dict_ema`, `callbacks.EMA`) and by holding the
same tensor names: in a separate entry, or under a prefix among the live weights, as Lightning stores submodules.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from diffusion_policy.tensor_file import TensorFile, TensorInfo

_AVERAGE = re.compile(r"(?:^|[._])(ema|averaged?|avg|shadow|swa)(?=$|[._])", re.IGNORECASE)
_NO_WEIGHTS = re.compile(
    r"optim|sched|callback|loops?$|rng|grad_?scaler|scaler|amp|loss|metric|stats?$|history|hyper|hparam|args|config|cfg"
    r"|epoch|step|buffer|teacher|discriminator|pickles|run_state|provenance",
    re.IGNORECASE,
)
# An average belongs to the live weights if it has at least this share of their names.
MIN_SHARE = 0.6

Names = dict[str, str]  # name within the weights: dotted path in the file


@dataclass(frozen=True)
class Weights:
    """The weights in a file.

    Attributes:
        entry: dotted path of the live weights; "" for the whole file.
        live: dotted path in the file of each live tensor, by its name within the entry.
        average_entry: where the average is, in words; "" without one.
        average: the same for the average, by the names of the live weights.
        rest: the file's other entries with tensors or without, by the dotted path of the entry.
        unnamed: number of tensors in lists, which have no names and so cannot be matched.
    """

    entry: str
    live: Names
    average_entry: str
    average: Names
    rest: Mapping[str, Any]
    unnamed: int

    def describe(self) -> str:
        """What was found, in one sentence."""
        where = f"in {self.entry!r}" if self.entry else "at the top level"
        text = f"{len(self.live)} live {where}" if self.live else "none with names"
        if self.average:
            text += f"; {len(self.average)} averaged in {self.average_entry!r}"
        if self.unnamed:
            text += f"; {self.unnamed} in lists, without names: nothing tells which tensor is which"
        return text


def weights_of(file: TensorFile) -> Weights:
    """The weights in an open file; no tensor is read."""
    entry, node = _live(file.tree)
    live = {name: info.name for name, info in _named(node)}
    average_entry, average = _inside(live)
    if average:
        live = {name: path for name, path in live.items() if path not in average.values()}
    else:
        average_entry, average = _average_of(file.tree, entry, live)
    taken = {*live.values(), *average.values()}
    unnamed = sum(info.name not in taken for info in _unnamed(file.tree))
    return Weights(entry, live, average_entry, average, dict(_rest(file.tree, taken)), unnamed)


def _live(tree: Any) -> tuple[str, Any]:
    """(dotted path, entry) of the live weights."""
    path, node = "", tree
    while isinstance(node, Mapping) and not any(isinstance(child, TensorInfo) for child in node.values()):
        holding = {str(key): child for key, child in node.items() if _holds(child)}
        named = {key: child for key, child in holding.items() if isinstance(child, Mapping)}
        plain = {key: child for key, child in named.items() if not _AVERAGE.search(key)} or named
        weights = {key: child for key, child in plain.items() if not _NO_WEIGHTS.search(key)} or plain
        if len(weights) != 1:
            return path, weights
        ((key, node),) = weights.items()
        path = _joined(path, key)
    return path, node


def _inside(live: Names) -> tuple[str, Names]:
    """An average under a prefix among the live names: `ema_model.net.w` with `model.net.w`."""
    heads: dict[str, dict[str, str]] = {}
    for name, path in live.items():
        head, _, rest = name.partition(".")
        heads.setdefault(head, {})[rest] = path
    for head, own in heads.items():
        if not _AVERAGE.search(head):
            continue
        for other, theirs in heads.items():
            shared = own.keys() & theirs.keys()
            if not _AVERAGE.search(other) and len(shared) >= MIN_SHARE * len(theirs) > 0:
                return head, {f"{other}.{rest}": own[rest] for rest in own if rest in shared}
    return "", {}


def _average_of(tree: Any, entry: str, live: Names) -> tuple[str, Names]:
    """An average in a separate entry, which may nest the names deeper."""
    if not live:
        return "", {}
    for path, node in _entries(tree, ""):
        if path == entry or entry.startswith(f"{path}.") or not _AVERAGE.search(path):
            continue
        inner, weights = _live(node)
        whole = _joined(path, inner)
        own = {name: info.name for name, info in _named(weights) if name in live}
        if len(own) >= MIN_SHARE * len(live):
            return whole, own
    return "", {}


def _entries(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(dotted path, entry) of every dictionary and list of a tree, outer ones first."""
    for key, child in _children(node):
        if isinstance(child, Mapping | list | tuple):
            yield _joined(path, key), child
            yield from _entries(child, _joined(path, key))


def _named(node: Any) -> Iterator[tuple[str, TensorInfo]]:
    """(name, tensor) of the tensors below an entry whose names are all keys, not places in a list."""
    for key, child in _children(node) if isinstance(node, Mapping) else ():
        if isinstance(child, TensorInfo):
            yield key, child
        else:
            yield from ((f"{key}.{name}", info) for name, info in _named(child))


def _unnamed(node: Any, *, in_list: bool = False) -> Iterator[TensorInfo]:
    """The tensors in lists that do not belong to an optimizer."""
    if isinstance(node, TensorInfo):
        if in_list:
            yield node
        return
    for key, child in _children(node):
        if not _NO_WEIGHTS.search(key):
            yield from _unnamed(child, in_list=in_list or isinstance(node, list | tuple))


def _rest(node: Any, taken: set[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, content) of the largest entries that hold no tensor of the weights."""
    for key, child in _children(node):
        if not _holds(child, taken):
            yield _joined(path, key), child
        elif not isinstance(child, TensorInfo):
            yield from _rest(child, taken, _joined(path, key))


def _holds(node: Any, names: Collection[str] | None = None) -> bool:
    """Whether there is a tensor in an entry, or one of these."""
    if isinstance(node, TensorInfo):
        return names is None or node.name in names
    return any(_holds(child, names) for _, child in _children(node))


def _children(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, Mapping):
        return [(str(key), child) for key, child in node.items()]
    return [(str(index), child) for index, child in enumerate(node)] if isinstance(node, list | tuple) else []


def _joined(path: str, key: str) -> str:
    return ".".join(part for part in (path, key) if part)
