"""One step: its observation keys and its action dimensions, as ``shape_meta`` declares them; the only reader of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from diffusion_policy.errors import SpecError
from diffusion_policy.spec.action_layout import ActionLayout, unit_of
from diffusion_policy.spec.names import default_names
from diffusion_policy.spec.rotations import ROTATIONS, Representation
from diffusion_policy.spec.semantics import action_semantics, arms_of


@dataclass(frozen=True)
class ObsField:
    """One observation key.

    Attributes:
        key: its name in ``shape_meta.obs`` and in the dataset.
        shape: of one step; (C, H, W) for images, (D,) for low-dimensional keys.
        kind: "rgb" or "low_dim".
        names: of the D dimensions; empty for images.
    """

    key: str
    shape: tuple[int, ...]
    kind: Literal["rgb", "low_dim"]
    names: tuple[str, ...] = ()

    @property
    def width_height(self) -> tuple[int, int]:
        """(width, height) of an image key, the order in which OpenCV and command lines take sizes."""
        _, height, width = self.shape
        return width, height


@dataclass(frozen=True)
class StepSpec:
    """One step.

    Attributes:
        obs: its observation keys, in the order of ``shape_meta.obs``.
        action_names: (Da,) names of the action's dimensions.
        action_units: (Da,) their units; "" where the name implies it (``spec.UNITS``) or none is given. Empty means all
            "".
        rotation: representation into which rotations of actions and observed poses are converted for the policy;
            robots, recordings and logs then have quaternions. None: as recorded.
        relative: whether the policy's actions are relative to the newest observed pose; in robots, recordings and logs
            they are absolute.
    """

    obs: tuple[ObsField, ...]
    action_names: tuple[str, ...]
    action_units: tuple[str, ...] = ()
    rotation: Representation | None = None
    relative: bool = False

    @property
    def action_dim(self) -> int:
        """Width of one action."""
        return len(self.action_names)

    @property
    def layout(self) -> ActionLayout:
        """What the numbers of an action are."""
        return ActionLayout.of(self.action_names, self.units)

    @property
    def semantics(self) -> dict[str, Any]:
        """The meaning of the robot's action, as plain JSON; see ``action_semantics``."""
        return action_semantics(self.robot.action_names, self.robot.units)

    @property
    def robot(self) -> StepSpec:
        """The same step as robots, recordings and logs have it; the spec itself if nothing is converted.

        ``spec.StepTransform`` converts between the two.
        """
        if self.rotation is None and not self.relative:
            return self
        layout = self._recorded(self.action_names, self.units)
        fields = tuple(
            replace(field, names=names, shape=(len(names),))
            if field.kind == "low_dim" and (names := self._recorded(field.names, {}).names) != field.names
            else field
            for field in self.obs
        )
        units = tuple(self.units.get(name, "") for name in layout.names) if self.units else ()
        return StepSpec(fields, layout.names, units)

    def _recorded(self, names: tuple[str, ...], units: Mapping[str, str]) -> ActionLayout:
        layout = ActionLayout(names)
        if self.rotation is None or all(arm.representation != self.rotation for arm in arms_of(names)):
            return layout
        return ActionLayout.of(names, units).with_rotations_as("quaternion")

    @property
    def units(self) -> dict[str, str]:
        """Units given by ``shape_meta``, by name of the dimension."""
        units = zip(self.action_names, self.action_units, strict=False)
        return {name: unit for name, unit in units if unit}

    def shape_meta(self) -> dict[str, Any]:
        """The mapping from which :func:`read_shape_meta` would read this spec."""
        obs: dict[str, dict[str, Any]] = {}
        for field in self.obs:
            obs[field.key] = {"shape": list(field.shape), "type": field.kind}
            if field.names:
                obs[field.key]["names"] = list(field.names)
        action: dict[str, Any] = {"shape": [self.action_dim], "names": list(self.action_names)}
        declared = {"units": list(self.action_units), "rotation": self.rotation, "relative": self.relative}
        return {"obs": obs, "action": {**action, **{key: value for key, value in declared.items() if value}}}

    @property
    def rgb(self) -> tuple[ObsField, ...]:
        """The image keys, in order."""
        return tuple(field for field in self.obs if field.kind == "rgb")

    @property
    def low_dim(self) -> tuple[ObsField, ...]:
        """The low-dimensional keys, in order."""
        return tuple(field for field in self.obs if field.kind == "low_dim")

    def field(self, key: str) -> ObsField:
        """The field with that key; SpecError if there is none."""
        for field in self.obs:
            if field.key == key:
                return field
        raise SpecError(f"no observation key {key!r}; shape_meta has {[field.key for field in self.obs]}")


