"""A mapping file: which columns of foreign recordings hold each arm's position, rotation, gripper and joints.

    action:                          # and state: the same
      position: {feature: action, columns: [x, y, z], unit: m}
      rotation: {feature: action, columns: [qw, qx, qy, qz], as: quaternion_wxyz}
      gripper: {feature: action, columns: [gripper], scale: percent}
      joints: {feature: action, columns: [0, 1, 2, 3, 4, 5], unit: rad, names: [joint_1, ...]}
    cameras: {observation.images.front: image}
    lead: 1                          # the command columns are recorded this many steps later (default: 0)
    hz: 10                           # rate of recordings without time stamps

Columns are names in the feature, or numbers counted from 0; without them the whole feature is used. With several arms
there is another level, whose keys are the arms' names (``left: {position: ...}``). ``cameras`` renames cameras and
leaves out those that it does not list; without it all color cameras are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_scale import parse_scale
from diffusion_policy.installation import CONFIG
from diffusion_policy.spec import SpecError

FLAG = "--mapping"
UNDECIDED = "?"
"""Placeholder in a printed mapping for what only the recordings' owner knows."""
KINDS = ("position", "rotation", "joints", "gripper", "other")
"""Parts of an arm, in the order of their numbers in an action."""
ROTATIONS_AS = (
    "quaternion_xyzw",
    "quaternion_wxyz",
    "rotation_vector",
    "euler_xyz",
    "rotation_6d_rows",
    "rotation_6d_columns",
)
"""How a rotation may be written; euler_xyz is roll, pitch, yaw about the fixed axes x, y, z, in this order."""
WIDTHS = {"quaternion_xyzw": 4, "quaternion_wxyz": 4, "rotation_vector": 3, "euler_xyz": 3}
_UNITS = {
    "position": ("m", "cm", "mm"),
    "rotation": ("rad", "deg"),
    "joints": ("rad", "deg", "%"),
}
_ENTRIES = {"action", "state", "cameras", "lead", "hz"}
_MOST_LEAD, _HIGHEST_HZ = 100, 1000
_KEYS = {"feature", "columns", "unit", "as", "scale", "names"}
_LARGEST = 1 << 20
_READY = CONFIG / "recordings"


class MappingError(WorkspaceError):
    """A mapping cannot be read or does not fit; the message names the entry and what to write."""


@dataclass(frozen=True)
class Part:
    """A part of an arm, and the location of its numbers.

    Attributes:
        kind: one of KINDS.
        feature: feature of the recordings.
        columns: columns of the feature, by name or number; None for all.
        unit: unit of a position, of angles or of joints.
        rotation: one of ROTATIONS_AS.
        scale: scale of a gripper, as in ``--gripper-scale``; None to find it in the numbers.
        names: names for joints and others; None for those in the recordings.
    """

    kind: str
    feature: str
    columns: tuple[str | int, ...] | None = None
    unit: str | None = None
    rotation: str | None = None
    scale: str | None = None
    names: tuple[str, ...] | None = None


Arms = Mapping[str, tuple[Part, ...]]


@dataclass(frozen=True)
class RecordingMapping:
    """The content of a mapping.

    Attributes:
        action, state: the parts of each arm (by an empty name for a single one).
        cameras: name in the dataset by feature; None to take all.
        lead: steps by which commands are recorded later than they apply: 1 where the next measurement is the command.
        hz: rate of recordings without time stamps; None if unknown.
    """

    action: Arms
    state: Arms
    cameras: Mapping[str, str] | None = None
    lead: int = 0
    hz: float | None = None
    content: Mapping[str, Any] = field(default_factory=dict)

    @property
    def features(self) -> set[str]:
        """The features that are read for numbers."""
        return {part.feature for arms in (self.action, self.state) for parts in arms.values() for part in parts}


def ready_mappings() -> list[str]:
    """Returns the names of the mappings that come with this package."""
    return sorted(path.stem for path in _READY.glob("*.yaml"))


