"""What recordings hold besides numbers: tasks, success, interventions. A dataset keeps it per episode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from diffusion_policy.dataset.content_hash import EPISODES
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.moved import former_names

# Keys of an episode's description in the dataset's attribute, and of the ledger of a conversion.
TASKS, SUCCESS, INTERVENTIONS = "tasks", "success", "interventions"


@dataclass(frozen=True)
class EpisodeMetadata:
    """What a recording holds besides its numbers.

    Attributes:
        tasks: descriptions of the tasks, in the order in which they were done.
        success: whether it succeeded; None if not recorded.
        interventions: steps at which a person drove instead of a policy, as [start, exclusive end]; None if the
            recording has no such flag.
    """

    tasks: tuple[str, ...] = ()
    success: bool | None = None
    interventions: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> EpisodeMetadata:
        """The inverse of `as_json`; other entries are ignored, and values of the wrong type count as missing."""
        tasks, success, written = (entry.get(key) for key in (TASKS, SUCCESS, INTERVENTIONS))
        runs = [_run(value) for value in written] if isinstance(written, list | tuple) else [None]
        known = tuple(run for run in runs if run is not None)
        return cls(
            tasks=tuple(map(str, tasks)) if isinstance(tasks, list | tuple) else (),
            success=success if isinstance(success, bool) else None,
            interventions=known if len(known) == len(runs) else None,
        )

    @property
    def task(self) -> str:
        """All of its tasks as one text; empty without any."""
        return "; ".join(self.tasks)

    def as_json(self) -> dict[str, Any]:
        """All of it, as plain JSON."""
        entry: dict[str, Any] = {}
        if self.tasks:
            entry[TASKS] = list(self.tasks)
        if self.success is not None:
            entry[SUCCESS] = self.success
        if self.interventions is not None:
            entry[INTERVENTIONS] = [list(run) for run in self.interventions]
        return entry

    def within(self, start: int, end: int) -> EpisodeMetadata:
        """The metadata of steps `start` to `end`, interventions counted from `start`."""
        if self.interventions is None:
            return self
        inside = ((max(first, start) - start, min(last, end) - start) for first, last in self.interventions)
        return replace(self, interventions=tuple((first, last) for first, last in inside if first < last))


def episode_metadata(buffer: ReplayBuffer) -> tuple[EpisodeMetadata, ...]:
    """(E,) metadata of a dataset's episodes; empty for files of other programs."""
    described = buffer.root.attrs.get(EPISODES)
    if not isinstance(described, list) or len(described) != buffer.n_episodes:
        return (EpisodeMetadata(),) * buffer.n_episodes
    lengths = [end - start for start, end in pairwise([0, *buffer.episode_ends.tolist()])]
    entries = (
        EpisodeMetadata.from_json(entry) if isinstance(entry, Mapping) else EpisodeMetadata() for entry in described
    )
    return tuple(metadata.within(0, length) for metadata, length in zip(entries, lengths, strict=True))


def _run(value: Any) -> tuple[int, int] | None:
    """A run of steps in its stored form; None for anything else."""
    is_run = isinstance(value, list | tuple) and len(value) == 2 and all(type(step) is int for step in value)
    return (value[0], value[1]) if is_run else None


__getattr__ = former_names(__name__, {"Told": "EpisodeMetadata", "told_of": "episode_metadata"})
