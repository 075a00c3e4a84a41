"""Which episodes a policy was trained on and which were held out: identified by content, not by path.

A dataset may change after training: episodes are appended, or its recordings are converted again at another size, in
another order, or together with others. So a checkpoint stores an identity of every episode, and an evaluation compares
these with the episodes at hand. An identity has up to three parts:

    sha256      of the converted episode, as the converter recorded it: equal means the same numbers and frames
    recording   SHA-256 of the recording's data.pkl with the steps that were kept: survives a conversion with other
                settings; episodes of one recording are the same where their steps overlap
    motion of the measured positions, and of the clock if there is one: always available, also for other programs' files

Legend: E episodes of a dataset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.joined_datasets import JoinedDatasets
from diffusion_policy.dataset.replay_buffer import ACTION_KEY, POSE_KEY, TIMESTAMP_KEY, DatasetError, ReplayBuffer
from diffusion_policy.storage import sha256

Status = Literal["held out", "trained", "unseen", "unknown"]
STATUSES: tuple[Status, ...] = get_args(Status)
# Status of an episode.
WORDS: dict[Status, str] = {
    "held out": "held out of training",
    "trained": "trained on",
    "unseen": "not in the training set",
    "unknown": "may have been trained on",
}
# Entry of a checkpoint's provenance.
SPLIT = "split"
VERSION = 1
GROUPS = ("trained", "held_out", "unused", "earlier")
# Checkpoints adapted in succession hold the provenance of their sources nested inside each other.
_DEEPEST = 16


@dataclass(frozen=True)
class EpisodeIdentity:
    """Identifies an episode; see the module's docstring.

    Attributes:
        name: as recorded, for people.
        motion: SHA-256 of its measured positions.
        clock: SHA-256 of its timestamps; None if the dataset has none.
        sha256: of the converted episode; None if the dataset does not record it.
        recording: SHA-256 of the recording; None if the dataset does not record it.
        steps: of the recording, (first, exclusive end).
    """

    name: str
    motion: str
    clock: str | None = None
    sha256: str | None = None
    recording: str | None = None
    steps: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        """The most exact of its hashes."""
        return self.sha256 or self.motion

    def is_same(self, other: EpisodeIdentity) -> bool:
        """Whether two episodes hold some of the same recorded steps, as far as the hashes show."""
        if self.sha256 is not None and self.sha256 == other.sha256:
            return True
        if self.recording is not None and self.recording == other.recording:
            return _overlap(self.steps, other.steps)
        return self.motion == other.motion and (None in (self.clock, other.clock) or self.clock == other.clock)

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {**asdict(self), "steps": None if self.steps is None else list(self.steps)}

    @classmethod
    def from_plain(cls, plain: Any, where: str) -> EpisodeIdentity:
        """Inverse of `to_plain`; DatasetError for anything else, since checkpoints are untrusted."""
        try:
            steps = plain["steps"]
            result = cls(
                plain["name"],
                plain["motion"],
                plain["clock"],
                plain["sha256"],
                plain["recording"],
                None if steps is None else (int(steps[0]), int(steps[1])),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DatasetError(f"{where}: an episode of its split is invalid ({error!r})") from error
        texts = (result.name, result.motion, result.clock or "", result.sha256 or "", result.recording or "")
        if not all(isinstance(text, str) for text in texts):
            raise DatasetError(f"{where}: the name and hashes of an episode in its split must be strings")
        return result


def _overlap(first: tuple[int, int] | None, second: tuple[int, int] | None) -> bool:
    """Whether two ranges of steps overlap; an unknown range stands for the whole recording."""
    return first is None or second is None or (first[0] < second[1] and second[0] < first[1])


def episode_identities(buffer: ReplayBuffer) -> tuple[EpisodeIdentity, ...]:
    """(E,) identities of the episodes of one dataset; its numbers are read, its frames are not."""
    cuts = buffer.episode_ends[:-1]
    motions = np.split(_positions(buffer), cuts)
    clocks = np.split(_milliseconds(buffer), cuts) if TIMESTAMP_KEY in buffer else [None] * len(motions)
    return tuple(
        EpisodeIdentity(motion=_digest(motion), clock=None if clock is None else _digest(clock), **entry)
        for motion, clock, entry in zip(motions, clocks, _described(buffer), strict=True)
    )


def _digest(rows: NDArray[Any]) -> str:
    return sha256(f"{rows.shape}".encode(), np.ascontiguousarray(rows).data).hex()


def identities_of(zarr_path: Any) -> tuple[tuple[EpisodeIdentity, ...], ...]:
    """Identities of the episodes of each dataset that a config names, one or several."""
    return tuple(episode_identities(buffer) for buffer in JoinedDatasets(zarr_path).buffers)


def _milliseconds(buffer: ReplayBuffer) -> NDArray[np.float64]:
    """(N,) timestamps, rounded, since other programs store them at other precisions."""
    return np.asarray(buffer[TIMESTAMP_KEY][:], dtype=np.float64).round(3)


def _positions(buffer: ReplayBuffer) -> NDArray[np.float32]:
    """(N, 3) measured positions or, in datasets without them, everything that says where the arm is."""
    key = POSE_KEY if POSE_KEY in buffer else ACTION_KEY
    names = buffer.names(key)
    rows = buffer.columns(key, "xyz") if set("xyz") <= set(names) else np.asarray(buffer[key][:])
    return np.ascontiguousarray(rows, dtype=np.float32)


def _described(buffer: ReplayBuffer) -> list[dict[str, Any]]:
    """(E,) what the converter recorded about each episode, under the names of `EpisodeIdentity`."""
    episodes = buffer.root.attrs.get("episodes")
    if not isinstance(episodes, list) or len(episodes) != buffer.n_episodes:
        return [{"name": f"episode_{index:04d}"} for index in range(buffer.n_episodes)]
    recordings = _recordings(buffer)
    result = []
    for index, episode in enumerate(episodes):
        entry = episode if isinstance(episode, Mapping) else {}
        name = str(entry.get("name", f"episode_{index:04d}"))
        steps = entry.get("steps")
        ranged = isinstance(steps, list) and len(steps) == 2 and all(isinstance(step, int) for step in steps)
        result.append(
            {
                "name": name,
                "sha256": _text(entry.get("sha256")),
                "recording": _text(entry.get("recording")) or recordings.get(name),
                "steps": (steps[0], steps[1]) if ranged and isinstance(steps, list) else None,
            }
        )
    return result


def _recordings(buffer: ReplayBuffer) -> dict[str, str]:
    """Hashes of recordings by name, from the conversion's ledger; names that occur twice are left out."""
    conversion = buffer.root.attrs.get("conversion")
    entries = conversion.get("episodes") if isinstance(conversion, Mapping) else None
    rows = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    kept = [entry for entry in rows if entry.get("reason") is None]
    counts = Counter(str(entry.get("name")) for entry in kept)
    named = {str(entry.get("name")): _text(entry.get("recording")) for entry in kept}
    return {name: recording for name, recording in named.items() if recording and counts[name] == 1}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


