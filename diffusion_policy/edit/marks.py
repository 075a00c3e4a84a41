"""Files of marked episodes, as the page of a dataset saves them: which episodes, and of which datasets.

    {"delete": ["3", "5-8"], "datasets": [{"path": "a.zarr", "episodes": 12, "sha256": "..."}]}

``datasets`` may be absent in a file that a person wrote; where it exists, the marks count for these datasets alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_policy.commands import command
from diffusion_policy.dataset.content_hash import content_sha256
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.dataset.split import episode_identities
from diffusion_policy.edit import EditError

DELETE, DATASETS = "delete", "datasets"
# A file of marks is read whole; one of a million marks has 10 MB.
_MOST_BYTES = 50 * 2**20


def dataset_marks(sources: Sequence[ReplayBuffer]) -> list[dict[str, Any]]:
    """What a file of marks says of the datasets that its episodes are counted over, as plain JSON.

    The hash is of the numbers, and where a conversion recorded them of the frames too, whatever the dataset is
    called.
    """
    return [
        {
            "path": buffer.where,
            "episodes": buffer.n_episodes,
            "sha256": content_sha256([identity.key for identity in episode_identities(buffer)]),
        }
        for buffer in sources
    ]


def read_marks(path: Path, sources: Sequence[ReplayBuffer], *, must_say: bool = False) -> list[str]:
    """The words of a file of marks, each a number, a range or a hash of episodes.

    Args:
        path: of the file.
        sources: the datasets that are edited, in order.
        must_say: whether a file that does not say which datasets it is about is refused.

    Raises:
        EditError: no such file, something else in it, no mark, or marks of other datasets.
    """
    expected = f'expected JSON such as {{"{DELETE}": ["3", "5-8"]}}, as the page of view_dataset.py saves it'
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise EditError(f"{path}: no marks (it has more than {_MOST_BYTES >> 20} MB); {expected}")
        content = json.loads(path.read_text(encoding="utf-8"))
        words, named = content[DELETE], content.get(DATASETS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EditError(f"{path}: no marks ({error!r}); {expected}") from error
    if not isinstance(words, list) or not all(isinstance(word, str | int) for word in words):
        raise EditError(f"{path}: no marks ({DELETE} is no list of numbers, ranges and hashes); {expected}")
    if not words:
        raise EditError(f"{path}: no episode is marked in it")
    if named is not None or must_say:
        _check_datasets(path, named, sources)
    return [str(word) for word in words]


def _check_datasets(path: Path, named: Any, sources: Sequence[ReplayBuffer]) -> None:
    known = isinstance(named, list) and all(isinstance(entry, dict) and "sha256" in entry for entry in named)
    names = [str(entry.get("path", "a dataset")) for entry in named] if known else []
    here = [buffer.where for buffer in sources]
    again = f"make the page of these again: {command('view_dataset', *here)}"
    if not known or not named:
        raise EditError(f"{path}: does not say which datasets its marks are of ({DATASETS}); {again}")
    if len(named) != len(sources):
        raise EditError(
            f"{path}: its marks count over {', '.join(names)}; these are {', '.join(here)}; give all of those, in "
            f"that order, or {again}"
        )
    for entry, name, mark in zip(named, names, dataset_marks(sources), strict=True):
        if entry["sha256"] != mark["sha256"]:
            raise EditError(
                f"{path}: its marks are of {name} with sha256 {str(entry['sha256'])[:12]}; {mark['path']} holds "
                f"something else ({mark['sha256'][:12]}); {again}"
            )
