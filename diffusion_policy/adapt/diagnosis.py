"""Explains in one sentence each why names or shapes do not match, and gives the rule that would resolve it.

Two sets of names nearly always differ for one of seven reasons: the wrong level of the file's nesting was read, a
wrapper inserted parts into the names, a prefix is missing or superfluous, a group was renamed, tensors are transposed,
the shape follows from a config change, or the network is a different one. Each reason is recognized by the number of
names (and shapes) that agree after it is undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from diffusion_policy.adapt.folding import fold
from diffusion_policy.adapt.named_axes import NamedAxes
from diffusion_policy.families import recognize
from diffusion_policy.tensor_file import TensorInfo
from diffusion_policy.tensor_file.wrapped_names import unwrapped, wrapping_of

Shape = tuple[int, ...]
Infos = Mapping[str, TensorInfo]

NESTINGS = ("model", "ema_model", "state_dict", "params", "weights")
LISTED = 8
# A cause is accepted when it explains at least this share of the names in question.
MIN_SHARE = 0.6


@dataclass(frozen=True)
class Mismatch:
    """A name that both sides have whose tensor cannot be copied."""

    key: str
    source: Shape
    target: Shape
    reason: str = ""

    def __str__(self) -> str:
        text = f"{self.key}: {list(self.source)} in the source, {list(self.target)} in the target"
        return f"{text}; {self.reason}" if self.reason else text


@dataclass
class Problems:
    """What a plan could not account for; false if everything is accounted for.

    Attributes:
        missing: target names that nothing fills.
        unexpected: source names that nothing uses.
        mismatched: names on both sides whose shapes, types or slots differ.
        unused_rules: rules that applied to no tensor.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)
    unused_rules: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched or self.unused_rules)


def explain(source: Infos, target: Infos, problems: Problems, target_axes: NamedAxes) -> str:
    """The error message: counts, the cause if one is recognized, names, and the rules that would resolve it."""
    lines = [
        f"{len(problems.missing)} target names missing, {len(problems.unexpected)} source names unexpected, "
        f"{len(problems.mismatched)} of another shape or meaning, {len(problems.unused_rules)} rules without effect."
    ]
    lines.extend(diagnose(source, target, problems))
    lines.extend(_list("missing in the source", fold(problems.missing, target)))
    lines.extend(_list("unexpected in the source", fold(problems.unexpected, source)))
    lines.extend(_list("do not fit", [str(mismatch) for mismatch in problems.mismatched]))
    lines.extend(_list("rules without effect", problems.unused_rules))
    rules = suggest(source, target, problems, target_axes)
    if rules and not _nesting(source, target, problems):
        lines.append("Rules that would resolve it (check each, then put them under `rules:` in a rules file):")
        lines.append(yaml.safe_dump(rules, sort_keys=False, width=110).rstrip())
    return "\n".join(lines)


def diagnose(source: Infos, target: Infos, problems: Problems) -> list[str]:
    """One sentence for each recognized cause; empty if none is recognized."""
    sentences = [sentence for cause in _CAUSES if (sentence := cause(source, target, problems))][:1]
    transposed = [m.key for m in problems.mismatched if m.source == m.target[::-1] and len(m.source) > 1]
    if transposed:
        sentences.append(
            f"{len(transposed)} tensors are transposed ({transposed[0]}, ...): the file stores (in, out) where "
            "(out, in) is expected; transpose them when exporting, a `grow` rule cannot do it."
        )
    source_family, target_family = (
        recognize({key: info.shape for key, info in side.items()}) for side in (source, target)
    )
    if source_family and target_family and source_family.family is target_family.family and problems.mismatched:
        settings = target_family.settings
        changed = [f"{key} {old} -> {settings[key]}" for key, old in source_family.settings.items()
                   if key in settings and settings[key] != old]  # fmt: skip
        if changed:
            sentences.append(f"Source and target differ in {', '.join(changed)}, according to their shapes.")
    return sentences


