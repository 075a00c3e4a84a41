"""Plans an adaptation: for two sets of named tensors and rules, an action for every name, or an error with the reasons.

A target name is decided by the first rule that applies to it; else the source's tensor of that name is copied, if shape
and slots agree; else it is a problem. A source name is used for a target; else the first matching rule drops it; else
it is a problem.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.diagnosis import Mismatch, Problems, explain
from diffusion_policy.adapt.encoder_rules import with_copies
from diffusion_policy.adapt.ledger import Count, Entry, Ledger, Ref
from diffusion_policy.adapt.named_axes import NamedAxes
from diffusion_policy.adapt.rules import FIRST, Rule, Rules
from diffusion_policy.adapt.slots import SlotMap, numbered
from diffusion_policy.tensor_file import TensorInfo

__all__ = ["AdaptError", "Plan", "PlanError", "describe_state", "make_plan"]

SAME = "same name and shape"


class PlanError(AdaptError):
    """Tensors of source or target that are not accounted for.

    Attributes:
        problems: missing, unexpected and mismatched names, and rules without effect.
    """

    def __init__(self, message: str, problems: Problems) -> None:
        super().__init__(message)
        self.problems = problems


@dataclass(frozen=True)
class Plan:
    """The actions for every tensor of one part of a checkpoint.

    Attributes:
        ledger: the rows, checked.
        rules: the rule that decided each target key; keys copied without a rule are absent.
        part: part of the checkpoint.
    """

    ledger: Ledger
    rules: Mapping[str, Rule]
    part: str


def make_plan(
    source: Mapping[str, TensorInfo],
    target: Mapping[str, TensorInfo],
    rules: Rules,
    *,
    part: str = "model",
    origin: str = "",
    source_axes: NamedAxes | None = None,
    target_axes: NamedAxes | None = None,
    elsewhere: Collection[Rule] = (),
) -> Plan:
    """Decide the action for every source and target tensor.

    Args:
        source: the source's tensors, by name.
        target: the target's tensors, by name.
        rules: which differences are allowed.
        part: the part of the new checkpoint.
        origin: the source's part, if it is another one.
        source_axes: named axes of the source, if its config is known.
        target_axes: named axes of the target.
        elsewhere: rules that apply in another part of the same file and may therefore have no effect in this one.

    Raises:
        PlanError: a name is not accounted for, or a rule has no effect; with the diagnosis and the missing rules.
        AdaptError: a rule cannot be carried out, such as two names renamed to one.
    """
    planner = _Planner(source, target, rules, part, origin, source_axes or NamedAxes(), target_axes or NamedAxes())
    planner.used_rules.update(map(id, elsewhere))
    return planner.plan()


def describe_state(state: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """Shape, type and identity of each tensor of a state dict; names that share storage have the same identity."""
    return {
        key: TensorInfo(
            name=key,
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            nbytes=tensor.numel() * tensor.element_size(),
            storage=f"{tensor.untyped_storage()._cdata:x}+{tensor.storage_offset()}:{tuple(tensor.shape)}",
        )
        for key, tensor in state.items()
    }


class _Planner:
    """Goes through the names of target and source once and collects rows and problems."""

    def __init__(
        self, source: Mapping[str, TensorInfo], target: Mapping[str, TensorInfo], rules: Rules, part: str, origin: str,
        source_axes: NamedAxes, target_axes: NamedAxes,
    ) -> None:  # fmt: skip
        self.target = target
        self.rules = rules
        self.part = part
        self.origin = origin if origin != part else ""
        self.axes = source_axes, target_axes
        self.used_rules: set[int] = set()
        self.old_names: dict[str, str] = {}
        self.source = self._renamed(source)
        self.rules = with_copies(rules, self.source, target)
        self.entries: list[Entry] = []
        self.deciding: dict[str, Rule] = {}
        self.used_sources: set[str] = set()
        self.problems = Problems()

    def plan(self) -> Plan:
        for key in self.target:
            self._decide_target(key)
        for key in self.source:
            if key not in self.used_sources:
                self._decide_source(key)
        unused = (rule for rule in self.rules.rules if id(rule) not in self.used_rules and not rule.is_rest)
        self.problems.unused_rules.extend(map(str, unused))
        if self.problems:
            raise PlanError(explain(self.source, self.target, self.problems, self.axes[1]), self.problems)
        totals = (
            {self.origin or self.part: Count.of(self._source_ref(key) for key in self.source)},
            {self.part: Count.of(_ref(info) for info in self.target.values())},
        )
        ledger = Ledger(tuple(self.entries), *totals)
        ledger.check()
        self._check_shared()
        return Plan(ledger, self.deciding, self.part)

    def _renamed(self, source: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        renamed: dict[str, TensorInfo] = {}
        for old, info in source.items():
            new = old
            for rule in self.rules.renames:
                name = rule.renamed(new)
                if name != new:
                    self.used_rules.add(id(rule))
                new = name
            if new in renamed:
                raise AdaptError(f"renaming maps both {self.old_names[new]!r} and {old!r} to {new!r}")
            renamed[new] = info
            self.old_names[new] = old
        return renamed

    def _decide_target(self, key: str) -> None:
        for rule in self.rules.decisions:
            if rule.matches(key) and self._apply_rule(rule, key):
                # Two rules files may contain equivalent rules for a tensor; the later one counts as used as well.
                alike = (other for other in self.rules.decisions if other.is_equivalent(rule) and other.matches(key))
                self.used_rules.update(map(id, alike))
                self.deciding[key] = rule
                return
        if key not in self.source:
            self.problems.missing.append(key)
        elif mismatch := self._mismatch(key):
            self.used_sources.add(key)
            self.problems.mismatched.append(mismatch)
        else:
            self._add(key, "copied", SAME, source=key)

    def _apply_rule(self, rule: Rule, key: str) -> bool:
        """Apply a rule that matches a target name; False if it does not apply, such as `copy` without a source."""
        name = rule.source_name(key)
        in_source = name in self.source
        match rule.kind:
            case "fresh" if not in_source:
                self._add(key, "fresh", str(rule), init=rule.init.describe())
            case "strip" if in_source:
                self._add(key, "fresh", str(rule), init=rule.init.describe())
                self._drop(key, str(rule))
            case "recompute":
                self._add(
                    key, "recomputed", str(rule), source=key if in_source else None, init="from the target's config"
                )
            case "copy" if in_source:
                if self.source[name].shape != self.target[key].shape:
                    self.problems.mismatched.append(Mismatch(key, *self._shapes(name, key), f"by rule: {rule}"))
                    self.used_sources.add(name)
                else:
                    self._add(key, "copied", str(rule), source=name)
            case "grow" if in_source:
                self._grow(rule, key, name)
            case _:
                return False
        return True

    def _decide_source(self, key: str) -> None:
        for rule in self.rules.decisions:
            if rule.kind == "drop" and not self._is_wanted(key) and rule.matches(key):
                self.used_rules.add(id(rule))
                self._drop(key, str(rule))
                return
        if key not in {mismatch.key for mismatch in self.problems.mismatched}:
            self.problems.unexpected.append(key)

    def _is_wanted(self, key: str) -> bool:
        """Whether the target has the name, and does not fill it from another tensor of the source."""
        return key in self.target and (key not in self.deciding or self.deciding[key].source_name(key) == key)

    def _grow(self, rule: Rule, key: str, name: str) -> None:
        slots = self._slot_maps(rule, key, name)
        if isinstance(slots, str):
            self.used_sources.add(name)
            self.problems.mismatched.append(Mismatch(key, *self._shapes(name, key), slots))
        elif any(slot.changes for slot in slots):
            changed = tuple(slot for slot in slots if slot.changes)
            init = rule.init.describe() if any(slot.new for slot in changed) else ""
            self._add(key, "grown", rule.of(key), source=name, slots=changed, init=init)
        else:
            self._add(key, "copied", f"{SAME}; nothing to {rule.of(key)}", source=name)

    def _slot_maps(self, rule: Rule, key: str, name: str) -> tuple[SlotMap, ...] | str:
        """Slot maps of the axes that the rule or both sides name; or the reason why they do not match, as text."""
        known = self._known_slots(key, name)
        shapes = self._shapes(name, key)
        if len(shapes[0]) != len(shapes[1]):
            return f"{len(shapes[0])} dimensions cannot grow into {len(shapes[1])}"
        maps = []
        for axis, axis_name in (rule.axes or {axis: slot.name for axis, slot in known.items()}).items():
            if axis >= len(shapes[1]):
                return f"the rule names axis {axis}, the tensor has {len(shapes[1])}"
            if axis_name == FIRST:
                maps.append(SlotMap(axis, FIRST, numbered(shapes[0][axis]), numbered(shapes[1][axis])))
            elif axis_name in self.rules.slots:
                maps.append(SlotMap(axis, axis_name, *self.rules.slots[axis_name]))
            elif axis in known and known[axis].name == axis_name:
                maps.append(known[axis])
            else:
                return f"the slots of axis {axis_name!r} are unknown; name them under `slots` in the rules"
        for slot in maps:
            widths = shapes[0][slot.axis], shapes[1][slot.axis]
            if widths != (len(slot.source), len(slot.target)):
                return f"axis {slot.axis} is {widths[0]} -> {widths[1]} wide, but {slot.name} has " \
                       f"{len(slot.source)} -> {len(slot.target)} names"  # fmt: skip
        named = {slot.axis for slot in maps}
        for axis, widths in enumerate(zip(*shapes, strict=True)):
            if axis not in named and widths[0] != widths[1]:
                return f"axis {axis} differs, {widths[0]} -> {widths[1]}, and the rule does not name it"
        return tuple(maps)

    def _known_slots(self, key: str, name: str) -> dict[int, SlotMap]:
        """Slot maps of the axes that have names on both sides."""
        source, target = self.axes[0].slots_of(name), self.axes[1].slots_of(key)
        return {
            axis: SlotMap(axis, target[axis][0], source[axis][1], target[axis][1])
            for axis in source.keys() & target.keys()
        }

    def _mismatch(self, key: str) -> Mismatch | None:
        """The reason why a tensor cannot be copied, or None."""
        source, target = self.source[key], self.target[key]
        if source.shape != target.shape:
            return Mismatch(key, *self._shapes(key, key))
        if ("float" in source.dtype) != ("float" in target.dtype):
            return Mismatch(key, *self._shapes(key, key), f"{source.dtype} where {target.dtype} is expected")
        changed = [slot.describe() for slot in self._known_slots(key, key).values() if slot.changes]
        if changed:
            return Mismatch(key, *self._shapes(key, key), f"same shape, different meaning: {'; '.join(changed)}")
        return None

    def _shapes(self, name: str, key: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.source[name].shape, self.target[key].shape

    def _source_ref(self, name: str) -> Ref:
        info = self.source[name]
        return Ref(self.old_names[name], info.shape, info.storage)

    def _add(
        self, key: str, action: str, rule: str, *, source: str | None = None,
        slots: tuple[SlotMap, ...] = (), init: str = "",
    ) -> None:  # fmt: skip
        ref = None
        if source is not None:
            self.used_sources.add(source)
            ref = self._source_ref(source)
            types = self.source[source].dtype, self.target[key].dtype
            rule += f"; {types[0]} -> {types[1]}" if types[0] != types[1] else ""
        target = _ref(self.target[key])
        self.entries.append(Entry(self.part, action, rule, ref, target, slots, init, self.origin))  # type: ignore[arg-type]

    def _drop(self, name: str, rule: str) -> None:
        self.used_sources.add(name)
        self.entries.append(Entry(self.part, "dropped", rule, source=self._source_ref(name), origin=self.origin))

    def _check_shared(self) -> None:
        """Refuse different actions for two names of one target tensor: the later would overwrite the earlier."""
        first: dict[str, Entry] = {}
        for entry in self.entries:
            if entry.target is None:
                continue
            other = first.setdefault(entry.target.tensor, entry)
            if (other.action, other.slots, other.init) != (entry.action, entry.slots, entry.init):
                raise AdaptError(
                    f"{other.key!r} and {entry.key!r} are one tensor of the target, but one is {other.action} and "
                    f"the other {entry.action}; let one rule match both names"
                )


def _ref(info: TensorInfo) -> Ref:
    return Ref(info.name, info.shape, info.storage)
