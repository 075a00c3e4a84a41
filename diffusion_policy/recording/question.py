"""A missing mapping, printed as text with blanks for what only the recordings' owner knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from diffusion_policy.recording.mapped import MappedArrays
from diffusion_policy.recording.mapping import (
    FLAG,
    UNDECIDED,
    MappingError,
    read_mapping,
    ready_mappings,
)
from diffusion_policy.spec import GRIPPER, POSE

Vectors = Mapping[str, tuple[str, ...] | int]
"""Features that are rows of numbers: the names of the numbers, or their count if they have no names."""
# Rows without names, by width: exclusive ends of the columns of a position and of the rotation after it; a gripper is
# last.
_POSE_WIDTHS = {6: (3, 6), 7: (3, 6), 8: (3, 7), 9: (3, 9), 10: (3, 9)}


def question(where: str, content: Mapping[str, Any], vectors: Vectors, what: str) -> MappingError:
    """Returns the error that prints a mapping to fill in.

    Args:
        where: the dataset.
        content: the mapping, with UNDECIDED for blanks.
        vectors: the features available.
        what: the reason, such as "the names of features do not define their numbers".
    """
    kept = {key: value for key, value in content.items() if value}
    printed = yaml.safe_dump(kept, sort_keys=False, default_flow_style=None, width=100)
    there = "; ".join(
        f"{name}: {', '.join(feature) if not isinstance(feature, int) else f'{feature} numbers'}"
        for name, feature in vectors.items()
    )
    fitting = [name for name in ready_mappings() if _fits(name, vectors)]
    known = f"{', '.join(fitting)} reads columns that are here" if fitting else f"one of {', '.join(ready_mappings())}"
    return MappingError(
        f"{where}: {what} ({there}). Declare it with {FLAG} FILE, where FILE is this text with an answer for each "
        f"{UNDECIDED!r} (docs/data.md), or with {FLAG} NAME for a known robot ({known}):\n\n{printed}"
    )


def _fits(name: str, vectors: Vectors) -> bool:
    try:
        MappedArrays.of(read_mapping(name), vectors, name)
    except MappingError:
        return False
    return True


def guess(vectors: Vectors, candidates: Sequence[str], word: str) -> dict[str, Any]:
    """Guesses the parts of the likeliest feature, with blanks for what its names do not define.

    Args:
        vectors: the features available.
        candidates: features that are preferred.
        word: a word that the name of any other feature must contain.
    """
    likely = [name for name in candidates if name in vectors] or [name for name in vectors if word in name]
    return guess_parts(likely[0], vectors[likely[0]]) if likely else {}


def guess_parts(name: str, feature: tuple[str, ...] | int) -> dict[str, Any]:
    """Guesses the parts of one feature, with blanks for what its names do not define."""
    columns: list[str | int] = list(range(feature)) if isinstance(feature, int) else list(feature)
    grippers = [column for column in columns if isinstance(column, str) and GRIPPER in column.lower()]
    rest = [column for column in columns if column not in grippers]
    parts: dict[str, Any] = {}
    position, turn = _pose_columns(rest)
    if position:
        parts["position"] = {"feature": name, "columns": position, "unit": UNDECIDED}
    if turn:
        parts["rotation"] = {"feature": name, "columns": turn, "as": UNDECIDED}
    joints = [column for column in rest if column not in (*position, *turn)]
    if joints:
        parts["joints"] = {"feature": name, "columns": joints, "unit": UNDECIDED}
    if len(grippers) == 1:
        parts["gripper"] = {"feature": name, "columns": grippers, "scale": UNDECIDED}
    elif grippers:
        parts["joints"] = {"feature": name, "columns": columns, "unit": UNDECIDED}
    return parts


def guess_pose(name: str, width: int, *, is_quaternion: bool) -> dict[str, Any]:
    """Guesses the parts of rows without names, in the order that most recorders of poses use.

    Args:
        name: name of the feature.
        width: numbers in a row.
        is_quaternion: for seven numbers, whether the last four have norm 1.
    """
    columns = list(range(width))
    if width not in _POSE_WIDTHS:
        return {"other": {"feature": name, "columns": columns, "unit": UNDECIDED}}
    first, last = (3, 7) if is_quaternion and width == 7 else _POSE_WIDTHS[width]
    parts: dict[str, Any] = {
        "position": {"feature": name, "columns": columns[:first], "unit": UNDECIDED},
        "rotation": {"feature": name, "columns": columns[first:last], "as": UNDECIDED},
    }
    if width > last:
        parts["gripper"] = {"feature": name, "columns": columns[last:], "scale": UNDECIDED}
    return parts


def _pose_columns(columns: list[str | int]) -> tuple[list[str | int], list[str | int]]:
    """Returns the columns named like a position and those named like a rotation."""
    position: list[str | int] = [column for column in columns if column in POSE[:3]]
    if len(position) != len(POSE[:3]):
        return [], []
    for names in ({"rx", "ry", "rz"}, {"roll", "pitch", "yaw"}, set(POSE[3:])):
        turn: list[str | int] = [column for column in columns if column in names]
        if len(turn) == len(names):
            return position, turn
    return position, []
