"""The impact of a config change on a pretrained model: which parameters can be loaded, and whether the function stays.

    report = what_if("groot_n1_5", ["vl_self_attention_cfg.num_layers=8"])
    report.counts["tensors"]      # {"loads": 314, "shape_mismatch": 0, "missing_new_init": 64, "unexpected_dropped": 0}
    report.verdicts[0].sentence   # "partly: 64 new tensors ..."

Both models, before and after the change, are represented by names and shapes: no weights are read. The report also
covers what names and shapes do not show: widths of the forward pass that no longer agree, and tensors that load but are
used for another computation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from diffusion_policy.families.changes import Change, parse_change, with_changes
from diffusion_policy.families.definitions import DEFINITIONS, open_definition
from diffusion_policy.families.family import (
    ABSENT,
    Config,
    Conflict,
    ConstructionError,
    Effect,
    FamilyError,
    Impact,
    ModelUnderChange,
    Setting,
    Shape,
    closest,
)
from diffusion_policy.whatif.project_config import open_project_config, project_configs
from diffusion_policy.whatif.report import ChangeImpact, Comparison, WhatIfReport

__all__ = ["WhatIfReport", "open_model", "what_if"]


def what_if(model: str | Path, changes: Sequence[str]) -> WhatIfReport:
    """The impact of changes of its config on a pretrained model.

    Args:
        model: `vpt` (also `vpt_1x`, `vpt_3x`), `groot_n1_5`, a path to a GR00T config.json, or a config of the project
            (its name in config/, or a path).
        changes: "a.b=v" with a YAML value, or "~a.b", which removes a key so that the class default applies.

    Raises:
        FamilyError: an unknown model, an unknown or misspelled key, or a value of the wrong type.
    """
    under = open_model(model)
    parsed, refused = [], []
    for text in changes:
        try:
            parsed.append(parse_change(under, text))
        except ConstructionError as error:  # the model's constructor would raise: this is part of the report
            refused.append(_refused(text, error))
    twice = {change.spelling for change in parsed if sum(other.path == change.path for other in parsed) > 1}
    if twice:
        raise FamilyError(f"{', '.join(sorted(twice))} is changed more than once")
    return _report(under, parsed, refused)


def open_model(model: str | Path) -> ModelUnderChange:
    """The model of that name or file; FamilyError lists the known ones."""
    result = open_definition(model) or open_project_config(Path(model))
    if result is None:
        known = [*DEFINITIONS, *project_configs()]
        raise FamilyError(
            f"no model or config {str(model)!r}; {closest(str(model), known)}; there are {', '.join(known)}"
        )
    return result


def _report(under: ModelUnderChange, changes: Sequence[Change], refused: Sequence[ChangeImpact]) -> WhatIfReport:
    """Compares both models and determines the impact of each change; `refused`: impacts that are already known."""
    parts = under.parts([change.path for change in changes])
    config = with_changes(under.config, changes)
    try:
        comparison = Comparison(under.shapes(under.config, parts), under.shapes(config, parts))
        conflicts = tuple(under.conflicts(config))
    except ConstructionError as error:
        impacts = [_without_construction(under, change, error, alone=len(changes) == 1) for change in changes]
        return WhatIfReport(under.name, under.title, None, (*impacts, *refused), (), str(error))
    analysis = _ImpactAnalysis(under, parts, config, comparison, conflicts)
    verdicts = (*map(analysis.impact_of, changes), *refused)
    if refused:
        return WhatIfReport(under.name, under.title, None, verdicts, (), refused[0].why)
    return WhatIfReport(under.name, under.title, comparison, verdicts, conflicts)


def _refused(text: str, error: ConstructionError) -> ChangeImpact:
    """The impact of a change that the model's constructor refuses."""
    key, equals, value = text.removeprefix("~").partition("=")
    after = yaml.safe_load(value) if equals else ABSENT
    return ChangeImpact(Change(error.setting, key, ABSENT, after), Impact.NOT_CONSTRUCTED, str(error))


