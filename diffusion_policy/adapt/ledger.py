"""The ledger of an adaptation: the action taken for every key and tensor, with sums that must match both files.

Each row records one action: a target entry was *copied*, *grown*, *recomputed* or *fresh* (newly initialized), or a
source entry was *dropped*. A stripped tensor has two rows, dropped in the source and fresh in the target. The totals
are counted from the files and not from the rows, so `Ledger.check` detects a missing row.

A "tensor" is one block of storage: the observation encoder registers its backbone under two names, so a checkpoint has
more keys than tensors. "Parameters" counts the elements of all tensors once, buffers and statistics included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.folding import fold
from diffusion_policy.adapt.slots import SlotMap
from diffusion_policy.tables import Printable, Table, Text, as_texts, numbers

Action = Literal["copied", "grown", "recomputed", "fresh", "dropped"]
ACTIONS: tuple[Action, ...] = ("copied", "grown", "recomputed", "fresh", "dropped")
FILLS_TARGET = ("copied", "grown", "recomputed", "fresh")
LEDGER_VERSION = 1
STYLES = {"copied": "green", "grown": "cyan", "recomputed": "blue", "fresh": "yellow", "dropped": "red"}


@dataclass(frozen=True)
class Ref:
    """A reference to a tensor by one of its names.

    Attributes:
        key: name in its state dict.
        shape: shape of the tensor; () also for entries that are not tensors.
        tensor: identity of the tensor; equal for two names of the same tensor, empty for entries that are not tensors
            (such as a pickled step counter).
    """

    key: str
    shape: tuple[int, ...] = ()
    tensor: str = ""

    @property
    def numel(self) -> int:
        """Number of elements; 0 for an entry that is not a tensor."""
        if not self.tensor:
            return 0
        count = 1
        for width in self.shape:
            count *= width
        return count


@dataclass(frozen=True)
class Entry:
    """One row of the ledger.

    Attributes:
        part: part of the checkpoint: model, ema_model, optimizer, pickles.
        action: the action taken.
        rule: the rule that decided the action, as text.
        source: the source tensor, copied or dropped; None for fresh ones.
        target: the target tensor; None for dropped ones.
        slots: for grown tensors, the source slot of each target slot, per changed axis.
        init: initialization of values that come from no source slot.
        origin: the source's part, if it is not `part`.
    """

    part: str
    action: Action
    rule: str
    source: Ref | None = None
    target: Ref | None = None
    slots: tuple[SlotMap, ...] = ()
    init: str = ""
    origin: str = ""

    @property
    def key(self) -> str:
        """The target's name, or the dropped source's."""
        ref = self.target or self.source
        assert ref is not None
        return ref.key

    @property
    def new_numel(self) -> int:
        """Elements of the target that come from no source: all of a fresh tensor, the new slots of a grown one."""
        if self.target is None or self.action == "copied":
            return 0
        kept = 1 if self.action == "grown" else 0
        by_axis = {slot.axis: len(slot.kept) for slot in self.slots}
        for axis, width in enumerate(self.target.shape):
            kept *= by_axis.get(axis, width)
        return self.target.numel - kept

    def to_json(self) -> dict[str, Any]:
        """Plain JSON without empty fields."""
        row: dict[str, Any] = {"part": self.part, "action": self.action, "rule": self.rule}
        for side, ref in (("source", self.source), ("target", self.target)):
            if ref is not None:
                row[side] = {"key": ref.key, "shape": list(ref.shape), "tensor": ref.tensor}
        if self.slots:
            row["slots"] = [slot.to_json() for slot in self.slots]
        row.update({name: value for name, value in (("init", self.init), ("origin", self.origin)) if value})
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Entry:
        """Inverse of `to_json`."""

        def ref(side: str) -> Ref | None:
            entry = row.get(side)
            return Ref(entry["key"], tuple(entry["shape"]), entry["tensor"]) if entry else None

        slots = tuple(SlotMap.from_json(slot) for slot in row.get("slots", ()))
        return cls(
            row["part"], row["action"], row["rule"], ref("source"), ref("target"),
            slots, row.get("init", ""), row.get("origin", ""),
        )  # fmt: skip


@dataclass(frozen=True)
class Count:
    """Numbers of keys, tensors and parameters of some entries."""

    keys: int = 0
    tensors: int = 0
    parameters: int = 0

    @classmethod
    def of(cls, refs: Iterable[Ref]) -> Count:
        """Count names, distinct tensors and their elements."""
        by_key = {ref.key: ref for ref in refs}
        tensors = {ref.tensor: ref.numel for ref in by_key.values() if ref.tensor}
        return cls(len(by_key), len(tensors), sum(tensors.values()))

    def __str__(self) -> str:
        return f"{self.keys} keys, {self.tensors} tensors, {self.parameters:,} parameters"

    def to_json(self) -> dict[str, int]:
        """Plain JSON."""
        return {"keys": self.keys, "tensors": self.tensors, "parameters": self.parameters}


@dataclass(frozen=True)
class Ledger:
    """Every key and tensor of source and target, and the totals of both files.

    Attributes:
        entries: the rows.
        source_totals: counts of the source, by part.
        target_totals: counts of the target, by part.
        notes: further remarks, one sentence each.
    """

    entries: tuple[Entry, ...]
    source_totals: dict[str, Count]
    target_totals: dict[str, Count]
    notes: tuple[str, ...] = field(default=())

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def of(self, *actions: str, part: str | None = None) -> tuple[Entry, ...]:
        """The rows with one of these actions (with any, if none is given), of one part or of all."""
        return tuple(
            entry for entry in self.entries if (not actions or entry.action in actions) and part in (None, entry.part)
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts, in order of appearance."""
        return tuple(dict.fromkeys(entry.part for entry in self.entries))

    def counts(self, part: str | None = None) -> dict[Action, Count]:
        """Counts of target keys, tensors and parameters by action; for "dropped", those of the source."""
        totals: dict[Action, Count] = {}
        for action in ACTIONS:
            per_part = (
                Count.of(_side(entry) for entry in self.of(action, part=name))
                for name in ((part,) if part else self.parts)
            )
            totals[action] = _sum(per_part)
        return totals

    def parameters(self, part: str) -> dict[str, int]:
        """Parameters of one part of the target by origin: inherited, grown (new slots only), fresh, recomputed."""
        by_tensor: dict[str, tuple[Action, int, int]] = {}
        for entry in self.of(*FILLS_TARGET, part=part):
            assert entry.target is not None
            by_tensor.setdefault(entry.target.tensor, (entry.action, entry.target.numel, entry.new_numel))
        sums = {"inherited": 0, "grown": 0, "fresh": 0, "recomputed": 0}
        for action, numel, new in by_tensor.values():
            if action == "recomputed":
                sums["recomputed"] += numel
                continue
            sums["inherited"] += numel - new
            sums["grown" if action == "grown" else "fresh"] += new
        return sums

    def coverage(self, part: str) -> float:
        """Share of the target's parameters that come from the source, without recomputed ones; 1.0 if none remain."""
        sums = self.parameters(part)
        counted = sums["inherited"] + sums["grown"] + sums["fresh"]
        return sums["inherited"] / counted if counted else 1.0

    def summary(self) -> str:
        """One line per part, for a log."""
        lines = []
        for part in self.parts:
            counts = {action: count for action, count in self.counts(part).items() if count.keys}
            listed = "; ".join(f"{action} {count}" for action, count in counts.items())
            lines.append(f"{part}: {listed}")
        return "\n".join(lines)

    def check(self) -> None:
        """Compare the rows with the totals of the files.

        Raises:
            AdaptError: a key is accounted for twice or not at all, or a sum differs; the message names it.
        """
        for part in dict.fromkeys((*self.source_totals, *self.target_totals)):
            read = [entry.source for entry in self if entry.source and (entry.origin or entry.part) == part]
            filled = [entry.target for entry in self if entry.target and entry.part == part]
            twice = [key for key, times in Counter(ref.key for ref in filled).items() if times > 1]
            if twice:
                raise AdaptError(f"ledger: {part} fills {twice} more than once")
            both = (("source", read, self.source_totals), ("target", filled, self.target_totals))
            for side, refs, totals in both:
                counted, total = Count.of(refs), totals.get(part, Count())
                if counted != total:
                    raise AdaptError(f"ledger: the {side}'s {part} holds {total}, but the rows account for {counted}")

    def table(self, lines: int = 12) -> list[Printable]:
        """A table for the terminal: counts per part and action, then all rows but copies, long lists shortened."""
        return ledger_table(self, lines)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: counts first, then every row."""

        def totals(side: dict[str, Count]) -> dict[str, dict[str, int]]:
            return {part: count.to_json() for part, count in side.items()}

        return {
            "version": LEDGER_VERSION,
            "counts": {
                part: {action: count.to_json() for action, count in self.counts(part).items()} for part in self.parts
            },
            "source_totals": totals(self.source_totals),
            "target_totals": totals(self.target_totals),
            "notes": list(self.notes),
            "entries": [entry.to_json() for entry in self.entries],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Ledger:
        """Inverse of `to_json`; AdaptError if it is not a ledger of this version."""
        if data.get("version") != LEDGER_VERSION:
            raise AdaptError(f"ledger has version {data.get('version')!r}; this code reads {LEDGER_VERSION}")

        def totals(side: str) -> dict[str, Count]:
            return {part: Count(**count) for part, count in data[side].items()}

        return cls(
            tuple(Entry.from_json(row) for row in data["entries"]),
            totals("source_totals"), totals("target_totals"), tuple(data["notes"]),
        )  # fmt: skip


def merged(ledgers: Iterable[Ledger], notes: Iterable[str] = ()) -> Ledger:
    """One ledger of several parts; each part must occur once."""
    ledgers = tuple(ledgers)
    source: dict[str, Count] = {}
    target: dict[str, Count] = {}
    for ledger in ledgers:
        source.update(ledger.source_totals)
        target.update(ledger.target_totals)
    entries = tuple(entry for ledger in ledgers for entry in ledger)
    return Ledger(entries, source, target, tuple(note for ledger in ledgers for note in ledger.notes) + tuple(notes))


def _side(entry: Entry) -> Ref:
    ref = entry.target if entry.action in FILLS_TARGET else entry.source
    assert ref is not None
    return ref


def _sum(counts: Iterable[Count]) -> Count:
    keys = tensors = parameters = 0
    for count in counts:
        keys, tensors, parameters = keys + count.keys, tensors + count.tensors, parameters + count.parameters
    return Count(keys, tensors, parameters)


def ledger_table(ledger: Ledger, lines: int) -> list[Printable]:
    """The table of a ledger for the terminal; `lines` names are listed per rule."""
    sums = Table("part", "", *numbers("keys", "tensors", "parameters"))
    for part in ledger.parts:
        for action, count in ledger.counts(part).items():
            if count.keys:
                counted = (f"{count.keys:,}", f"{count.tensors:,}", f"{count.parameters:,}")
                sums.add(part, Text(action, style=STYLES[action]), *counted)
    blocks: list[Printable] = [sums]
    rows: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in ledger.of("grown", "recomputed", "fresh", "dropped"):
        rows.setdefault((entry.action, entry.rule, entry.init), []).append(entry)
    everything = {entry.key for entry in ledger}
    for (name, rule, init), entries in rows.items():
        parts = [(f"\n{name} ", STYLES[name]), (rule, ""), (f"; new: {init}" if init else "", "dim")]
        grown = dict.fromkeys(_row_text(entry) for entry in entries if entry.slots)
        folded = [*grown, *fold({entry.key for entry in entries if not entry.slots}, everything)]
        parts += [(f"\n  {line}", "") for line in folded[:lines]]
        if len(folded) > lines:
            parts.append((f"\n  ... and {len(folded) - lines} more", "dim"))
        blocks.append(Text(*parts))
    return [*blocks, *as_texts([f"\nnote: {note}" for note in ledger.notes])]


def _row_text(entry: Entry) -> str:
    shapes = " -> ".join(str(list(ref.shape)) for ref in (entry.source, entry.target) if ref and ref.tensor)
    slots = "; ".join(slot.describe() for slot in entry.slots)
    return "  ".join(text for text in (entry.key, shapes, slots) if text)