def read_mapping(name: str | Path) -> RecordingMapping:
    """Reads a mapping from a file, or one that comes with this package by name.

    Raises:
        MappingError: there is none, or an entry is invalid.
    """
    file = Path(name)
    if not file.is_file() and file.name == str(name) and (_READY / f"{file.name}.yaml").is_file():
        file = _READY / f"{file.name}.yaml"
    try:
        if file.stat().st_size > _LARGEST:
            raise MappingError(f"{file}: larger than {_LARGEST} bytes; expected a short YAML file")
        text = file.read_text(encoding="utf-8")
        if "&" in text and "*" in text:
            raise MappingError(f"{file}: has YAML anchors; write the entries out")
        content = yaml.safe_load(text)
    except OSError as error:
        raise MappingError(
            f"{file}: cannot be read ({error.strerror or error}); expected a mapping file, or one of "
            f"{', '.join(ready_mappings())}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise MappingError(f"{file}: not YAML ({str(error)[:300]})") from error
    return mapping_of(content, str(file))


def mapping_of(content: Any, where: str) -> RecordingMapping:
    """Returns the mapping in parsed YAML.

    Raises:
        MappingError: an entry is invalid; the message names it and ``where``.
    """
    if not isinstance(content, dict) or not content.keys() <= _ENTRIES:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise MappingError(
            f"{where}: expected the entries action, state and (if wanted) cameras, lead, hz; found {found}"
        )
    if "action" not in content:
        raise MappingError(f"{where}: has no action; expected the columns of the commands")
    cameras = content.get("cameras")
    if cameras is not None and not (
        isinstance(cameras, dict) and all(isinstance(name, str) for pair in cameras.items() for name in pair)
    ):
        raise MappingError(f"{where}: cameras is {cameras!r}; expected names in the dataset by feature")
    if cameras is not None and len(set(cameras.values())) != len(cameras):
        raise MappingError(f"{where}: cameras gives two features the same name: {cameras}")
    lead, hz = content.get("lead", 0), content.get("hz")
    if not isinstance(lead, int) or isinstance(lead, bool) or not 0 <= lead <= _MOST_LEAD:
        raise MappingError(f"{where}: lead is {lead!r}; expected steps, 0 to {_MOST_LEAD}")
    if hz is not None and (not isinstance(hz, int | float) or isinstance(hz, bool) or not 0 < hz <= _HIGHEST_HZ):
        raise MappingError(f"{where}: hz is {hz!r}; expected steps per second, above 0 and at most {_HIGHEST_HZ}")
    return RecordingMapping(
        action=_arms(content["action"], f"{where}: action"),
        state=_arms(content.get("state") or {}, f"{where}: state"),
        cameras=cameras,
        lead=lead,
        hz=None if hz is None else float(hz),
        content=content,
    )


def _arms(content: Any, where: str) -> Arms:
    if not isinstance(content, dict):
        raise MappingError(f"{where} is {content!r}; expected {', '.join(KINDS)}, or arms that have these")
    if not content or set(content) & set(KINDS):
        return {"": _parts(content, where)} if content else {}
    bad = [name for name in content if not isinstance(name, str) or not name.isidentifier()]
    if bad:
        raise MappingError(f"{where}: {bad[0]!r} is neither one of {', '.join(KINDS)} nor the name of an arm")
    return {name: _parts(parts, f"{where}.{name}") for name, parts in content.items()}


def _parts(content: Any, where: str) -> tuple[Part, ...]:
    if not isinstance(content, dict) or not content or not set(content) <= set(KINDS):
        raise MappingError(f"{where} is {content!r}; expected some of {', '.join(KINDS)}")
    return tuple(_part(kind, content[kind], f"{where}.{kind}") for kind in KINDS if kind in content)


def _part(kind: str, content: Any, where: str) -> Part:
    if not isinstance(content, dict) or not isinstance(content.get("feature"), str) or not set(content) <= _KEYS:
        raise MappingError(f"{where} is {content!r}; expected feature and some of {', '.join(sorted(_KEYS))}")
    open_questions = [key for key, value in content.items() if value == UNDECIDED]
    if open_questions:
        raise MappingError(f"{where}.{open_questions[0]} is {UNDECIDED!r}: fill it in: {_choices(kind)}")
    columns, names = content.get("columns"), content.get("names")
    if columns is not None and not (
        isinstance(columns, list)
        and columns
        and all(isinstance(one, str | int) and not isinstance(one, bool) for one in columns)
    ):
        raise MappingError(f"{where}.columns is {columns!r}; expected a list of names, or of numbers from 0 on")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise MappingError(f"{where}.names is {names!r}; expected a list of names")
    unit, turn, scale = content.get("unit"), content.get("as"), content.get("scale")
    if kind == "rotation" and turn not in ROTATIONS_AS:
        raise MappingError(f"{where}.as is {turn!r}; expected one of {', '.join(ROTATIONS_AS)}")
    if kind == "joints" and unit is None:
        raise MappingError(f"{where} has no unit: {_choices(kind)}")
    if unit is not None and unit not in _UNITS.get(kind, (unit,)):
        raise MappingError(f"{where}.unit is {unit!r}; expected one of {', '.join(_UNITS[kind])}")
    if scale is not None:
        try:
            parse_scale(str(scale))
        except SpecError as error:
            raise MappingError(f"{where}.scale: {error}") from error
    return Part(
        kind,
        content["feature"],
        None if columns is None else tuple(columns),
        unit,
        turn,
        None if scale is None else str(scale),
        None if names is None else tuple(names),
    )


def _choices(kind: str) -> str:
    if kind == "rotation":
        return f"as: one of {', '.join(ROTATIONS_AS)}; unit: rad or deg, for angles"
    if kind == "gripper":
        return "scale: open1 (0..1, 1 is open), closed1, percent, percent_closed, meters:0.08 and so on (docs/data.md)"
    return f"unit: one of {', '.join(_UNITS.get(kind, ('any',)))}"