def _without_construction(
    under: ModelUnderChange, change: Change, error: ConstructionError, *, alone: bool
) -> ChangeImpact:
    """The impact of one of several changes with which the model cannot be built: of the culprit, or of it alone."""
    if change.path != error.setting and not alone:
        by_itself = _report(under, [change], [])
        if by_itself.comparison is not None:
            return by_itself.verdicts[0]
    return _with_belief(under.settings[change.path], change, Impact.NOT_CONSTRUCTED, str(error))


@dataclass(frozen=True)
class _ImpactAnalysis:
    """Determines the impact of each change among the others: `config` has all changes, `joint` is their comparison."""

    under: ModelUnderChange
    parts: Sequence[str]
    config: Config
    joint: Comparison
    conflicts: Sequence[Conflict]

    def impact_of(self, change: Change) -> ChangeImpact:
        """The gravest impact of one change."""
        setting = self.under.settings[change.path]
        if _value_used(setting, change.before) == _value_used(setting, change.after):
            return ChangeImpact(change, Impact.SAFE, "the model already uses this value")
        reasons = [conflict.reason for conflict in self.conflicts if change.path in conflict.settings]
        affected = self._affected(change)
        cost = affected.cost()
        if reasons:
            return _with_belief(setting, change, Impact.CANNOT_RUN, "; ".join(filter(None, [*reasons, cost])))
        if affected.shape_mismatch:
            return _with_belief(setting, change, Impact.BREAKING, f"{cost}: loaders raise")
        if cost:
            why = f"{cost}; the others load, with a warning at most"
            return _with_belief(setting, change, Impact.PARTLY, why)
        return self._impact_without_shapes(setting, change)

    def _impact_without_shapes(self, setting: Setting, change: Change) -> ChangeImpact:
        """The impact of a change that alters no key or shape."""
        undone = Change(change.path, change.spelling, change.after, change.before)
        effect, note = self.under.effect(change.path, with_changes(self.config, [undone]), self.config)
        if effect is Effect.FUNCTION:
            return _with_belief(setting, change, Impact.DIFFERS, f"no key or shape changes, but {note}")
        why = note if effect is Effect.UNUSED and note else effect.value + (f": {note}" if note else "")
        return _with_belief(setting, change, Impact.SAFE, why)

    def _affected(self, change: Change) -> Comparison:
        """The part of the joint comparison that this change alone would affect as well."""
        try:
            alone = self.under.shapes(with_changes(self.under.config, [change]), self.parts)
        except (
            ConstructionError
        ):  # valid only together with the other changes, so all of their effects are attributed to it
            return self.joint
        old = self.joint.old
        names = {name for name in {**old, **alone} if old.get(name) != alone.get(name)}
        return Comparison(_only(old, names), _only(self.joint.new, names))


def _value_used(setting: Setting, value: object) -> object:
    """The value that the model's class uses: the default where the key is absent."""
    return setting.default if value is ABSENT else value


def _only(shapes: Mapping[str, Shape], names: set[str]) -> dict[str, Shape]:
    return {name: shape for name, shape in shapes.items() if name in names}


def _with_belief(setting: Setting, change: Change, verdict: Impact, why: str) -> ChangeImpact:
    """The impact with the setting's advice, and with the common belief where that is wrong."""
    if setting.advice and verdict is not Impact.SAFE:
        why = f"{why}; {setting.advice}"
    if change.after is ABSENT and setting.default is not ABSENT:
        why = f"without the key the class default {setting.default!r} applies: {why}"
    believed = setting.believed
    safer, graver = believed is Impact.SAFE, believed is Impact.BREAKING
    wrong = (safer and verdict is not Impact.SAFE) or (graver and verdict.severity < Impact.BREAKING.severity)
    return ChangeImpact(change, verdict, why, f"commonly believed to be {believed}: it is not" if wrong else "")
