"""Evidence from closed-loop results, and which of the given checkpoints each belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion_policy.env_runner.document import ClosedLoop, differing, read_closed_loop
from diffusion_policy.env_runner.results import Comparison, ResultError, Share, compare, success_of
from diffusion_policy.run_folder.reading import RunFolder
from diffusion_policy.storage import file_sha256


@dataclass(frozen=True)
class ClosedLoopEvidence:
    """One result.

    Attributes:
        path: path of the document.
        found: its content.
        checkpoint: the evaluated file, identified by content; None if it is not among the given ones.
        among: the given checkpoints; if empty, the result's checkpoint is not identified.
    """

    path: Path
    found: ClosedLoop
    checkpoint: Path | None = None
    among: tuple[Path, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether it counts for the given checkpoints: it has at least one scene, of one of them."""
        return bool(self.found.results) and (self.checkpoint is not None or not self.among)

    @property
    def success(self) -> Share:
        """In how many scenes the task was done."""
        return success_of(self.found.results)

    @property
    def sha256(self) -> str:
        """SHA-256 of the checkpoint."""
        return str(self.found.about["checkpoint_sha256"])

    @property
    def of(self) -> str:
        """What it is a result of, in a word."""
        return Path(self.found.about["checkpoint"]).name if self.checkpoint is None else self.checkpoint.name


def look_at_closed_loop(paths: Sequence[Path], checkpoints: Sequence[Path] = ()) -> tuple[ClosedLoopEvidence, ...]:
    """Reads documents of ``evaluate_closed_loop.py --json`` and finds the checkpoint of each by its SHA-256.

    Args:
        paths: paths of the documents.
        checkpoints: the candidates, likeliest first; read only until all are identified.

    Raises:
        ResultError: a document cannot be read, or is not such a document.
        StorageError: a checkpoint cannot be read.
    """
    digests: dict[Path, str] = {}
    looked = []
    for path in paths:
        found = read_closed_loop(path)
        named = Path(found.about["checkpoint"]).name
        checkpoint = None
        for candidate in sorted(checkpoints, key=lambda candidate: candidate.name != named):
            digests[candidate] = digests.get(candidate) or file_sha256(candidate)
            if digests[candidate] == found.about["checkpoint_sha256"]:
                checkpoint = candidate
                break
        looked.append(ClosedLoopEvidence(path, found, checkpoint, tuple(checkpoints)))
    return tuple(looked)


def decisive(looked: Sequence[ClosedLoopEvidence], deployable: Path | None = None) -> list[ClosedLoopEvidence]:
    """Returns the results of the checkpoint to deploy, those with the most scenes first.

    If it was not rolled out, returns those of the checkpoint that succeeds most surely; empty if there is none.
    """
    counting = [evidence for evidence in looked if evidence.counts]
    chosen = [evidence for evidence in counting if evidence.checkpoint and evidence.checkpoint == deployable]
    if counting and not chosen:
        best = max(counting, key=lambda evidence: evidence.success.interval)
        chosen = [evidence for evidence in counting if evidence.sha256 == best.sha256]
    return sorted(chosen, key=lambda evidence: -evidence.success.of)


def compared(first: ClosedLoopEvidence, second: ClosedLoopEvidence) -> Comparison | None:
    """Compares two results on their common scenes; None if there are none, or simulators or referees differ."""
    if differing(first.found.about, second.found.about, scenes_only=True):
        return None
    try:
        return compare(first.found.results, second.found.results)
    except ResultError:
        return None


def comparison_sentence(found: Comparison, first: str, second: str) -> str:
    """Returns a sentence: ``B does 4 more of 40 than A (only B 8, only A 4; McNemar's exact test: p = 0.39)``."""
    scenes = found.both + found.only_first + found.only_second + found.neither
    more = found.only_second - found.only_first
    comparison = (
        f"{abs(more)} {'fewer' if more < 0 else 'more'} of {scenes} than" if more else f"as many of {scenes} as"
    )
    return (
        f"{second} does {comparison} {first} (only {second} {found.only_second}, only {first} {found.only_first}; "
        f"McNemar's exact test: p = {found.p_value:.2g})"
    )


def closed_loop_of(
    paths: Sequence[Path], checkpoint: Path | None, run: RunFolder | None
) -> tuple[ClosedLoopEvidence, ...]:
    """Returns closed-loop results: the given ones or those in the run's folder, for the given checkpoint or the run's.

    Raises:
        ResultError: a document cannot be read, or is something else.
    """
    paths = paths or (run.closed_loop if run is not None else ())
    at_hand = [checkpoint] if checkpoint is not None else []
    if run is not None and not at_hand:
        at_hand = sorted(run.checkpoints.values(), key=lambda path: path != run.deployable)
    return look_at_closed_loop(paths, at_hand)
