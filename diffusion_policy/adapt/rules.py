"""Rules of an adaptation, as data: which tensors are renamed, dropped, grown, recomputed or reinitialized.

A rules file is a YAML mapping::

    name: pose_to_gripper
    weights: each            # each: model from model, EMA from EMA; or model, or ema_model: both from that one
    seed: 0                  # of normal initializations
    slots:                   # optional: names along an axis, where no config gives them
      action: {source: [x, y, z], target: [x, y, z, gripper]}
    rules:
      - rename: {prefix: "policy.", to: ""}           # or {pattern: '^blocks\\.(\\d+)\\.', to: 'layers.\\1.'}
      - rename: wrappers                              # removes `module.`, `_orig_mod.` and the like anywhere in a name
      - drop: aux_value_head.*                        # source names that the target lacks
        why: a head that this target does not have
      - fresh: model.decoder.layers.8.*               # target names that the source lacks
        init: target                                  # zeros, target (default), {normal: 0.02}
      - strip: model.head.*                           # names that both have: the source's tensor is not used
      - grow: model.head.weight                       # names that both have, with different slots
        axes: {0: action}                             # optional where the axes have names; `first`: by position
        init: zeros                                   # of new slots: zeros, target, mean, {normal: std}, {copy: slot}
      - copy: obs_encoder.obs_nets.wrist.*            # target names, filled from other source names
        from: obs_encoder.obs_nets.image.*
      - recompute: "*.pos_x"                          # buffers that follow from the target's config
      - encoder: image                                # cameras of the target; becomes copies, part by part
        from: camera0_rgb                             # optional where the source has one encoder, or one of that name

Patterns are shell globs in which ``*`` also matches dots; each entry takes one pattern or a list. Renames are applied
first, in order, to the source's names. Each name is decided by the first rule that applies; a rule without effect is an
error, except `drop`, `fresh` and `strip` of ``*`` alone, which means the rest and may match nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.initial import Init, read_init
from diffusion_policy.adapt.slots import Names
from diffusion_policy.installation import CONFIG
from diffusion_policy.tensor_file.wrapped_names import PART

Kind = Literal["rename", "drop", "fresh", "strip", "grow", "copy", "recompute", "encoder"]
Weights = Literal["each", "model", "ema_model"]
FIRST = "first"
AS_TARGET = Init("target")
RULES_DIRECTORY = CONFIG / "adapt"
_OPTIONS: dict[str, tuple[str, ...]] = {
    "rename": ("why",),
    "drop": ("why",),
    "fresh": ("init", "why"),
    "strip": ("init", "why"),
    "grow": ("axes", "init", "from", "why"),
    "copy": ("from", "why"),
    "recompute": ("why",),
    "encoder": ("from", "why"),
}


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        kind: the action.
        patterns: globs of the names that it applies to; for a rename the regular expression.
        to: replacement of a rename.
        every: whether a rename replaces every match in a name, or only the first.
        source: glob of the source names of a copy, or of a grown tensor with another name in the source.
        axes: name of the axis by dimension, for a grow; "first": slots are positions, and the first ones are kept.
        init: initialization of values without a source.
        why: the reason, for the ledger.
    """

    kind: Kind
    patterns: tuple[str, ...]
    to: str = ""
    every: bool = False
    source: str = ""
    axes: Mapping[int, str] = field(default_factory=dict)
    init: Init = AS_TARGET
    why: str = ""

    @property
    def is_rest(self) -> bool:
        """Whether it applies to whatever other rules leave, which may be nothing."""
        return self.patterns == ("*",) and self.kind in ("drop", "fresh", "strip")

    def matches(self, key: str) -> bool:
        """Whether one of the globs matches the name."""
        return any(glob_regex(pattern).fullmatch(key) for pattern in self.patterns)

    def is_equivalent(self, other: Rule) -> bool:
        """Whether both rules have the same effect on a name that both match."""
        return (self.kind, self.init, self.source, self.axes) == (other.kind, other.init, other.source, other.axes)

    def renamed(self, key: str) -> str:
        """The name after a rename; the same name if it does not apply."""
        return re.sub(self.patterns[0], self.to, key, count=0 if self.every else 1)

    def source_name(self, key: str) -> str:
        """The source's name for a target name: each star of `source` is replaced by the match of the pattern's star."""
        if not self.source:
            return key
        for pattern in self.patterns:
            match = glob_regex(pattern).fullmatch(key)
            if match:
                pieces = self.source.split("*")
                stars = [*match.groups(), *[""] * len(pieces)][: len(pieces) - 1]
                return "".join(piece + star for piece, star in zip(pieces, [*stars, ""], strict=True))
        return key

    def __str__(self) -> str:
        if self.kind == "rename":
            return "rename wrappers" if self.every else f"rename {self.patterns[0]!r} to {self.to!r}"
        return self._text(", ".join(self.patterns))

    def of(self, key: str) -> str:
        """The rule as text, with only the pattern that matches a name."""
        return self._text(next((one for one in self.patterns if glob_regex(one).fullmatch(key)), self.patterns[0]))

    def _text(self, names: str) -> str:
        text = f"{self.kind} {names}"
        text += f" from {self.source}" if self.source else ""
        return f"{text} ({self.why})" if self.why else text


