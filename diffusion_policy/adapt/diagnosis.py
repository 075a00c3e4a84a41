"""Why names or shapes do not match, in one sentence each, with the rule that would settle it.

Two sets of names that differ almost always differ for one of seven reasons: the file's nesting was not opened, a
wrapper has put parts into them, a prefix is missing or too much, a group was renamed, tensors are transposed, the shape
follows from a config change, or it is another network. Each is recognized by counting how many names (and shapes) agree
once it is undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from diffusion_policy.adapt.folding import fold
from diffusion_policy.adapt.layout import Layout
from diffusion_policy.families import recognize
from diffusion_policy.tensor_file import TensorInfo
from diffusion_policy.tensor_file.wrapped_names import unwrapped, wrapping_of

Shape = tuple[int, ...]
Infos = Mapping[str, TensorInfo]

NESTINGS = ("model", "ema_model", "state_dict", "params", "weights")
LISTED = 8
# A reading of the file is believed when it explains at least this share of the names in question.
CONVINCING = 0.6


@dataclass(frozen=True)
class Mismatch:
    """One name that both sides have and that cannot be copied."""

    key: str
    source: Shape
    target: Shape
    reason: str = ""

    def __str__(self) -> str:
        text = f"{self.key}: {list(self.source)} in the source, {list(self.target)} in the target"
        return f"{text}; {self.reason}" if self.reason else text


@dataclass
class Problems:
    """What a plan could not account for; empty (false) if everything is.

    Attributes:
        missing: target names that nothing fills.
        unexpected: source names that nothing uses.
        mismatched: names on both sides that do not fit.
        unused_rules: rules that decided nothing.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)
    unused_rules: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched or self.unused_rules)


def explain(source: Infos, target: Infos, problems: Problems, target_layout: Layout) -> str:
    """The whole message: counts, the cause if one is recognized, names, and the rules that would settle it."""
    lines = [
        f"{len(problems.missing)} target names missing, {len(problems.unexpected)} source names unexpected, "
        f"{len(problems.mismatched)} of another shape or meaning, {len(problems.unused_rules)} rules without effect."
    ]
    lines.extend(diagnose(source, target, problems))
    lines.extend(_list("missing in the source", fold(problems.missing, target)))
    lines.extend(_list("unexpected in the source", fold(problems.unexpected, source)))
    lines.extend(_list("do not fit", [str(mismatch) for mismatch in problems.mismatched]))
    lines.extend(_list("rules that decided nothing", problems.unused_rules))
    rules = suggest(source, target, problems, target_layout)
    if rules and not _nesting(source, target, problems):
        lines.append("Rules that would settle it (check each, then put them under `rules:` in a rules file):")
        lines.append(yaml.safe_dump(rules, sort_keys=False, width=110).rstrip())
    return "\n".join(lines)


def diagnose(source: Infos, target: Infos, problems: Problems) -> list[str]:
    """The recognized causes, one sentence each; empty if none is."""
    sentences = [sentence for cause in _CAUSES if (sentence := cause(source, target, problems))][:1]
    transposed = [m.key for m in problems.mismatched if m.source == m.target[::-1] and len(m.source) > 1]
    if transposed:
        sentences.append(
            f"{len(transposed)} tensors are transposed ({transposed[0]}, ...): the file stores (in, out) where "
            "(out, in) is expected; transpose them when exporting, growth cannot repair it."
        )
    there, here = (recognize({key: info.shape for key, info in side.items()}) for side in (source, target))
    if there and here and there.family is here.family and problems.mismatched:
        changed = [f"{key} {old} -> {here.settings[key]}" for key, old in there.settings.items()
                   if key in here.settings and here.settings[key] != old]  # fmt: skip
        if changed:
            sentences.append(f"Source and target differ in {', '.join(changed)}, as their shapes tell.")
    return sentences


