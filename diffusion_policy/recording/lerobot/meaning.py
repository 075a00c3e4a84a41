"""What the features of a LeRobot dataset mean: taken from a mapping or from their names.

If neither states it, the dataset is refused with a mapping to fill in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusion_policy.gripper_scale import labeled_scales
from diffusion_policy.recording.lerobot.info import DEFAULTS, Feature, Info
from diffusion_policy.recording.mapping import MappingError, RecordingMapping, mapping_of
from diffusion_policy.recording.question import guess, question
from diffusion_policy.spec import GRIPPER, INTERVENTION, ActionLayout, SpecError
from diffusion_policy.trajectory import SINGLE_CAMERA

ACTIONS = ("action", "actions")
STATES = ("observation.state", "state")
SUCCESS = ("next.success", "is_episode_successful")
"""Flags of a step that hold an episode's success."""
_MOTOR = ".pos"
_EPISODE_FLAGS = ("next.done", "next.truncated", "next.reward", "is_first", "is_last", "is_terminal", "reward", "done")
_NOT_READ = "no entry of the mapping reads it"


@dataclass(frozen=True)
class Meaning:
    """What is read from a dataset.

    Attributes:
        mapping: mapping of its numbers.
        cameras: features by the camera's name in the dataset.
        flags: features of success and intervention.
        left_out: features that do not become part of the dataset, with the reason.
    """

    mapping: RecordingMapping
    cameras: Mapping[str, str]
    flags: tuple[str, ...]
    left_out: Mapping[str, str]


def features_of(info: Info) -> dict[str, tuple[str, ...] | int]:
    """Returns the vectors among the features: names of their numbers, or their count if they have no names."""
    return {
        name: feature.names if len(feature.names) == feature.width else feature.width
        for name, feature in info.features.items()
        if feature.is_vector and name not in DEFAULTS
    }


def meaning_of(info: Info, mapping: RecordingMapping | None) -> Meaning:
    """Decides what is read from a dataset, by a mapping or by the names of its features.

    Raises:
        MappingError: names do not define the numbers, and the mapping to fill in is printed; or there is no color
            camera.
    """
    mapping = mapping or _by_names(info)
    cameras = _cameras(info, mapping)
    flags = tuple(name for name in (INTERVENTION, *SUCCESS) if name in info.features and info.features[name].width == 1)
    used = {*mapping.features, *cameras.values(), *flags, *DEFAULTS}
    left_out = {name: _why(feature) for name, feature in info.features.items() if name not in used}
    return Meaning(mapping, cameras, flags, left_out)


def _cameras(info: Info, mapping: RecordingMapping) -> dict[str, str]:
    colored = [name for name, feature in info.features.items() if feature.is_camera and not feature.is_depth]
    if mapping.cameras is not None:
        bad = [feature for feature in mapping.cameras if feature not in colored]
        if bad:
            raise MappingError(
                f"{info.file}: the mapping's camera {bad[0]!r} is not a color camera; there are {', '.join(colored)}"
            )
        return {name: feature for feature, name in mapping.cameras.items()}
    if not colored:
        raise MappingError(f"{info.file}: has no color camera; a policy needs one: record with a camera")
    if len(colored) == 1:
        return {SINGLE_CAMERA: colored[0]}
    short = [name.rsplit(".", 1)[-1] for name in colored]
    return dict(zip(short if len(set(short)) == len(short) else colored, colored, strict=True))


def _why(feature: Feature) -> str:
    if feature.is_depth:
        return "a depth camera: policies here read color"
    if feature.is_camera:
        return "the mapping does not list this camera"
    if feature.dtype == "language" or feature.dtype == "string":
        return "language, which policies here do not read; tasks are in the ledger"
    if feature.name in _EPISODE_FLAGS:
        return "a flag that the end of an episode gives as well"
    return _NOT_READ


def _by_names(info: Info) -> RecordingMapping:
    """Returns the mapping defined by the names of `action` and `observation.state`.

    Raises:
        MappingError: they do not define the numbers.
    """
    content: dict[str, Any] = {}
    for entry, candidates in (("action", ACTIONS), ("state", STATES)):
        feature = next((info.features[name] for name in candidates if name in info.features), None)
        if feature is None and entry == "state":
            continue
        declared = None if feature is None else _declared_by_names(feature)
        if declared is None:
            raise _question(info)
        content[entry] = declared
    return mapping_of(content, str(info.file))


def _declared_by_names(feature: Feature) -> dict[str, Any] | None:
    """Returns arms and their parts if every name is one of this project's that implies its unit, else None."""
    if len(feature.names) != feature.width or not feature.is_vector:
        return None
    try:
        layout = ActionLayout.of(feature.names, feature.units)
        declared = labeled_scales(None if feature.gripper is None else {GRIPPER: feature.gripper}, feature.name)
    except SpecError:
        return None
    known: dict[str, Any] = {}
    n_known = 0
    for arm in layout.arms:
        units = {layout.unit(i) for i in arm.joints}
        if not units <= {"rad", "deg", "%"} or len(units) > 1:
            return None
        if arm.rotation and arm.representation != "quaternion":
            return None
        parts: dict[str, Any] = {}
        if arm.position:
            parts["position"] = {"columns": [feature.names[i] for i in arm.position], "unit": "m"}
        if arm.rotation:
            parts["rotation"] = {"columns": [feature.names[i] for i in arm.rotation], "as": "quaternion_xyzw"}
        if arm.joints:
            parts["joints"] = {"columns": [feature.names[i] for i in arm.joints], "unit": units.pop()}
        if arm.gripper:
            parts["gripper"] = {"columns": [feature.names[i] for i in arm.gripper]}
            parts["gripper"] |= {} if declared is None else {"scale": declared.command.name}
        n_known += len(arm.position) + len(arm.rotation) + len(arm.joints) + len(arm.gripper)
        known[arm.name] = {kind: {"feature": feature.name, **part} for kind, part in parts.items()}
    if n_known != feature.width:
        return None
    return known[""] if set(known) == {""} else known


def _question(info: Info) -> MappingError:
    """Returns the error that prints the mapping to fill in."""
    vectors = features_of(info)
    content = {"action": guess(vectors, ACTIONS, "action"), "state": guess(vectors, STATES, "state")}
    return question(str(info.file), content, vectors, "the names of features do not define their numbers")
