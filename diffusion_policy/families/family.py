"""What a family of checkpoints is, and what a model that is known by its configuration alone is.

A `Family` answers "whose file is this?" from names and shapes only: every member holds its `marker`, and whatever
stands before the marker is a prefix that somebody's wrapper put there. A `ModelDefinition` answers "which tensors would
this configuration have?" without building anything: shapes are formulas of the configuration, and each setting says
what it does when no tensor shows it. `adapt.whatif` turns a definition into verdicts, `adapt.diagnose` a recognition
into a cause.
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
    """A question about a family of models that cannot be answered: an unknown setting, a value of another kind."""


class ConstructionError(FamilyError):
    """The model's own constructor would refuse this configuration.

    `setting` is the dotted path of the value to blame.
    """

    def __init__(self, message: str, setting: str):
        super().__init__(message)
        self.setting = setting


class Verdict(StrEnum):
    """What one changed value does to a pretrained model, from harmless to fatal."""

    SAFE = "safe"
    DIFFERS = "loads, but computes something else"
    PARTLY = "partly"
    BREAKING = "breaking"
    CANNOT_RUN = "cannot run"
    NOT_CONSTRUCTED = "does not construct"

    @property
    def severity(self) -> int:
        """0 for safe, larger is worse."""
        return list(Verdict).index(self)


class Unset(Enum):
    """The two values that are none: a setting without a default, and a key that is not in the configuration."""

    REQUIRED = "required"
    ABSENT = "(absent)"


REQUIRED, ABSENT = Unset.REQUIRED, Unset.ABSENT


class Effect(Enum):
    """What a changed setting does when every tensor keeps its name and shape."""

    UNUSED = "no part of the model reads it"
    TRAINING = "it acts in training only"
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
    """One value of a configuration.

    kind is one of `_KINDS` (a trailing "?" admits null), default is what the class uses where the key is absent, effect
    and note tell what a change does that no tensor shows. believed is the verdict that circulates among users, where it
    differs between cases or is wrong; advice is shown when the change is not safe. only lists the values that are
    described here.
    """

    kind: str
    default: Any = REQUIRED
    effect: Effect = Effect.UNUSED
    note: str = ""
    believed: Verdict | None = None
    advice: str = ""
    only: tuple[Any, ...] = ()

    @property
    def has_default(self) -> bool:
        """Whether the class knows a value where the key is absent."""
        return self.default is not REQUIRED

    def check(self, value: object, path: str) -> None:
        """Raise FamilyError where `value` is of another kind, or is one that this definition does not describe."""
        expected, fits = _KINDS[self.kind.removesuffix("?")]
        nullable = self.kind.endswith("?")
        if not (fits(value) or (nullable and value is None)):
            raise FamilyError(f"{path} is {value!r}: expected {expected}{' or null' if nullable else ''}")
        if self.only and value not in self.only:
            described = " or ".join(repr(one) for one in self.only)
            raise FamilyError(f"{path} is {value!r}: this definition of the model only describes {described}")


@dataclass(frozen=True)
class Clash:
    """Widths that must agree and do not: the model may load, but its forward pass fails."""

    settings: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class ModelDefinition:
    """A model known by formulas.

    config is the configuration of the released model; settings are all values that may be set, by dotted path; home is
    the section in which names without a section live, or empty; closed are sections whose constructors refuse unknown
    keys.
    shapes(config) lists names and shapes in the order of the state_dict and raises ConstructionError; clashes(config)
    lists widths that disagree; parts(paths) says which parts of the model settings touch. file_shapes(config) names all
    tensors as checkpoint files do.
    """

    name: str
    title: str
    config: Config
    settings: Mapping[str, Setting]
    home: str
    shapes: Callable[[Config, Sequence[str]], dict[str, Shape]]
    clashes: Callable[[Config], list[Clash]]
    parts: Callable[[Sequence[str]], list[str]]
    file_shapes: Callable[[Config], dict[str, Shape]]
    closed: tuple[str, ...] = ()

    def effect(self, path: str, before: Config, after: Config) -> tuple[Effect, str]:
        """What a change of the setting at `path` does where no tensor shows it, and in words."""
        setting = self.settings[path]
        return setting.effect, setting.note

    def locate(self, key: str) -> str:
        """The dotted path of `key`, which may leave out the home section.

        Raises ConstructionError for a key that the model's constructor refuses, FamilyError for one that nobody reads;
        both name the closest known key.
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
        """How a user writes `path`: without the home section."""
        return path.removeprefix(f"{self.home}.") if self.home else path

    def _at_home(self, key: str) -> str:
        return f"{self.home}.{key}" if self.home else key


class ModelUnderChange(Protocol):
    """What `adapt.whatif` asks of a model: a `ModelDefinition`, or a config of the project."""

    @property
    def name(self) -> str:
        """As users call it."""

    @property
    def title(self) -> str:
        """For headings."""

    @property
    def config(self) -> Config:
        """Of the pretrained model."""

    @property
    def settings(self) -> Mapping[str, Setting]:
        """All that may be set, by dotted path."""

    def locate(self, key: str) -> str:
        """The dotted path of a key as users write it."""

    def spelling(self, path: str) -> str:
        """Inverse of `locate`."""

    def parts(self, paths: Sequence[str]) -> list[str]:
        """Which parts of the model a change of these settings touches."""

    def shapes(self, config: Config, parts: Sequence[str]) -> dict[str, Shape]:
        """Names and shapes of those parts; raises ConstructionError."""

    def clashes(self, config: Config) -> list[Clash]:
        """Why the forward pass would fail."""

    def effect(self, path: str, before: Config, after: Config) -> tuple[Effect, str]:
        """What a change of the setting at `path` does where no tensor shows it, and in words."""


def closest(word: str, known: Sequence[str]) -> str:
    """A half sentence that names the known word nearest to `word`: by its last part first, then as a whole."""
    last = word.rpartition(".")[2]
    same_last = [name for name in known if name.rpartition(".")[2] == last]
    match = difflib.get_close_matches(word, same_last or known, n=1, cutoff=0.0)
    return f"the closest is {match[0]!r}" if match else "nothing may be set there"


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

    marker is a name that every member holds; part is the marker's first component, which accidents strip and which
    holds the groups in `inside`. prefixes tells whose habit each known wrapper prefix is. settings reads shape-bearing
    settings off tensors.
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
    """A family found in a file: under which prefix, without which part of the name, and with which settings.

    sentence says what the file is and, if its names are not the family's own, the cause and the fix.
    """

    family: Family
    prefix: str
    stripped: str
    settings: Mapping[str, Any]
    sentence: str