def _nesting(source: Infos, target: Infos, problems: Problems) -> str:
    """The weights are one level down in the file's nesting."""
    if not problems.missing:
        return ""
    heads = dict.fromkeys(key.split(".", 1)[0] for key in source)
    for depth in ("", "state_dicts."):
        names = [head for head in NESTINGS if f"{depth}{head}".split(".")[0] in heads]
        for name in names:
            prefix = f"{depth}{name}."
            inner = {key.removeprefix(prefix) for key in source if key.startswith(prefix)}
            if len(inner & target.keys()) >= MIN_SHARE * len(target) > 0.5 and len(inner & set(problems.missing)) > 0:
                shown = ", ".join(repr(head) for head in heads)
                return (
                    f"Wrong nesting: the source's top level is {shown}, and the weights are one level down; "
                    f"{len(inner & target.keys())} of {len(target)} target names match inside {prefix.rstrip('.')!r}. "
                    f"Load that entry instead of the whole file."
                )
    return ""


def _wrapped(source: Infos, target: Infos, problems: Problems) -> str:
    """A wrapper inserted parts into the names, as a prefix or elsewhere."""
    missing = set(problems.missing)
    bare = {key: unwrapped(key) for key in problems.unexpected}
    wrapped = [key for key, name in bare.items() if name != key and name in missing]
    if not wrapped or len(wrapped) < MIN_SHARE * len(missing):
        return ""
    wrapping = wrapping_of(wrapped, "")
    assert wrapping is not None
    return (
        f"Wrapped names: {len(wrapped)} of the {len(missing)} missing names are in the source; {wrapping.describe()}. "
        "Fix: --rules bare_weights, which removes such parts (rename: wrappers)."
    )


def _prefix(source: Infos, target: Infos, problems: Problems) -> str:
    """A prefix is missing or superfluous."""
    best = ("", "", 0)
    missing = set(problems.missing)
    for prefix in _leading(problems.missing):
        count = sum(1 for key in problems.unexpected if prefix + key in missing)
        best = max(best, ("add", prefix, count), key=lambda item: item[2])
    for prefix in _leading(problems.unexpected):
        count = sum(1 for key in problems.unexpected if key.startswith(prefix) and key[len(prefix) :] in missing)
        best = max(best, ("remove", prefix, count), key=lambda item: item[2])
    kind, prefix, count = best
    if not count or count < MIN_SHARE * len(missing):
        return ""
    if kind == "add":
        return (
            f"A prefix is missing: {count} of the {len(missing)} missing names are in the source without {prefix!r}; "
            f"it was stripped, or the file contains only the inner module. "
            f"Rename them back, or load into the inner module: {prefix.rstrip('.')!r}."
        )
    return (
        f"A superfluous prefix: {count} of the {len(missing)} missing names are in the source under {prefix!r}, "
        f"as wrappers name them. Fix: rename: {{prefix: {prefix!r}, to: ''}}."
    )


def _renamed_group(source: Infos, target: Infos, problems: Problems) -> str:
    """A group of names was renamed as a whole: same suffixes, same shapes, another prefix."""
    source_groups = _groups(problems.unexpected, source)
    for new, wanted in sorted(_groups(problems.missing, target).items(), key=lambda item: -len(item[1])):
        for old, shapes in source_groups.items():
            if len(wanted) > 1 and wanted.items() <= shapes.items():
                return (
                    f"A group was renamed: the {len(wanted)} missing names under {new!r} have the suffixes and shapes "
                    f"of the source's {old!r}. Fix: rename: {{prefix: {old + '.'!r}, to: {new + '.'!r}}}."
                )
    return ""


def _family(source: Infos, target: Infos, problems: Problems) -> str:
    """Source and target belong to different known families of networks."""
    source_family, target_family = (
        recognize({key: info.shape for key, info in side.items()}) for side in (source, target)
    )
    if source_family and target_family and source_family.family is not target_family.family:
        return (
            f"Another family: the source is {source_family.family.title}, the target {target_family.family.title}; "
            "no rule converts one into the other."
        )
    return ""


def _network(source: Infos, target: Infos, problems: Problems) -> str:
    """The sides have hardly any name in common, and no other cause applies."""
    shared = len(source.keys() & target.keys())
    if not problems.missing or shared > 0.1 * len(target):
        return ""
    recognized = recognize({key: info.shape for key, info in source.items()})
    origin = f"; the source is {recognized.sentence}" if recognized else "."
    return f"Another network: {shared} of {len(target)} target names occur in the source{origin}"