class _Index:
    """Identities with fast lookup."""

    def __init__(self, identities: Iterable[EpisodeIdentity]):
        self._by_hash: dict[str, list[EpisodeIdentity]] = {}
        for identity in identities:
            for key in {identity.sha256, identity.recording, identity.motion} - {None}:
                self._by_hash.setdefault(str(key), []).append(identity)

    def __contains__(self, identity: EpisodeIdentity) -> bool:
        keys = {identity.sha256, identity.recording, identity.motion} - {None}
        return any(identity.is_same(other) for key in keys for other in self._by_hash.get(str(key), ()))


@dataclass(frozen=True)
class Split:
    """The episodes of a training run, and of the runs whose weights it started from.

    Attributes:
        trained: episodes that the policy was trained on.
        held_out: episodes that were measured and never trained on.
        unused: other episodes of the training set (left out by a filter, or beyond `max_train_episodes`).
        earlier: episodes that the weights had been trained on before.
        earlier_known: whether these are all; False if the weights came from a checkpoint that does not say.
    """

    trained: tuple[EpisodeIdentity, ...]
    held_out: tuple[EpisodeIdentity, ...]
    unused: tuple[EpisodeIdentity, ...] = ()
    earlier: tuple[EpisodeIdentity, ...] = ()
    earlier_known: bool = True
    _trained: _Index = field(init=False, repr=False, compare=False)
    _held_out: _Index = field(init=False, repr=False, compare=False)
    _unused: _Index = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_trained", _Index((*self.trained, *self.earlier)))
        object.__setattr__(self, "_held_out", _Index(self.held_out))
        object.__setattr__(self, "_unused", _Index(self.unused))

    @property
    def ever_trained(self) -> tuple[EpisodeIdentity, ...]:
        """Episodes that these weights were trained on, now or before."""
        return (*self.trained, *self.earlier)

    def knows(self, identity: EpisodeIdentity) -> bool:
        """Whether the episode was used in training or left out of it."""
        return any(identity in group for group in (self._trained, self._held_out, self._unused))

    def statuses(self, datasets: Sequence[Sequence[EpisodeIdentity]]) -> list[Status]:
        """The status of each episode of one or several datasets, in order.

        An episode that matches none is "unseen" if it could have been recognized: if its recording and those of the
        training are known, or if others of its dataset are recognized by the same hashes. Else it is "unknown".
        """
        return [status for identities in datasets for status in self._of_one(identities)]

    def _of_one(self, identities: Sequence[EpisodeIdentity]) -> list[Status]:
        statuses: list[Status] = [
            "trained" if e in self._trained else "held out" if e in self._held_out else "unknown" for e in identities
        ]
        recorded = all(e.recording is not None for e in self.ever_trained)
        same_form = any(self.knows(e) for e in identities)
        return [
            "unseen" if status == "unknown" and (same_form or (recorded and e.recording is not None)) else status
            for status, e in zip(statuses, identities, strict=True)
        ]

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        plain = {name: [identity.to_plain() for identity in getattr(self, name)] for name in GROUPS}
        return {"version": VERSION, **plain, "earlier_known": self.earlier_known}


