"""Recognizes and removes name parts inserted by wrappers: `_orig_mod.model.head.weight` for `model.head.weight`.

torch.compile, DataParallel and similar wrappers hold the module as a submodule, whose name becomes part of every name.
The weights themselves are unchanged.
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
# A prefix that is not from a known wrapper is accepted if at least this share of the names has it.
MIN_SHARE = 0.6


@dataclass(frozen=True)
class Wrapping:
    """Parts that wrappers inserted into names.

    Attributes:
        wrappers: keys of `WRAPPERS` that occur anywhere in the names.
        prefix: another prefix of most names, after those parts were removed; "" if there is none.
        count: number of names with any of these parts.
        total: number of names.
        example: one of the names with such parts.
    """

    wrappers: tuple[str, ...]
    prefix: str
    count: int
    total: int
    example: str

    def describe(self) -> str:
        """A clause: "12 of 30 names carry ..."."""
        parts = [f"'{part}.' (left by {WRAPPERS[part]})" for part in self.wrappers]
        if self.prefix:
            parts.append(f"the prefix {self.prefix!r}")
        return f"{self.count} of {self.total} names carry {' and '.join(parts)}, such as {self.example!r}"

    @property
    def rules(self) -> tuple[str, ...]:
        """Arguments for `--rules` of scripts/adapt.py that remove these parts."""
        prefix = f"{{rules: [{{rename: {{prefix: {self.prefix}, to: ''}}}}]}}"
        return (*(("bare_weights",) if self.wrappers else ()), *((prefix,) if self.prefix else ()))


def unwrapped(name: str) -> str:
    """The name without parts inserted by wrappers."""
    return PART.sub("", name)


def wrapping_of(names: Iterable[str], anchor: str) -> Wrapping | None:
    """The parts that wrappers inserted into a set of names, or their prefix; None if there are none.

    Args:
        names: names of the tensors.
        anchor: a name that should be among them; if only longer names end with it, their beginning is a prefix.
    """
    plain = {name: unwrapped(name) for name in names}
    parts = tuple(dict.fromkeys(part for name in plain for part in PART.findall(name)))
    longer = [name.removesuffix(anchor) for name in plain.values() if name.endswith(f".{anchor}")]
    prefix = longer[0] if longer and anchor not in plain.values() else ""
    if sum(name.startswith(prefix) for name in plain.values()) < MIN_SHARE * len(plain):
        prefix = ""
    carrying = [old for old, new in plain.items() if old != new or (prefix and new.startswith(prefix))]
    return Wrapping(parts, prefix, len(carrying), len(plain), carrying[0]) if carrying else None
