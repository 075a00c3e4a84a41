"""Plans an edit: a list of the spans of steps that are kept, which each operation reduces further."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.dataset.content_hash import EPISODE_HASH, EPISODES
from diffusion_policy.dataset.replay_buffer import TIMESTAMP_KEY, ReplayBuffer
from diffusion_policy.dataset.verification import verify_content
from diffusion_policy.edit import EditError
from diffusion_policy.edit.marks import read_marks

# Enough digits of a hash to identify an episode.
_HASH = re.compile(r"[0-9a-f]{8,64}")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
DAMAGED = "damaged"
Stretch = tuple[int, int]


@dataclass(frozen=True)
class Episode:
    """One episode of a source.

    Attributes:
        number: number over all sources, from 0.
        source: the source's index.
        rows: its rows in the source, (first, exclusive end).
        described: the record of it by the source's conversion; empty if there is none.
    """

    number: int
    source: int
    rows: Stretch
    described: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its recorded name, for messages."""
        return str(self.described.get("name", f"episode {self.number}"))


@dataclass(frozen=True)
class Span:
    """Steps of an episode that are kept: (first, exclusive end), counted within the episode."""

    episode: Episode
    steps: Stretch

    @property
    def rows(self) -> slice:
        """The same steps, as rows of the source."""
        start = self.episode.rows[0]
        return slice(start + self.steps[0], start + self.steps[1])

    @property
    def is_complete(self) -> bool:
        """Whether it covers its whole episode."""
        return self.steps == (0, self.episode.rows[1] - self.episode.rows[0])


@dataclass(frozen=True)
class LeftOut:
    """Steps of an episode that are left out, with the reason."""

    episode: Episode
    steps: Stretch
    why: str


@dataclass(frozen=True)
class EditPlan:
    """What is kept, in order, and what is left out."""

    sources: tuple[ReplayBuffer, ...]
    kept: tuple[Span, ...]
    left_out: tuple[LeftOut, ...] = ()
    operations: tuple[str, ...] = ()

    @property
    def n_steps(self) -> int:
        """Number of steps that are kept."""
        return sum(span.steps[1] - span.steps[0] for span in self.kept)

    def without(self, gone: Iterable[LeftOut], kept: Iterable[Span], operation: str) -> EditPlan:
        """Returns the plan after an operation."""
        return replace(
            self,
            kept=tuple(kept),
            left_out=(*self.left_out, *gone),
            operations=(*self.operations, operation),
        )


def plan_of(sources: Sequence[ReplayBuffer]) -> EditPlan:
    """Returns a plan of all episodes of the datasets, one dataset after the other."""
    spans: list[Span] = []
    for index, buffer in enumerate(sources):
        recorded = buffer.root.attrs.get(EPISODES)
        described = recorded if isinstance(recorded, list) and len(recorded) == buffer.n_episodes else []
        ends = buffer.episode_ends.tolist()
        for i, rows in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            description = described[i] if described and isinstance(described[i], Mapping) else {}
            spans.append(Span(Episode(len(spans), index, rows, description), (0, rows[1] - rows[0])))
    return EditPlan(tuple(sources), tuple(spans))


def delete(plan: EditPlan, chosen: Sequence[str]) -> EditPlan:
    """Leaves out episodes.

    Args:
        plan: the plan so far.
        chosen: numbers ("3"), ranges ("5-8", both ends), hashes (8 digits or more), "damaged" (those with a file that
            is missing or truncated, or whose content differs from what their conversion recorded), or "@FILE" (see
            `marks`).

    Raises:
        EditError: a word is none of these, or fits no episode; or a file of marks cannot be read, or belongs
            to other datasets.
    """
    words = [word for chose in chosen for word in _words(chose, plan.sources)]
    reasons: dict[int, str] = {}
    for word in words:
        for number, why in (_damaged(plan) if word == DAMAGED else _named(plan, word)).items():
            reasons.setdefault(number, why)
    return _without(plan, reasons, f"delete {' '.join(chosen)}")


def delete_marked(plan: EditPlan, path: Path) -> EditPlan:
    """Leaves out the episodes that were marked on the page of these datasets.

    Raises:
        EditError: the file cannot be read, does not name its datasets, or belongs to others.
    """
    reasons: dict[int, str] = {}
    every = plan_of(plan.sources)  # some of them may already be left out
    for word in read_marks(path, plan.sources, must_say=True):
        reasons |= dict.fromkeys(_named(every, word), f"marked in {path.name}")
    return _without(plan, reasons, f"delete what is marked in {path}")


def _without(plan: EditPlan, reasons: Mapping[int, str], operation: str) -> EditPlan:
    """Returns the plan without these episodes, by number."""
    gone = [
        LeftOut(span.episode, span.steps, reasons[span.episode.number])
        for span in plan.kept
        if span.episode.number in reasons
    ]
    kept = [span for span in plan.kept if span.episode.number not in reasons]
    return plan.without(gone, kept, operation)


