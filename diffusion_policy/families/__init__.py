"""Families of checkpoints: whose file is this, what do its shapes say, and what would its model be under another
config.

    from diffusion_policy.families import recognize
    found = recognize({name: tensor.shape for name, tensor in tensors.items()})
    found.sentence   # "VPT agent policy, but `net.` is missing from the front of its names ..."
"""

from __future__ import annotations

from collections.abc import Mapping

from diffusion_policy.families import groot_flat, groot_n1_5, lerobot_diffusion, robot_policy, vpt
from diffusion_policy.families.family import (
    ConstructionError,
    Family,
    FamilyError,
    Recognized,
    Shape,
    Shapes,
    Verdict,
)

# Names under which training code files a state_dict; what lies under them is opened, not renamed.
ENTRIES = ("state_dicts", "state_dict", "model", "ema_model")
FAMILIES = (*robot_policy.FAMILIES, vpt.FAMILY, groot_n1_5.FAMILY, *groot_flat.FAMILIES, lerobot_diffusion.FAMILY)

__all__ = ["FAMILIES", "ConstructionError", "Family", "FamilyError", "Recognized", "Shapes", "Verdict", "recognize"]


def recognize(tensors: Mapping[str, Shape]) -> Recognized | None:
    """The family of a set of named shapes, under whatever prefix it is stored; None if it is of no known family."""
    for family in FAMILIES:
        for marker, stripped in ((family.marker, ""), (family.marker.removeprefix(family.part), family.part)):
            prefixes = _prefixes(tensors, marker)
            if prefixes:
                return _recognized(family, tensors, prefixes[0], stripped)
    return None


def _prefixes(tensors: Mapping[str, Shape], marker: str) -> list[str]:
    """What stands before the marker, wherever the marker is a whole tail of a name; shortest first."""
    found = {name.removesuffix(marker) for name in tensors if name == marker or name.endswith("." + marker)}
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def _recognized(family: Family, tensors: Mapping[str, Shape], prefix: str, stripped: str) -> Recognized:
    """`stripped` is the family's own part of the name that is missing, or nothing."""
    own: dict[str, Shape] = {}
    for name, shape in tensors.items():
        if name.startswith(prefix):
            bare = name[len(prefix) :]
            own[stripped + bare if bare.partition(".")[0] in family.inside else bare] = shape
    return Recognized(family, prefix, stripped, family.settings(own), _sentence(family, prefix, stripped))


def _sentence(family: Family, prefix: str, stripped: str) -> str:
    if stripped:
        groups = "|".join(family.inside)
        return (
            f"{family.title}, but `{stripped}` is missing from the front of its names: it was stripped, or the file "
            f"holds the inner module alone. Put it back with rename: {{pattern: '^{prefix}({groups})\\b', "
            f"to: '{prefix}{stripped}\\1'}}, or load into the {stripped.rstrip('.')} module."
        )
    if not prefix:
        return f"{family.title}, under its own names."
    if set(prefix.rstrip(".").split(".")) <= set(ENTRIES):
        return f"{family.title}, in the file's entry `{prefix.rstrip('.')}`: open that entry, not the whole file."
    habit = family.prefixes.get(prefix)
    whose = f", the habit of {habit}" if habit else ""
    fix = f"rename: {{prefix: '{prefix}', to: ''}}"
    return f"{family.title}, under the prefix `{prefix}`{whose}: take it off with {fix}."
