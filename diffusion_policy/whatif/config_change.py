"""What would a config change cost a pretrained model: which parameters survive, and does it still compute the same?

    report = what_if("groot_n1_5", ["vl_self_attention_cfg.num_layers=8"])
    report.counts["tensors"]      # {"loads": 314, "shape_mismatch": 0, "missing_new_init": 64, "unexpected_dropped": 0}
    report.verdicts[0].sentence   # "partly: 64 new tensors ..."

Both models, before and after the change, exist as names and shapes only: no weights are read and no memory is taken. A
comparison of names and shapes is half of the answer. The other half is what it cannot show: widths of the forward pass
that no longer agree, and tensors that load perfectly and are used for another computation.
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
    Clash,
    Config,
    ConstructionError,
    Effect,
    FamilyError,
    ModelUnderChange,
    Setting,
    Shape,
    Verdict,
    closest,
)
from diffusion_policy.whatif.project_config import open_project_config, project_configs
from diffusion_policy.whatif.report import Comparison, Judgment, WhatIfReport

__all__ = ["WhatIfReport", "open_model", "what_if"]


def what_if(model: str | Path, changes: Sequence[str]) -> WhatIfReport:
    """What the changes do to the pretrained model.

    model: `vpt` (also `vpt_1x`, `vpt_3x`), `groot_n1_5`, a path to a GR00T config.json, or a config of the project (its
    name in config/, or a path). changes: "a.b=v" with a YAML value, or "~a.b", which removes a key so that the class
    default applies. Raises FamilyError for an unknown model, an unknown or misspelled key, or a value of another kind.
    """
    under = open_model(model)
    parsed, refused = [], []
    for text in changes:
        try:
            parsed.append(parse_change(under, text))
        except ConstructionError as error:  # the model's own constructor would raise: an answer, not a misuse
            refused.append(_refused(text, error))
    twice = {change.spelling for change in parsed if sum(other.path == change.path for other in parsed) > 1}
    if twice:
        raise FamilyError(f"{', '.join(sorted(twice))} is changed more than once")
    return _report(under, parsed, refused)


def open_model(model: str | Path) -> ModelUnderChange:
    """The model of that name or file; FamilyError names what there is."""
    found = open_definition(model) or open_project_config(Path(model))
    if found is None:
        known = [*DEFINITIONS, *project_configs()]
        raise FamilyError(
            f"no model or config {str(model)!r}; {closest(str(model), known)}; there are {', '.join(known)}"
        )
    return found


def _report(under: ModelUnderChange, changes: Sequence[Change], refused: Sequence[Judgment]) -> WhatIfReport:
    """Both models by names and shapes, then a verdict on each change; refused: verdicts that are known already."""
    parts = under.parts([change.path for change in changes])
    config = with_changes(under.config, changes)
    try:
        comparison = Comparison(under.shapes(under.config, parts), under.shapes(config, parts))
        clashes = tuple(under.clashes(config))
    except ConstructionError as error:
        judged = [_blamed(under, change, error, alone=len(changes) == 1) for change in changes]
        return WhatIfReport(under.name, under.title, None, (*judged, *refused), (), str(error))
    court = _Court(under, parts, config, comparison, clashes)
    verdicts = (*map(court.judge, changes), *refused)
    if refused:
        return WhatIfReport(under.name, under.title, None, verdicts, (), refused[0].why)
    return WhatIfReport(under.name, under.title, comparison, verdicts, clashes)


def _refused(text: str, error: ConstructionError) -> Judgment:
    """The verdict on a change that the model's constructor takes no note of but to raise."""
    key, equals, value = text.removeprefix("~").partition("=")
    after = yaml.safe_load(value) if equals else ABSENT
    return Judgment(Change(error.setting, key, ABSENT, after), Verdict.NOT_CONSTRUCTED, str(error))


def _blamed(under: ModelUnderChange, change: Change, error: ConstructionError, *, alone: bool) -> Judgment:
    """The verdict on one of the changes that together cannot be constructed: to blame, or judged alone."""
    if change.path != error.setting and not alone:
        by_itself = _report(under, [change], [])
        if by_itself.comparison is not None:
            return by_itself.verdicts[0]
    return _with_belief(under.settings[change.path], change, Verdict.NOT_CONSTRUCTED, str(error))


@dataclass(frozen=True)
class _Court:
    """Judges each change in the company of the others: `config` holds all of them, `joint` compares what they make."""

    under: ModelUnderChange
    parts: Sequence[str]
    config: Config
    joint: Comparison
    clashes: Sequence[Clash]

    def judge(self, change: Change) -> Judgment:
        """The verdict on one change, the gravest first."""
        setting = self.under.settings[change.path]
        if _value_used(setting, change.before) == _value_used(setting, change.after):
            return Judgment(change, Verdict.SAFE, "the model uses this value already")
        reasons = [clash.reason for clash in self.clashes if change.path in clash.settings]
        touched = self._touched(change)
        cost = touched.cost()
        if reasons:
            return _with_belief(setting, change, Verdict.CANNOT_RUN, "; ".join(filter(None, [*reasons, cost])))
        if touched.shape_mismatch:
            return _with_belief(setting, change, Verdict.BREAKING, f"{cost}: loaders raise")
        if cost:
            why = f"{cost}; the others load, with a warning at most"
            return _with_belief(setting, change, Verdict.PARTLY, why)
        return self._judge_unseen(setting, change)

    def _judge_unseen(self, setting: Setting, change: Change) -> Judgment:
        """The verdict where no tensor shows the change."""
        undone = Change(change.path, change.spelling, change.after, change.before)
        effect, note = self.under.effect(change.path, with_changes(self.config, [undone]), self.config)
        if effect is Effect.FUNCTION:
            return _with_belief(setting, change, Verdict.DIFFERS, f"no key or shape changes, but {note}")
        why = note if effect is Effect.UNUSED and note else effect.value + (f": {note}" if note else "")
        return _with_belief(setting, change, Verdict.SAFE, why)

    def _touched(self, change: Change) -> Comparison:
        """The part of the joint comparison that this change alone would touch too."""
        try:
            alone = self.under.shapes(with_changes(self.under.config, [change]), self.parts)
        except ConstructionError:  # only in company does this value work: all that does not load is its doing too
            return self.joint
        old = self.joint.old
        names = {name for name in {**old, **alone} if old.get(name) != alone.get(name)}
        return Comparison(_only(old, names), _only(self.joint.new, names))


def _value_used(setting: Setting, value: object) -> object:
    """What the model's class sees: the default where the key is absent."""
    return setting.default if value is ABSENT else value


def _only(shapes: Mapping[str, Shape], names: set[str]) -> dict[str, Shape]:
    return {name: shape for name, shape in shapes.items() if name in names}


def _with_belief(setting: Setting, change: Change, verdict: Verdict, why: str) -> Judgment:
    """Attach advice, and the common belief where this verdict contradicts it."""
    if setting.advice and verdict is not Verdict.SAFE:
        why = f"{why}; {setting.advice}"
    if change.after is ABSENT and setting.default is not ABSENT:
        why = f"without the key the class default {setting.default!r} applies: {why}"
    believed = setting.believed
    safer, graver = believed is Verdict.SAFE, believed is Verdict.BREAKING
    wrong = (safer and verdict is not Verdict.SAFE) or (graver and verdict.severity < Verdict.BREAKING.severity)
    return Judgment(change, verdict, why, f"commonly believed to be {believed}: it is not" if wrong else "")
