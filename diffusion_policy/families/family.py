"""Types of the families: a family of checkpoints, and a model defined by formulas of its configuration.

A `Family` is recognized by names and shapes only: every member has a tensor named `marker`, and a prefix of the marker
was added by a wrapper. A `ModelDefinition` gives the tensors of a configuration without building the model: shapes are
formulas of the configuration, and each setting describes the effect of a change that alters no shape. `whatif` derives
the impact of a change from a definition, `adapt.diagnosis` the cause of a mismatch from a recognized family.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, Protocol

from diffusion_policy.errors import AdaptError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Config = Mapping[str, Any]


class FamilyError(AdaptError):
    """A request about a family of models that is not valid: an unknown setting, a value of the wrong type."""


class ConstructionError(FamilyError):
    """The model's own constructor would refuse this configuration.

    `setting` is the dotted path of the value that causes it.
    """

    def __init__(self, message: str, setting: str):
        super().__init__(message)
        self.setting = setting


class Impact(StrEnum):
    """The impact of a changed value on a pretrained model, from harmless to fatal."""

    SAFE = "safe"
    DIFFERS = "loads, but computes something else"
    PARTLY = "partly"
    BREAKING = "breaking"
    CANNOT_RUN = "cannot run"
    NOT_CONSTRUCTED = "does not construct"

    @property
    def severity(self) -> int:
        """0 for safe, larger is worse."""
        return list(Impact).index(self)


class Unset(Enum):
    """Markers instead of a value: a setting without a default, and a key that is not in the configuration."""

    REQUIRED = "required"
    ABSENT = "(absent)"


REQUIRED, ABSENT = Unset.REQUIRED, Unset.ABSENT


class Effect(Enum):
    """The effect of a changed setting when every tensor keeps its name and shape."""

    UNUSED = "no part of the model reads it"
    TRAINING = "it affects training only"
    FUNCTION = "the same tensors are used for another computation"


_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "any": ("any value", lambda v: True),
    "count": ("a whole number, at least 1", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 1),
    "count or 0": ("a whole number, at least 0", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0),
    "integer": ("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "flag": ("true or false", lambda v: isinstance(v, bool)),
    "number": ("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    "text": ("a string", lambda v: isinstance(v, str)),
    "section": ("a section of settings", lambda v: isinstance(v, Mapping)),
    "counts": ("a list of whole numbers", lambda v: isinstance(v, list) and all(isinstance(n, int) for n in v)),
}


@dataclass(frozen=True)
class Setting:
    """One setting of a configuration.

    Attributes:
        kind: one of `_KINDS`; a trailing "?" also allows null.
        default: the class's default, used where the key is absent.
        effect, note: the effect of a change that alters no shape, and its description.
        believed: the impact that a widely copied guide states, where that is wrong in some cases.
        advice: shown when the change is not safe.
        only: the values that this definition covers; empty: all.
    """

    kind: str
    default: Any = REQUIRED
    effect: Effect = Effect.UNUSED
    note: str = ""
    believed: Impact | None = None
    advice: str = ""
    only: tuple[Any, ...] = ()

    @property
    def has_default(self) -> bool:
        """Whether the class has a default for an absent key."""
        return self.default is not REQUIRED

    def check(self, value: object, path: str) -> None:
        """Raise FamilyError if `value` is of the wrong kind or not covered by this definition."""
        expected, fits = _KINDS[self.kind.removesuffix("?")]
        nullable = self.kind.endswith("?")
        if not (fits(value) or (nullable and value is None)):
            raise FamilyError(f"{path} is {value!r}: expected {expected}{' or null' if nullable else ''}")
        if self.only and value not in self.only:
            described = " or ".join(repr(one) for one in self.only)
            raise FamilyError(f"{path} is {value!r}: this definition of the model only covers {described}")


@dataclass(frozen=True)
class Conflict:
    """Settings whose widths must agree but differ: the model may load, but its forward pass fails."""

    settings: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class ModelDefinition:
    """A model defined by formulas of its configuration.

    Attributes:
        name, title: for messages and headings.
        config: configuration of the released model.
        settings: all settings, by dotted path.
        home: the section of keys that are written without one; may be empty.
        shapes: names and shapes by configuration and parts, in the order of the state_dict; raises ConstructionError.
        conflicts: settings of a configuration whose widths disagree.
        parts: the parts of the model that depend on given settings.
        file_shapes: names and shapes of all tensors of a checkpoint file, by configuration.
        closed: sections whose constructors refuse unknown keys.
    """

    name: str
    title: str
    config: Config
    settings: Mapping[str, Setting]
    home: str
    shapes: Callable[[Config, Sequence[str]], dict[str, Shape]]
    conflicts: Callable[[Config], list[Conflict]]
    parts: Callable[[Sequence[str]], list[str]]
    file_shapes: Callable[[Config], dict[str, Shape]]
    closed: tuple[str, ...] = ()

    def effect(self, path: str, before: Config, after: Config) -> tuple[Effect, str]:
        """The effect of changing the setting at `path` when no shape changes, and its description."""
        setting = self.settings[path]
        return setting.effect, setting.note

    def locate(self, key: str) -> str:
        """The dotted path of `key`, which may omit the home section.

        Raises ConstructionError for a key that the model's constructor refuses, FamilyError for one that no code reads;
        both give the closest known key.
        """
        for path in (key, self._at_home(key)):
            if path in self.settings:
                return path
        sections = {name.partition(".")[0] for name in self.settings}
        path = key if key.partition(".")[0] in sections else self._at_home(key)
        section = path.rpartition(".")[0]
        hint = closest(key, [self.spelling(name) for name in self.settings])
        if section in self.closed:
            raise ConstructionError(f"{self.spelling(section)} takes no {path.rpartition('.')[2]!r}; {hint}", path)
        raise FamilyError(f"{self.name} has no setting {key!r} (no code of the model reads it); {hint}")

    def spelling(self, path: str) -> str:
        """The path as users write it, without the home section."""
        return path.removeprefix(f"{self.home}.") if self.home else path

    def _at_home(self, key: str) -> str:
        return f"{self.home}.{key}" if self.home else key


class ModelUnderChange(Protocol):
    """The interface of models for `whatif`: a `ModelDefinition`, or a config of the project."""

    @property
    def name(self) -> str:
        """The name that users give."""

    @property
    def title(self) -> str:
        """The title for headings."""

    @property
    def config(self) -> Config:
        """The pretrained model's configuration."""

    @property
    def settings(self) -> Mapping[str, Setting]:
        """All settings, by dotted path."""

    def locate(self, key: str) -> str:
        """The dotted path of a key as users write it."""

    def spelling(self, path: str) -> str:
        """Inverse of `locate`."""

    def parts(self, paths: Sequence[str]) -> list[str]:
        """The parts of the model that depend on these settings."""

    def shapes(self, config: Config, parts: Sequence[str]) -> dict[str, Shape]:
        """Names and shapes of these parts; raises ConstructionError."""

    def conflicts(self, config: Config) -> list[Conflict]:
        """Settings that disagree, so that the forward pass would fail."""

    def effect(self, path: str, before: Config, after: Config) -> tuple[Effect, str]:
        """The effect of changing the setting at `path` when no shape changes, and its description."""


