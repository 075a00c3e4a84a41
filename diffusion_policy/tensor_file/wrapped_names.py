"""Names that a wrapper has put a part into: `_orig_mod.model.head.weight` for `model.head.weight`.

torch.compile, DataParallel and their like hold a module inside another one, and its name gets into every name below.
The weights are whole; only their names are not those that anybody looks for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DataParallel or DistributedDataParallel",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning Fabric",
}
PART = re.compile(rf"(?:(?<=\.)|^)({'|'.join(WRAPPERS)})\.")
# A prefix that is no wrapper's is believed if so many of the names begin with it.
CONVINCING = 0.6


@dataclass(frozen=True)
class Wrapping:
    """What stands in the way of the names.

    Attributes:
        wrappers: parts of `WRAPPERS` that occur, wherever they stand.
        prefix: something else that most names begin with, as written after those are left out; "" for nothing.
        count: names that carry any of it.
        total: names.
        example: one of them.
    """

    wrappers: tuple[str, ...]
    prefix: str
    count: int
    total: int
    example: str

    def describe(self) -> str:
        """A sentence without its subject: "12 of 30 names carry ..."."""
        parts = [f"'{part}.' (left by {WRAPPERS[part]})" for part in self.wrappers]
        if self.prefix:
            parts.append(f"the prefix {self.prefix!r}")
        return f"{self.count} of {self.total} names carry {' and '.join(parts)}, such as {self.example!r}"

    @property
    def rules(self) -> tuple[str, ...]:
        """What to give to `--rules` of scripts/adapt.py so that it is left out."""
        prefix = f"{{rules: [{{rename: {{prefix: {self.prefix}, to: ''}}}}]}}"
        return (*(("bare_weights",) if self.wrappers else ()), *((prefix,) if self.prefix else ()))


def unwrapped(name: str) -> str:
    """The name without any part that a wrapper has put into it."""
    return PART.sub("", name)


def wrapping_of(names: Iterable[str], anchor: str) -> Wrapping | None:
    """What wrappers or a prefix have done to a set of names; None if nothing.

    Args:
        names: of the tensors.
        anchor: a name that should be among them; where only longer names end with it, the rest is a prefix.
    """
    plain = {name: unwrapped(name) for name in names}
    found = tuple(dict.fromkeys(part for name in plain for part in PART.findall(name)))
    longer = [name.removesuffix(anchor) for name in plain.values() if name.endswith(f".{anchor}")]
    prefix = longer[0] if longer and anchor not in plain.values() else ""
    if sum(name.startswith(prefix) for name in plain.values()) < CONVINCING * len(plain):
        prefix = ""
    carrying = [old for old, new in plain.items() if old != new or (prefix and new.startswith(prefix))]
    return Wrapping(found, prefix, len(carrying), len(plain), carrying[0]) if carrying else None
