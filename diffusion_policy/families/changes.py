"""Parses changes of a model's config ("a.b=v", "~a.b") and applies them to a copy."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from diffusion_policy.families.family import ABSENT, Config, ConstructionError, FamilyError, ModelUnderChange, lookup


@dataclass(frozen=True)
class Change:
    """The change of one value of a config from `before` to `after`, either of which may be ABSENT."""

    path: str
    spelling: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if self.after is ABSENT:
            return f"~{self.spelling}"
        return f"{self.spelling}: {_formatted(self.before)} -> {_formatted(self.after)}"


def parse_change(under: ModelUnderChange, text: str) -> Change:
    """Parse "a.b=v" or "~a.b"; FamilyError for anything else."""
    removes = text.startswith("~")
    key, equals, value = text.removeprefix("~").partition("=")
    if not key or removes == bool(equals):
        raise FamilyError(f"cannot read the change {text!r}: expected key=value, or ~key to remove a key")
    path = under.locate(key.strip())
    before = lookup(under.config, path)
    if removes:
        if before is ABSENT:
            raise FamilyError(f"{key} is not in the config of {under.name}: the class default already applies")
        _check_removable(under, path)
        return Change(path, under.spelling(path), before, ABSENT)
    try:
        after = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise FamilyError(f"{key}: {value!r} is not a YAML value: {error}") from error
    under.settings[path].check(after, key)
    return Change(path, under.spelling(path), before, after)


def _check_removable(under: ModelUnderChange, path: str) -> None:
    """ConstructionError where the class has no default for the key; FamilyError where the default is not described."""
    setting = under.settings[path]
    if not setting.has_default:
        raise ConstructionError(
            f"{under.spelling(path)} has no class default: without the key the model cannot be built", path
        )
    if setting.only:
        setting.check(setting.default, under.spelling(path))


def with_changes(config: Config, changes: Sequence[Change]) -> dict[str, Any]:
    """A copy of the config with the changes applied."""
    changed = copy.deepcopy(dict(config))
    for change in changes:
        *sections, last = change.path.split(".")
        node = changed
        for section in sections:
            if not isinstance(node.get(section), dict):
                node[section] = {}
            node = node[section]
        if change.after is ABSENT:
            del node[last]
        else:
            node[last] = change.after
    return changed


def _formatted(value: object) -> str:
    """A value as it would be written in YAML."""
    if value is ABSENT:
        return "(absent)"
    return str(yaml.safe_dump(value, default_flow_style=True)).removesuffix("...\n").strip()