def _nesting(source: Infos, target: Infos, problems: Problems) -> str:
    """The file's own nesting was not opened."""
    if not problems.missing:
        return ""
    heads = dict.fromkeys(key.split(".", 1)[0] for key in source)
    for depth in ("", "state_dicts."):
        names = [head for head in NESTINGS if f"{depth}{head}".split(".")[0] in heads]
        for name in names:
            prefix = f"{depth}{name}."
            inner = {key.removeprefix(prefix) for key in source if key.startswith(prefix)}
            if len(inner & target.keys()) >= CONVINCING * len(target) > 0.5 and len(inner & set(problems.missing)) > 0:
                shown = ", ".join(repr(head) for head in heads)
                return (
                    f"Wrong nesting: the source's top level is {shown}, and the weights are one level down; "
                    f"{len(inner & target.keys())} of {len(target)} target names match inside {prefix.rstrip('.')!r}. "
                    f"Load that entry instead of the whole file."
                )
    return ""


def _wrapped(source: Infos, target: Infos, problems: Problems) -> str:
    """Parts that a wrapper has put into names, at their beginning or anywhere."""
    missing = set(problems.missing)
    bare = {key: unwrapped(key) for key in problems.unexpected}
    found = [key for key, name in bare.items() if name != key and name in missing]
    if not found or len(found) < CONVINCING * len(missing):
        return ""
    wrapping = wrapping_of(found, "")
    assert wrapping is not None
    return (
        f"Wrapped names: {len(found)} of the {len(missing)} missing names are in the source; {wrapping.describe()}. "
        "Fix: --rules bare_weights, which leaves such parts out (rename: wrappers)."
    )


def _prefix(source: Infos, target: Infos, problems: Problems) -> str:
    """A prefix is missing or too much."""
    best = ("", "", 0)
    missing = set(problems.missing)
    for prefix in _leading(problems.missing):
        found = sum(1 for key in problems.unexpected if prefix + key in missing)
        best = max(best, ("add", prefix, found), key=lambda item: item[2])
    for prefix in _leading(problems.unexpected):
        found = sum(1 for key in problems.unexpected if key.startswith(prefix) and key[len(prefix) :] in missing)
        best = max(best, ("remove", prefix, found), key=lambda item: item[2])
    kind, prefix, found = best
    if not found or found < CONVINCING * len(missing):
        return ""
    if kind == "add":
        return (
            f"A prefix is missing: {found} of the {len(missing)} missing names are in the source without {prefix!r}; "
            f"it was stripped, or the file holds the inner module alone. "
            f"Rename them back, or load into the inner module: {prefix.rstrip('.')!r}."
        )
    return (
        f"A prefix too much: {found} of the {len(missing)} missing names are in the source under {prefix!r}, "
        f"as a wrapper leaves them. Fix: rename: {{prefix: {prefix!r}, to: ''}}."
    )


def _renamed_group(source: Infos, target: Infos, problems: Problems) -> str:
    """A group of names moved as a whole: same endings, same shapes, another beginning."""
    groups_there = _groups(problems.unexpected, source)
    for new, wanted in sorted(_groups(problems.missing, target).items(), key=lambda item: -len(item[1])):
        for old, found in groups_there.items():
            if len(wanted) > 1 and wanted.items() <= found.items():
                return (
                    f"A group was renamed: the {len(wanted)} missing names under {new!r} have the endings and shapes "
                    f"of the source's {old!r}. Fix: rename: {{prefix: {old + '.'!r}, to: {new + '.'!r}}}."
                )
    return ""


def _family(source: Infos, target: Infos, problems: Problems) -> str:
    """Both sides are known, and are not the same kind of network."""
    there, here = (recognize({key: info.shape for key, info in side.items()}) for side in (source, target))
    if there and here and there.family is not here.family:
        return (
            f"Another family: the source is {there.family.title}, the target {here.family.title}; "
            "no rule makes one of the other."
        )
    return ""


