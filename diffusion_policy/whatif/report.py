"""The report of `config_change.what_if`: counts, lists of tensors, and the impact of each changed value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusion_policy.families.changes import Change
from diffusion_policy.families.family import ABSENT, Conflict, Impact, Shape
from diffusion_policy.tables import Printable, Table, Text, numbers

COUNTED = ("loads", "shape_mismatch", "missing_new_init", "unexpected_dropped")
LISTED = 8  # names of each kind shown in the table; the JSON has all
_COLORS = {
    Impact.SAFE: "green", Impact.DIFFERS: "yellow", Impact.PARTLY: "yellow",
    Impact.BREAKING: "red", Impact.CANNOT_RUN: "red", Impact.NOT_CONSTRUCTED: "red",
}  # fmt: skip


@dataclass(frozen=True)
class ChangeImpact:
    """The impact of one changed value, the reason, and the common belief where that is wrong."""

    change: Change
    verdict: Impact
    why: str
    belief: str = ""

    @property
    def sentence(self) -> str:
        """Impact, reason and belief in one line."""
        return f"{self.verdict}: {self.why}" + (f" ({self.belief})" if self.belief else "")

    def to_json(self) -> dict[str, Any]:
        """Plain data; an absent value is null with `removed` or `added` set."""
        change = self.change
        return {
            "key": change.spelling,
            "from": None if change.before is ABSENT else change.before,
            "to": None if change.after is ABSENT else change.after,
            "added": change.before is ABSENT,
            "removed": change.after is ABSENT,
            "verdict": str(self.verdict),
            "why": self.why,
            "common_belief": self.belief or None,
        }


@dataclass(frozen=True)
class Comparison:
    """Names and shapes of a pretrained model (old) against those of a changed one (new)."""

    old: Mapping[str, Shape]
    new: Mapping[str, Shape]

    @property
    def loads(self) -> list[str]:
        """Names that both sides have with the same shape."""
        return [name for name, shape in self.old.items() if self.new.get(name) == shape]

    @property
    def shape_mismatch(self) -> dict[str, dict[str, Any]]:
        """Names whose shapes differ; the overlap is the size of the leading block that could be copied."""
        return {
            name: {
                "checkpoint": list(shape),
                "model": list(self.new[name]),
                "leading_block_overlap_elements": _overlap(shape, self.new[name]),
            }
            for name, shape in self.old.items()
            if name in self.new and self.new[name] != shape
        }

    @property
    def missing_new_init(self) -> dict[str, list[int]]:
        """Names that only the changed model has."""
        return {name: list(shape) for name, shape in self.new.items() if name not in self.old}

    @property
    def unexpected_dropped(self) -> dict[str, list[int]]:
        """Names that only the pretrained model has."""
        return {name: list(shape) for name, shape in self.old.items() if name not in self.new}

    def counts(self) -> dict[str, dict[str, Any]]:
        """Numbers of tensors and elements of each kind, and the loaded shares of model and checkpoint."""
        mismatch, missing, dropped = self.shape_mismatch, self.missing_new_init, self.unexpected_dropped
        loads = _elements(self.old[name] for name in self.loads)
        model, checkpoint = _elements(self.new.values()), _elements(self.old.values())
        return {
            "tensors": dict(zip(COUNTED, (len(self.loads), len(mismatch), len(missing), len(dropped)), strict=True)),
            "elements": {
                "loads": loads,
                "shape_mismatch_in_checkpoint": _elements(self.old[name] for name in mismatch),
                "shape_mismatch_in_model": _elements(self.new[name] for name in mismatch),
                "missing_new_init": _elements(missing.values()),
                "unexpected_dropped": _elements(dropped.values()),
                "pretrained_fraction_of_model": round(loads / max(model, 1), 6),
                "checkpoint_fraction_used": round(loads / max(checkpoint, 1), 6),
            },
        }

    def cost(self) -> str:
        """The tensors that do not load, as a phrase: "3 tensors of another shape (2,622,464 elements, pretrained)"."""
        mismatch, missing, dropped = self.shape_mismatch, self.missing_new_init, self.unexpected_dropped
        kinds = (
            (len(mismatch), "of another shape", _elements(self.old[name] for name in mismatch), "pretrained"),
            (len(missing), "new", _elements(missing.values()), "not pretrained"),
            (len(dropped), "dropped", _elements(dropped.values()), "pretrained"),
        )
        return ", ".join(
            f"{count} tensor{'s' * (count > 1)} {kind} ({elements:,} elements, {whose})"
            for count, kind, elements, whose in kinds
            if count
        )


@dataclass(frozen=True)
class WhatIfReport:
    """The report; `comparison` is None if the changed model cannot be constructed."""

    model: str
    title: str
    comparison: Comparison | None
    verdicts: tuple[ChangeImpact, ...]
    conflicts: tuple[Conflict, ...]
    error: str = ""

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """Counts by tensors and by elements; empty if the model cannot be constructed."""
        return self.comparison.counts() if self.comparison else {}

    @property
    def verdict(self) -> Impact:
        """The gravest impact of the changes, alone and together."""
        whole = (
            Impact.NOT_CONSTRUCTED if self.comparison is None else Impact.CANNOT_RUN if self.conflicts else Impact.SAFE
        )
        return max((whole, *(one.verdict for one in self.verdicts)), key=lambda verdict: verdict.severity)

    @property
    def runs(self) -> bool:
        """Whether the changed model can be constructed and its forward pass can run."""
        return self.comparison is not None and not self.conflicts

    @property
    def breaking(self) -> bool:
        """Whether a loader would refuse, or the model would not run."""
        return self.verdict.severity >= Impact.BREAKING.severity

    @property
    def exit_status(self) -> int:
        """0 if the pretrained weights can be loaded and run, if only in part; 1 otherwise."""
        return int(self.breaking)

    def to_json(self) -> dict[str, Any]:
        """Plain data: counts, lists of tensors, and the impact of each changed value."""
        one = self.comparison
        lists = {kind: getattr(one, kind) for kind in COUNTED} if one else {}
        return {
            "model": self.model,
            "verdict": str(self.verdict),
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "constructs": one is not None,
            "construct_error": self.error or None,
            "runs": self.runs,
            "clashes": [conflict.reason for conflict in self.conflicts],
            "counts": self.counts or None,
            **lists,
        }

    def table(self) -> list[Printable]:
        """A table for the terminal: impacts, counts, and the first tensors of each kind that does not load."""
        verdicts = Table("change", "verdict", "why", framed=True, title=f"what if: {self.title}")
        for one in self.verdicts:
            why = f"{one.why}\n{one.belief}" if one.belief else one.why
            verdicts.add(str(one.change), Text(str(one.verdict), style=_COLORS[one.verdict]), why)
        rows: list[Printable] = [verdicts]
        if self.comparison is None:
            return [*rows, Text(f"does not construct: {self.error}", style="red")]
        rows += [Text(f"cannot run: {conflict.reason}", style="red") for conflict in self.conflicts]
        return [*rows, _counts_table(self.comparison), *_lists(self.comparison)]


def _counts_table(comparison: Comparison) -> Table:
    counts = comparison.counts()
    tensors, elements = counts["tensors"], counts["elements"]
    table = Table("", *numbers("tensors", "elements"), framed=True)
    for kind in COUNTED:
        size = elements["shape_mismatch_in_model" if kind == "shape_mismatch" else kind]
        table.add(kind.replace("_", " "), f"{tensors[kind]:,}", f"{size:,}")
    share = elements["pretrained_fraction_of_model"]
    table.add_section()
    table.add("pretrained share of the model", "", f"{share:.2%}")
    return table


def _lists(comparison: Comparison) -> list[Text]:
    """The first names of each kind that does not load."""
    lines = []
    mismatch = {name: f"{both['checkpoint']} -> {both['model']}" for name, both in comparison.shape_mismatch.items()}
    for kind, names in (("shape mismatch", mismatch), ("missing, new", comparison.missing_new_init),
                        ("unexpected, dropped", comparison.unexpected_dropped)):  # fmt: skip
        lines += [Text(f"{kind}: {name} {shape}") for name, shape in list(names.items())[:LISTED]]
        if len(names) > LISTED:
            lines.append(Text(f"{kind}: ... and {len(names) - LISTED} more", style="dim"))
    return lines


def _elements(shapes: Iterable[Iterable[int]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _overlap(one: Shape, other: Shape) -> int:
    """Number of elements of the leading block that both shapes share; 0 if their numbers of dimensions differ."""
    return math.prod(map(min, one, other)) if len(one) == len(other) else 0