def read_shape_meta(shape_meta: Mapping[str, Any]) -> StepSpec:
    """Read a ``shape_meta``: {"obs": {key: {"shape", "type", "names"?}}, "action": {"shape", "names"?, "units"?}}.

    Without ``names`` seven action dimensions are a pose and eight a pose and a gripper, as in every released config;
    other widths are called a0, a1, ... ``units`` is a list, or a mapping of some names, for numbers whose name does not
    imply a unit: joints. ``rotation`` and ``relative`` of the action are as in :class:`StepSpec`.

    Raises:
        SpecError: an entry is missing or has the wrong type, or names and shape disagree.
    """
    for entry in ("obs", "action"):
        if not isinstance(shape_meta.get(entry), Mapping):
            raise SpecError(f"shape_meta has no {entry!r} mapping; it has {sorted(map(str, shape_meta))}")
    fields = tuple(_read_field(str(key), entry) for key, entry in shape_meta["obs"].items())
    if not fields:
        raise SpecError("shape_meta.obs is empty; a policy needs at least one observation key")
    action = shape_meta["action"]
    (width,) = _read_shape(action, "shape_meta.action", n_dims=1)
    names = _read_names(action, width, "shape_meta.action", prefix="a")
    rotation, relative = action.get("rotation"), action.get("relative") or False
    if not isinstance(relative, bool):
        raise SpecError(f"shape_meta.action.relative is {relative!r}; expected true or false")
    if rotation is not None:
        _check_rotation(rotation, names)
    return StepSpec(fields, names, _read_units(action, names), rotation, relative)


def _check_rotation(rotation: Any, names: tuple[str, ...]) -> None:
    """Refuse a representation that the names of an action do not have."""
    if rotation not in ROTATIONS:
        raise SpecError(f"shape_meta.action.rotation is {rotation!r}; expected null or one of {', '.join(ROTATIONS)}")
    representations = {arm.representation for arm in arms_of(names) if arm.representation is not None}
    if representations != {rotation}:
        raise SpecError(
            f"shape_meta.action.rotation is {rotation}, whose numbers are called {' '.join(ROTATIONS[rotation])}; the "
            f"action's are {' '.join(names)}: name them so in the task's shape_meta (config/task/cogact_robot_10d.yaml "
            "has rotation_6d_rows)"
        )


def _read_field(key: str, entry: Any) -> ObsField:
    where = f"shape_meta.obs.{key}"
    if not isinstance(entry, Mapping):
        raise SpecError(f"{where} is {entry!r}; expected a mapping with shape and type")
    kind = entry.get("type", "low_dim")
    if kind == "rgb":
        return ObsField(key, _read_shape(entry, where, n_dims=3), "rgb")
    if kind == "low_dim":
        shape = _read_shape(entry, where, n_dims=1)
        return ObsField(key, shape, "low_dim", _read_names(entry, shape[0], where, prefix=f"{key}."))
    raise SpecError(f"{where}.type is {kind!r}; expected 'rgb' or 'low_dim'")


def _read_shape(entry: Mapping[str, Any], where: str, n_dims: int) -> tuple[int, ...]:
    shape = entry.get("shape")
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise SpecError(f"{where}.shape is {shape!r}; expected a list of {n_dims} positive integers")
    if len(shape) != n_dims or not all(isinstance(n, int) and n > 0 for n in shape):
        raise SpecError(f"{where}.shape is {list(shape)}; expected {n_dims} positive integers")
    return tuple(shape)


def _read_names(entry: Mapping[str, Any], width: int, where: str, prefix: str) -> tuple[str, ...]:
    names = entry.get("names")
    if names is None:
        return default_names(width, prefix)
    names = tuple(str(name) for name in names)
    if len(names) != width or len(set(names)) != width:
        raise SpecError(f"{where}.names is {list(names)}; expected {width} different names, as its shape says")
    return names


def _read_units(action: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    """(Da,) units, "" where none is given; empty if none is given at all."""
    units = action.get("units")
    if units is None:
        return ()
    if isinstance(units, Mapping):
        unknown = sorted(set(map(str, units)) - set(names))
        if unknown:
            raise SpecError(f"shape_meta.action.units names {unknown}; its dimensions are {list(names)}")
        units = [units.get(name) for name in names]
    if not isinstance(units, Sequence) or isinstance(units, str) or len(units) != len(names):
        raise SpecError(f"shape_meta.action.units is {units!r}; expected {len(names)} units, or a mapping by name")
    listed = tuple("" if unit is None else str(unit) for unit in units)
    for name, unit in zip(names, listed, strict=True):
        known = unit_of(name)
        if unit and known not in (unit, "unknown"):
            raise SpecError(f"shape_meta.action.units says {name} is in {unit!r}; it is in {known!r} here")
    return listed if any(listed) else ()
