"""Families of checkpoints: recognizes a file's family by its tensors, and reads settings from their shapes.

Example:

    from diffusion_policy.families import recognize
    found = recognize({name: tensor.shape for name, tensor in tensors.items()})
    found.sentence   # "VPT agent policy, but `net.` is missing from the front of its names ..."
"""

from __future__ import annotations

from collections.abc import Mapping

from diffusion_policy.families import (
    diffusion_policy_image,
    groot_flat,
    groot_n1_5,
    lerobot_diffusion,
    robot_policy,
    vpt,
)
from diffusion_policy.families.family import (
    ConstructionError,
    Family,
    FamilyError,
    Impact,
    Recognized,
    Shape,
    Shapes,
)

# Keys under which training code stores a state_dict; their content is opened, not renamed.
ENTRIES = ("state_dicts", "state_dict", "model", "ema_model")
# The first whose marker exists is chosen: image policies of diffusion_policy and UMI have this project's denoisers.
FAMILIES = (
    diffusion_policy_image.FAMILY,
    *robot_policy.FAMILIES,
    vpt.FAMILY,
    groot_n1_5.FAMILY,
    *groot_flat.FAMILIES,
    lerobot_diffusion.FAMILY,
)

__all__ = ["FAMILIES", "ConstructionError", "Family", "FamilyError", "Impact", "Recognized", "Shapes", "recognize"]


def recognize(tensors: Mapping[str, Shape]) -> Recognized | None:
    """The family of a set of named shapes, stored under any prefix; None if the family is unknown."""
    for family in FAMILIES:
        for marker, stripped in ((family.marker, ""), (family.marker.removeprefix(family.part), family.part)):
            prefixes = _prefixes(tensors, marker)
            if prefixes:
                return _recognized(family, tensors, prefixes[0], stripped)
    return None


def _prefixes(tensors: Mapping[str, Shape], marker: str) -> list[str]:
    """The prefixes of names that end with the marker, the shortest first."""
    prefixes = {name.removesuffix(marker) for name in tensors if name == marker or name.endswith("." + marker)}
    return sorted(prefixes, key=lambda prefix: (len(prefix), prefix))


def _recognized(family: Family, tensors: Mapping[str, Shape], prefix: str, stripped: str) -> Recognized:
    """The recognized family; `stripped` is the family's leading part if it is missing from the names, else empty."""
    own: dict[str, Shape] = {}
    for name, shape in tensors.items():
        if name.startswith(prefix):
            bare = name[len(prefix) :]
            own[stripped + bare if bare.partition(".")[0] in family.inside else bare] = shape
    sentence = _sentence(family, prefix, stripped)
    try:
        settings = family.settings(own)
    except (KeyError, IndexError, ValueError, TypeError, ArithmeticError):
        settings = {}
        sentence += " Not all of it: tensors that tell its sizes are missing, or of other shapes."
    return Recognized(family, prefix, stripped, settings, sentence)


def _sentence(family: Family, prefix: str, stripped: str) -> str:
    if stripped:
        groups = "|".join(family.inside)
        return (
            f"{family.title}, but `{stripped}` is missing from the front of its names: it was stripped, or the file "
            f"contains only the inner module. Put it back with rename: {{pattern: '^{prefix}({groups})\\b', "
            f"to: '{prefix}{stripped}\\1'}}, or load into the {stripped.rstrip('.')} module."
        )
    if not prefix:
        return f"{family.title}, under its own names."
    if set(prefix.rstrip(".").split(".")) <= set(ENTRIES):
        return (
            f"{family.title}, in the file's entry `{prefix.rstrip('.')}`: plan and apply find it by themselves for a "
            f"policy of this project; for another target, remove it with rename: {{prefix: '{prefix}', to: ''}}."
        )
    wrapper = family.prefixes.get(prefix)
    added_by = f" of {wrapper}" if wrapper else ""
    fix = f"rename: {{prefix: '{prefix}', to: ''}}"
    return f"{family.title}, under the prefix `{prefix}`{added_by}: remove it with {fix}."