def closest(word: str, known: Sequence[str]) -> str:
    """A clause with the known name most similar to `word`, preferring names with the same last part."""
    last = word.rpartition(".")[2]
    same_last = [name for name in known if name.rpartition(".")[2] == last]
    match = difflib.get_close_matches(word, same_last or known, n=1, cutoff=0.0)
    return f"the closest is {match[0]!r}" if match else "it has no settings"


def lookup(config: Config, path: str) -> Any:
    """The value at a dotted path, or ABSENT."""
    node: Any = config
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return ABSENT
        node = node[part]
    return node


@dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    Attributes:
        name, title: for messages.
        marker: name of a tensor that every member has.
        part: the marker's first component, which is sometimes stripped from all names.
        inside: the modules inside `part`.
        prefixes: the wrapper or library that adds each known prefix.
        settings: reads settings from the shapes of tensors.
    """

    name: str
    title: str
    marker: str
    part: str
    inside: tuple[str, ...]
    prefixes: Mapping[str, str]
    settings: Callable[[Shapes], dict[str, Any]]


@dataclass(frozen=True)
class Recognized:
    """The family of a file.

    Attributes:
        family: the family.
        prefix: prefix of all names.
        stripped: the family's leading part if it is missing from the names, else empty.
        settings: settings read from the shapes.
        sentence: the family and, if the names are not the standard ones, the cause and the remedy.
    """

    family: Family
    prefix: str
    stripped: str
    settings: Mapping[str, Any]
    sentence: str