def split_at_gaps(plan: EditPlan, seconds: float) -> EditPlan:
    """Splits episodes where two steps are more than `seconds` apart; no step is left out.

    Raises:
        EditError: not a positive number of seconds, or a dataset without time stamps.
    """
    if not 0 < seconds < float("inf"):
        raise EditError(f"a gap of {seconds} s; expected more than 0")
    kept: list[Span] = []
    for span in plan.kept:
        times = _times(plan.sources[span.episode.source])[span.rows]
        cuts = (np.flatnonzero(np.diff(times) > seconds) + 1 + span.steps[0]).tolist()
        kept += [
            replace(span, steps=steps) for steps in zip([span.steps[0], *cuts], [*cuts, span.steps[1]], strict=True)
        ]
    return plan.without([], kept, f"split at gaps of more than {seconds:g} s")


def trim_idle(plan: EditPlan, seconds: float, idle: Callable[[ReplayBuffer], Sequence[Sequence[Stretch]]]) -> EditPlan:
    """Shortens idle stretches at both ends of every episode to at most `seconds`.

    Args:
        plan: the plan so far.
        seconds: duration of idle steps to keep.
        idle: returns, by episode of a dataset, the stretches of steps in which arm and gripper stand still.

    Raises:
        EditError: a negative number of seconds, or a dataset without time stamps.
    """
    if not 0 <= seconds < float("inf"):
        raise EditError(f"{seconds} s of idle steps to keep; expected 0 or more")
    stretches = [idle(buffer) for buffer in plan.sources]
    first = {span.episode.source: span.episode.number for span in reversed(plan_of(plan.sources).kept)}
    kept, gone = [], []
    for span in plan.kept:
        episode = span.episode
        still = stretches[episode.source][episode.number - first[episode.source]]
        start, end = _trimmed(span, still, _times(plan.sources[episode.source])[slice(*episode.rows)], seconds)
        kept.append(replace(span, steps=(start, end)))
        ends = ((span.steps[0], start), (end, span.steps[1]))
        gone += [LeftOut(episode, part, "stands still") for part in ends if part[0] < part[1]]
    return plan.without(gone, kept, f"trim standing still at the ends to {seconds:g} s")


def drop_short(plan: EditPlan, shortest: int) -> EditPlan:
    """Leaves out spans of fewer steps.

    Raises:
        EditError: `shortest` is less than one step.
    """
    if shortest < 1:
        raise EditError(f"the shortest length of an episode is {shortest} steps; expected 1 or more")
    gone = [span for span in plan.kept if span.steps[1] - span.steps[0] < shortest]
    kept = [span for span in plan.kept if span.steps[1] - span.steps[0] >= shortest]
    dropped = [LeftOut(span.episode, span.steps, f"fewer than {shortest} steps") for span in gone]
    return plan.without(dropped, kept, f"leave out episodes of fewer than {shortest} steps")


def _trimmed(span: Span, still: Sequence[Stretch], times: NDArray[np.float64], seconds: float) -> Stretch:
    start, end = span.steps
    for first, last in still:
        if first <= start < last:
            moves = min(last, end) - 1
            while start < moves and times[moves] - times[start] > seconds:
                start += 1
        if first < end <= last:
            stops = max(first, start)
            while end - 1 > stops and times[end - 1] - times[stops] > seconds:
                end -= 1
    return start, end


def _times(buffer: ReplayBuffer) -> NDArray[np.float64]:
    if TIMESTAMP_KEY not in buffer:
        raise EditError(f"{buffer.where}: has no data/{TIMESTAMP_KEY}, so seconds are unknown")
    return np.asarray(buffer.read(TIMESTAMP_KEY), dtype=np.float64)


def _words(chosen: str, sources: Sequence[ReplayBuffer]) -> list[str]:
    return read_marks(Path(chosen[1:]), sources) if chosen.startswith("@") else [chosen]


def _named(plan: EditPlan, word: str) -> dict[int, str]:
    """Returns the numbers of the episodes that a word names, with the reason."""
    numbers = [span.episode.number for span in plan.kept]
    as_range = _RANGE.fullmatch(word) if len(word) < 8 else None
    if as_range:
        first, last = int(as_range[1]), int(as_range[2] or as_range[1])
        episodes = [number for number in numbers if first <= number <= last]
    elif _HASH.fullmatch(word):
        described = ((s.episode.number, str(s.episode.described.get(EPISODE_HASH, ""))) for s in plan.kept)
        episodes = [number for number, digest in described if digest.startswith(word)]
    else:
        expected = f"a number, a range such as 5-8, a hash, {DAMAGED} or @FILE"
        raise EditError(f"{word!r} does not name episodes; expected {expected}")
    if not episodes:
        raise EditError(
            f"no episode {word} of {len(set(numbers))} ({min(numbers, default=0)} to {max(numbers, default=0)})"
        )
    return dict.fromkeys(episodes, f"chosen by {word}")


def _damaged(plan: EditPlan) -> dict[int, str]:
    """Returns episodes with missing or truncated files, or whose content differs from what was recorded."""
    result: dict[int, str] = {}
    for index, buffer in enumerate(plan.sources):
        faults = buffer.file_faults()
        episodes = [span.episode for span in plan.kept if span.episode.source == index]
        lost = [(fault.rows, f"{fault.file} {fault.what}") for fault in faults]
        lost += [(fault.rows, str(fault)) for fault in verify_content(buffer, faults).faults if fault.rows is not None]
        for (start, end), why in lost:
            for episode in episodes:
                if start < episode.rows[1] and episode.rows[0] < end:
                    result.setdefault(episode.number, why)
    return result
