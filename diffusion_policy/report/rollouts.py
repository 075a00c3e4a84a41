"""Comparison of runs by closed-loop results that were made alike, on their common scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffusion_policy.diagnose.closed_loop_evidence import (
    ClosedLoopEvidence,
    closed_loop_of,
    compared,
    comparison_sentence,
    decisive,
)
from diffusion_policy.env_runner.document import conditions, differing
from diffusion_policy.env_runner.results import SceneResult, Share, success_of
from diffusion_policy.report import ReportError
from diffusion_policy.run_folder.reading import RunFolder


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of a run.

    Attributes:
        looked: every result of the run.
        chosen: the result by which it is compared with other runs; None if its checkpoints were not rolled out.
        results: the scenes that count; if runs were rolled out alike, those that they have in common.
    """

    looked: tuple[ClosedLoopEvidence, ...] = ()
    chosen: ClosedLoopEvidence | None = None
    results: tuple[SceneResult, ...] = field(default=(), repr=False)

    @property
    def share(self) -> Share | None:
        """The share of successes among the scenes that count; None without a scene."""
        return success_of(self.results) if self.results else None

    def to_json(self) -> dict[str, Any] | None:
        """Returns plain JSON; None if nothing was rolled out."""
        if self.chosen is None or self.share is None:
            return None
        document, checkpoint = str(self.chosen.path), str(self.chosen.checkpoint)
        made = {"conditions": conditions(self.chosen.found), **self.share.to_json()}
        return {"document": document, "checkpoint": checkpoint, **made}


NOT_ROLLED_OUT = Rollouts()


def rollouts_of(runs: Sequence[RunFolder], documents: Sequence[Path] = ()) -> list[Rollouts]:
    """Returns, for each run, the results in its folder and the given ones that belong to its checkpoints.

    A run with several results is compared by one that was made under the same conditions as most other runs'.

    Raises:
        ReportError: a document does not belong to any checkpoint of these runs.
        ResultError: a document cannot be read, or is not a result.
    """
    looked = []
    for run in runs:
        paths = {path.resolve(): path for path in (*run.closed_loop, *documents)}
        at_hand = closed_loop_of(list(paths.values()), None, run) if paths else ()
        looked.append(tuple(e for e in at_hand if e.checkpoint is not None or e.path in run.closed_loop))
    for path in documents:
        if not any(e.path.resolve() == path.resolve() and e.checkpoint for evidence in looked for e in evidence):
            raise ReportError(f"{path}: it belongs to no checkpoint of these runs; evaluate theirs, or leave it out")
    choices = [decisive(evidence, run.deployable) for run, evidence in zip(runs, looked, strict=True)]
    chosen = [max(own, key=lambda one: _shared_by(one, choices), default=None) for own in choices]
    made = [
        Rollouts(evidence, one, () if one is None else tuple(one.found.results))
        for evidence, one in zip(looked, chosen, strict=True)
    ]
    return _on_shared_scenes(made) if alike(made) else made


def _shared_by(one: ClosedLoopEvidence, choices: Sequence[Sequence[ClosedLoopEvidence]]) -> int:
    """Returns how many runs have a result that was made under the same conditions as this one."""
    return sum(any(not differing(one.found.about, other.found.about) for other in own) for own in choices)


def alike(made: Sequence[Rollouts]) -> bool:
    """Whether the rolled-out runs share their conditions and at least one scene."""
    chosen = [one.chosen for one in made if one.chosen is not None]
    return not unlike(made) and (not chosen or bool(_shared_seeds(made)))


def unlike(made: Sequence[Rollouts]) -> list[str]:
    """Returns the conditions that the rolled-out runs do not share."""
    chosen = [one.chosen for one in made if one.chosen is not None]
    differences = {key for other in chosen[1:] for key in differing(chosen[0].found.about, other.found.about)}
    return sorted(differences)


def _shared_seeds(made: Sequence[Rollouts]) -> set[int]:
    met = [{result.seed for result in one.results} for one in made if one.chosen is not None]
    return set.intersection(*met) if met else set()


def _on_shared_scenes(made: Sequence[Rollouts]) -> list[Rollouts]:
    seeds = _shared_seeds(made)
    return [replace(one, results=tuple(r for r in one.results if r.seed in seeds)) for one in made]


def pairs(runs: Sequence[tuple[str, Rollouts]], first: int | None) -> tuple[list[str], list[dict[str, Any]]]:
    """Compares every other run with one of them, in words and as plain JSON.

    Args:
        runs: names and rollouts of the runs.
        first: index of the run to compare with; if None or not rolled out, the first run that was.
    """
    rolled = {number: one.chosen for number, (_, one) in enumerate(runs) if one.chosen is not None}
    first = first if first in rolled else next(iter(rolled), None)
    text: list[str] = []
    plain: list[dict[str, Any]] = []
    for number, other in rolled.items():
        if first is None or number == first:
            continue
        ours, theirs = runs[first][0], runs[number][0]
        comparison, differ = compared(rolled[first], other), differing(rolled[first].found.about, other.found.about)
        if comparison is None:
            why = f"another {', '.join(differ)}" if differ else "no common scene"
            text.append(f"{theirs} and {ours} were not rolled out in the same scenes ({why}): they are not compared")
        else:
            but = f"; not made alike (another {', '.join(differ)})" if differ else ""
            text.append(f"in the same scenes {comparison_sentence(comparison, ours, theirs)}{but}")
        counts = {"p_value": None} if comparison is None else comparison.to_json()
        plain.append({"first": ours, "second": theirs, "differ": differ, **counts})
    return text, plain
