"""Files of marked episodes, as saved by a dataset's page: the episodes, and the datasets that they belong to.

    {"delete": ["3", "5-8"], "datasets": [{"path": "a.zarr", "episodes": 12, "sha256": "..."}]}

``datasets`` may be absent in a file written by hand; if present, the marks apply only to these datasets.
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
# A file of marks is read whole; a million marks take 10 MB.
_MOST_BYTES = 50 * 2**20


def dataset_marks(sources: Sequence[ReplayBuffer]) -> list[dict[str, Any]]:
    """Returns a file of marks' entry on the datasets over which its episodes are numbered, as plain JSON.

    The hash covers the numbers and, if a conversion recorded their hashes, the frames, whatever the dataset is
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
    """Reads the words of a file of marks, each a number, a range or a hash of episodes.

    Args:
        path: path of the file.
        sources: the datasets that are edited, in order.
        must_say: whether a file that does not name its datasets is refused.

    Raises:
        EditError: the file is missing or invalid, or has no marks or those of other datasets.
    """
    expected = f'expected JSON such as {{"{DELETE}": ["3", "5-8"]}}, as saved by the page of view_dataset.py'
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise EditError(f"{path}: not a file of marks (it has more than {_MOST_BYTES >> 20} MB); {expected}")
        content = json.loads(path.read_text(encoding="utf-8"))
        words, named = content[DELETE], content.get(DATASETS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EditError(f"{path}: not a file of marks ({error!r}); {expected}") from error
    if not isinstance(words, list) or not all(isinstance(word, str | int) for word in words):
        raise EditError(
            f"{path}: not a file of marks ({DELETE} is not a list of numbers, ranges and hashes); {expected}"
        )
    if not words:
        raise EditError(f"{path}: no episode is marked in it")
    if named is not None or must_say:
        _check_datasets(path, named, sources)
    return [str(word) for word in words]


def _check_datasets(path: Path, named: Any, sources: Sequence[ReplayBuffer]) -> None:
    known = isinstance(named, list) and all(isinstance(entry, dict) and "sha256" in entry for entry in named)
    names = [str(entry.get("path", "a dataset")) for entry in named] if known else []
    here = [buffer.where for buffer in sources]
    again = f"recreate the page of these: {command('view_dataset', *here)}"
    if not known or not named:
        raise EditError(f"{path}: does not name the datasets of its marks ({DATASETS}); {again}")
    if len(named) != len(sources):
        raise EditError(
            f"{path}: its marks count over {', '.join(names)}; these are {', '.join(here)}; give all of those "
            f"in that order, or {again}"
        )
    for entry, name, mark in zip(named, names, dataset_marks(sources), strict=True):
        if entry["sha256"] != mark["sha256"]:
            raise EditError(
                f"{path}: its marks belong to {name} with sha256 {str(entry['sha256'])[:12]}; {mark['path']} holds "
                f"something else ({mark['sha256'][:12]}); {again}"
            )