def split_of(provenance: Mapping[str, Any] | None, where: str) -> Split | None:
    """The split stored in a checkpoint, its own or that of the checkpoint it was adapted from; None if there is none.

    Raises:
        DatasetError: what is stored is not a split; names `where`.
    """
    for _ in range(_DEEPEST):
        if not isinstance(provenance, Mapping):
            return None
        if SPLIT in provenance:
            return _from_plain(provenance[SPLIT], where)
        provenance = _inside(provenance, "adaptation", "source", "provenance")
    return None


def _inside(mapping: Any, *names: str) -> Any:
    for name in names:
        mapping = mapping.get(name) if isinstance(mapping, Mapping) else None
    return mapping


def _from_plain(plain: Any, where: str) -> Split:
    version = plain.get("version") if isinstance(plain, Mapping) else None
    if version != VERSION:
        raise DatasetError(f"{where}: its split is of version {version!r}; this program reads version {VERSION}")
    groups = {}
    for name in GROUPS:
        entries = plain.get(name)
        if not isinstance(entries, (list, tuple)):
            raise DatasetError(f"{where}: its split lists no {name} episodes")
        groups[name] = tuple(EpisodeIdentity.from_plain(entry, where) for entry in entries)
    known = plain.get("earlier_known") is True
    return Split(groups["trained"], groups["held_out"], groups["unused"], groups["earlier"], earlier_known=known)


def read_status(value: Any) -> Status:
    """A status from a file; "unknown" if the file says something else, or nothing."""
    return next((status for status in STATUSES if status == value), "unknown")


def words_of(statuses: Sequence[Status]) -> str:
    """Counts of statuses in words: "2 held out of training, 1 may have been trained on"."""
    counts = Counter(statuses)
    return ", ".join(f"{counts[status]} {WORDS[status]}" for status in STATUSES if counts[status])