_CAUSES: tuple[Callable[[Infos, Infos, Problems], str], ...] = (
    _nesting,
    _wrapped,
    _prefix,
    _family,
    _renamed_group,
    _network,
)


def suggest(source: Infos, target: Infos, problems: Problems, target_axes: NamedAxes) -> list[dict[str, Any]]:
    """Rules that would resolve the problems, in the form of a rules file."""
    rules = _rename_rules(problems)
    if rules:
        return rules
    alike: dict[str, tuple[str, list[str], dict[str, Any]]] = {}
    for mismatch in problems.mismatched:
        kind, name, options = _fit(mismatch, target_axes)
        alike.setdefault(f"{kind} {options}", (kind, [], options))[1].append(name)
    for kind, names, options in alike.values():
        rules.append({kind: fold(names, target) if kind == "strip" else list(dict.fromkeys(names)), **options})
    if problems.missing:
        rules.append({"fresh": fold(problems.missing, target), "init": "target"})
    if problems.unexpected:
        rules.append({"drop": fold(problems.unexpected, source), "why": "say why"})
    return rules


def _rename_rules(problems: Problems) -> list[dict[str, Any]]:
    """A rename after which most missing names would match."""
    missing, unexpected = set(problems.missing), set(problems.unexpected)
    bare = [key for key in unexpected if (name := unwrapped(key)) != key and name in missing]
    if missing and len(bare) >= MIN_SHARE * len(missing):
        return [{"rename": "wrappers"}]
    for prefix in _leading(unexpected):
        stripped = {key.removeprefix(prefix) for key in unexpected if key.startswith(prefix)}
        if missing and len(stripped & missing) >= MIN_SHARE * len(missing):
            return [{"rename": {"prefix": prefix, "to": ""}}]
    for prefix in _leading(missing):
        renamed = {key for key in unexpected if prefix + key in missing}
        if missing and len(renamed) >= MIN_SHARE * len(missing):
            heads = sorted({key.split(".", 1)[0] for key in renamed})
            return [{"rename": {"pattern": rf"^({'|'.join(heads)})\.", "to": rf"{prefix}\1."}}]
    return []


def _fit(mismatch: Mismatch, named_axes: NamedAxes) -> tuple[str, str, dict[str, Any]]:
    """(kind, name or pattern, options) of a rule that resolves one mismatch.

    Where the axes of a tensor have names, only these may grow: along any other axis (such as the width of all layers)
    no slot of the old network keeps its meaning, so the tensor is reinitialized.
    """
    named = named_axes.tensor(mismatch.key)
    same_rank = len(mismatch.source) == len(mismatch.target)
    axes = [axis for axis, (old, new) in enumerate(zip(mismatch.source, mismatch.target, strict=False)) if old != new]
    if named is not None and named.init == "recompute":
        return "recompute", mismatch.key, {}
    if named is not None and same_rank and set(axes) <= named.axes.keys():
        return "grow", named.pattern, {"init": named.init}
    if not named_axes.tensors and same_rank and axes and mismatch.source != mismatch.target[::-1]:
        return "grow", mismatch.key, {"axes": dict.fromkeys(axes, "first"), "init": "zeros"}
    return "strip", mismatch.key, {"init": "target"}


def _leading(keys: Iterable[str]) -> list[str]:
    """Candidate prefixes: the first part and the first two parts of each name, with the dot."""
    heads: dict[str, None] = {}
    for key in keys:
        parts = key.split(".")
        for depth in (1, 2):
            if len(parts) > depth:
                heads[".".join(parts[:depth]) + "."] = None
    return list(heads)


def _groups(keys: Iterable[str], infos: Infos) -> dict[str, dict[str, Shape]]:
    """{suffix: shape} of the tensors of each group; every proper prefix of a name is a group."""
    groups: dict[str, dict[str, Shape]] = {}
    for key in keys:
        parts = key.split(".")
        for depth in range(1, len(parts)):
            head, tail = ".".join(parts[:depth]), ".".join(parts[depth:])
            groups.setdefault(head, {})[tail] = infos[key].shape
    return groups


def _list(title: str, lines: list[str]) -> list[str]:
    shown = [f"  {line}" for line in lines[:LISTED]]
    more = [f"  ... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return [f"{title}:", *shown, *more] if lines else []