def _network(source: Infos, target: Infos, problems: Problems) -> str:
    """Hardly a name in common, and none of the other causes."""
    shared = len(source.keys() & target.keys())
    if not problems.missing or shared > 0.1 * len(target):
        return ""
    there = recognize({key: info.shape for key, info in source.items()})
    looks = f"; the source is {there.sentence}" if there else "."
    return f"Another network: {shared} of {len(target)} target names occur in the source{looks}"


_CAUSES: tuple[Callable[[Infos, Infos, Problems], str], ...] = (
    _nesting,
    _wrapped,
    _prefix,
    _family,
    _renamed_group,
    _network,
)


def suggest(source: Infos, target: Infos, problems: Problems, target_layout: Layout) -> list[dict[str, Any]]:
    """Rules that would settle the problems, as they would stand in a rules file."""
    rules = _rename_rules(problems)
    if rules:
        return rules
    alike: dict[str, tuple[str, list[str], dict[str, Any]]] = {}
    for mismatch in problems.mismatched:
        kind, name, options = _fit(mismatch, target_layout)
        alike.setdefault(f"{kind} {options}", (kind, [], options))[1].append(name)
    for kind, names, options in alike.values():
        rules.append({kind: fold(names, target) if kind == "strip" else list(dict.fromkeys(names)), **options})
    if problems.missing:
        rules.append({"fresh": fold(problems.missing, target), "init": "target"})
    if problems.unexpected:
        rules.append({"drop": fold(problems.unexpected, source), "why": "say why"})
    return rules


def _rename_rules(problems: Problems) -> list[dict[str, Any]]:
    """One rename that would make most missing names match."""
    missing, unexpected = set(problems.missing), set(problems.unexpected)
    bare = [key for key in unexpected if (name := unwrapped(key)) != key and name in missing]
    if missing and len(bare) >= CONVINCING * len(missing):
        return [{"rename": "wrappers"}]
    for prefix in _leading(unexpected):
        stripped = {key.removeprefix(prefix) for key in unexpected if key.startswith(prefix)}
        if missing and len(stripped & missing) >= CONVINCING * len(missing):
            return [{"rename": {"prefix": prefix, "to": ""}}]
    for prefix in _leading(missing):
        found = {key for key in unexpected if prefix + key in missing}
        if missing and len(found) >= CONVINCING * len(missing):
            heads = sorted({key.split(".", 1)[0] for key in found})
            return [{"rename": {"pattern": rf"^({'|'.join(heads)})\.", "to": rf"{prefix}\1."}}]
    return []


def _fit(mismatch: Mismatch, layout: Layout) -> tuple[str, str, dict[str, Any]]:
    """(kind, name or pattern, options) of a rule that makes one tensor fit.

    Where the family names its axes, only these grow: along another one (such as the width of all layers) no slot of the
    old network means what it did, so the tensor starts anew.
    """
    named = layout.tensor(mismatch.key)
    same_rank = len(mismatch.source) == len(mismatch.target)
    axes = [axis for axis, (old, new) in enumerate(zip(mismatch.source, mismatch.target, strict=False)) if old != new]
    if named is not None and named.init == "recompute":
        return "recompute", mismatch.key, {}
    if named is not None and same_rank and set(axes) <= named.axes.keys():
        return "grow", named.pattern, {"init": named.init}
    if not layout.tensors and same_rank and axes and mismatch.source != mismatch.target[::-1]:
        return "grow", mismatch.key, {"axes": dict.fromkeys(axes, "first"), "init": "zeros"}
    return "strip", mismatch.key, {"init": "target"}


def _leading(keys: Iterable[str]) -> list[str]:
    """Candidate prefixes: the first one and two name parts of each key, with the dot."""
    found: dict[str, None] = {}
    for key in keys:
        parts = key.split(".")
        for depth in (1, 2):
            if len(parts) > depth:
                found[".".join(parts[:depth]) + "."] = None
    return list(found)


def _groups(keys: Iterable[str], infos: Infos) -> dict[str, dict[str, Shape]]:
    """Group name (each leading part of a name) -> {ending: shape}."""
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