@dataclass(frozen=True)
class Rules:
    """The rules of one adaptation, in order.

    Attributes:
        name: name of the set, for the ledger.
        rules: the rules.
        weights: which of the source's weights (live, averaged) fill which of the target's.
        slots: (names in the source, names in the target) by axis name, where the rules give them.
        text: the mappings of the rules files.
    """

    name: str = "identical"
    rules: tuple[Rule, ...] = ()
    weights: Weights = "each"
    slots: Mapping[str, tuple[Names, Names]] = field(default_factory=dict)
    text: tuple[Mapping[str, Any], ...] = ()

    @property
    def renames(self) -> tuple[Rule, ...]:
        """The renames."""
        return tuple(rule for rule in self.rules if rule.kind == "rename")

    def renamed(self, key: str) -> str:
        """A source's name after all renames."""
        for rule in self.renames:
            key = rule.renamed(key)
        return key

    @property
    def decisions(self) -> tuple[Rule, ...]:
        """All rules but the renames."""
        return tuple(rule for rule in self.rules if rule.kind != "rename")

    def to_json(self) -> list[Mapping[str, Any]]:
        """The rules as they were written, one mapping per file."""
        return list(self.text)


def read_rules(*paths: str | Path) -> Rules:
    """Read rules files and join them in order.

    Args:
        paths: paths of files, names of files in config/adapt, or rules themselves as YAML text in braces.

    Raises:
        AdaptError: a file cannot be read, or an entry is not valid; the message names the entry.
    """
    joined = Rules(name="")
    for path in paths:
        try:
            inline = str(path).lstrip().startswith("{")
            data = yaml.safe_load(str(path) if inline else _rules_path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise AdaptError(f"{path}: cannot be read as YAML rules: {error}") from error
        rules = parse_rules(data, where="rules" if inline else str(path))
        if joined.text and rules.weights != joined.weights:
            raise AdaptError(f"{path}: weights is {rules.weights!r}, an earlier file has {joined.weights!r}")
        name = f"{joined.name} + {rules.name}" if joined.name else rules.name
        slots = {**joined.slots, **rules.slots}
        joined = Rules(name, joined.rules + rules.rules, rules.weights, slots, joined.text + rules.text)
    return joined


def parse_rules(data: Any, where: str = "rules") -> Rules:
    """Parse the mapping of a rules file; AdaptError names the entry that is not valid."""
    if not isinstance(data, Mapping):
        raise AdaptError(f"{where}: expected a mapping with name and rules, found {type(data).__name__}")
    _known(data, ("name", "weights", "seed", "slots", "rules"), where)
    weights = data.get("weights", "each")
    if weights not in ("each", "model", "ema_model"):
        raise AdaptError(f"{where}: weights is {weights!r}; expected each, model or ema_model")
    entries = data.get("rules", [])
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise AdaptError(f"{where}: rules is {entries!r}; expected a list")
    seed = int(data.get("seed", 0))
    rules = tuple(_read_rule(entry, f"{where}: rule {number}", seed) for number, entry in enumerate(entries, start=1))
    slots = {str(axis): _read_slots(names, f"{where}: slots.{axis}") for axis, names in data.get("slots", {}).items()}
    return Rules(str(data.get("name", Path(where).stem)), rules, weights, slots, (data,))


def glob_regex(pattern: str) -> re.Pattern[str]:
    """The regular expression of a glob, with a group for each star."""
    return re.compile("".join("(.*)" if part == "*" else re.escape(part) for part in re.split(r"(\*)", pattern)))


def _rules_path(path: str | Path) -> Path:
    own = RULES_DIRECTORY / f"{path}.yaml"
    return own if own.is_file() else Path(path)


def _read_rule(entry: Any, where: str, seed: int) -> Rule:
    if not isinstance(entry, Mapping):
        raise AdaptError(f"{where}: expected a mapping such as {{drop: name}}, found {entry!r}")
    kinds = [key for key in entry if key in _OPTIONS]
    if len(kinds) != 1:
        raise AdaptError(f"{where}: expected exactly one of {', '.join(_OPTIONS)}; found {list(entry)}")
    kind: Kind = kinds[0]
    _known(entry, (kind, *_OPTIONS[kind]), where)
    why = str(entry.get("why", ""))
    if kind == "rename":
        return _read_rename(entry[kind], where, why)
    globs = [entry[kind]] if isinstance(entry[kind], str) else entry[kind]
    if not isinstance(globs, Sequence) or not globs or not all(isinstance(glob, str) for glob in globs):
        raise AdaptError(f"{where}: {kind} is {entry[kind]!r}; expected a pattern or a list of them")
    if kind == "copy" and "from" not in entry:
        raise AdaptError(f"{where}: copy needs `from`, the source's names")
    if kind == "grow" and "init" not in entry:
        raise AdaptError(f"{where}: grow needs `init`, how new slots are initialized")
    init = read_init(entry.get("init", "target"), where, seed)
    axes = _read_axes(entry.get("axes", {}), where)
    return Rule(kind, tuple(globs), source=str(entry.get("from", "")), axes=axes, init=init, why=why)


def _read_rename(value: Any, where: str, why: str) -> Rule:
    if value == "wrappers":
        return Rule("rename", (PART.pattern,), every=True, why=why)
    if not isinstance(value, Mapping) or "to" not in value or len(value) != 2:
        raise AdaptError(f"{where}: rename is {value!r}; expected {{prefix or pattern: old, to: new}}, or wrappers")
    _known(value, ("prefix", "pattern", "to"), where)
    to = str(value["to"])
    if "prefix" in value:
        return Rule("rename", ("^" + re.escape(str(value["prefix"])),), to=to.replace("\\", r"\\"), why=why)
    try:
        re.compile(str(value["pattern"]))
    except re.error as error:
        raise AdaptError(f"{where}: pattern {value['pattern']!r} is not a regular expression: {error}") from error
    return Rule("rename", (str(value["pattern"]),), to=to, why=why)


def _read_axes(value: Any, where: str) -> dict[int, str]:
    if not isinstance(value, Mapping) or not all(str(axis).isdigit() for axis in value):
        raise AdaptError(f"{where}: axes is {value!r}; expected {{dimension: axis name}}, or {{dimension: {FIRST}}}")
    return {int(axis): str(name) for axis, name in value.items()}


def _read_slots(value: Any, where: str) -> tuple[Names, Names]:
    if not isinstance(value, Mapping) or set(value) != {"source", "target"}:
        raise AdaptError(f"{where}: is {value!r}; expected {{source: [names], target: [names]}}")
    return tuple(map(str, value["source"])), tuple(map(str, value["target"]))


def _known(entry: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    for key in entry:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise AdaptError(f"{where}: unknown entry {key!r}; allowed are {', '.join(allowed)}{hint}")
