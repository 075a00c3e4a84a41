"""What a closed-loop result shows, and which of the checkpoints at hand it is of."""

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
        path: of the document.
        found: what it holds.
        checkpoint: the file that it was made of, by content; None if that is none of those at hand.
        among: the checkpoints at hand; without any, nothing is known of which it is of.
    """

    path: Path
    found: ClosedLoop
    checkpoint: Path | None = None
    among: tuple[Path, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether it says something of the checkpoints at hand: at least one scene, of one of them."""
        return bool(self.found.results) and (self.checkpoint is not None or not self.among)

    @property
    def success(self) -> Share:
        """In how many scenes the task was done."""
        return success_of(self.found.results)

    @property
    def sha256(self) -> str:
        """Of the checkpoint."""
        return str(self.found.about["checkpoint_sha256"])

    @property
    def of(self) -> str:
        """What it is of, in a word."""
        return Path(self.found.about["checkpoint"]).name if self.checkpoint is None else self.checkpoint.name


def look_at_closed_loop(paths: Sequence[Path], checkpoints: Sequence[Path] = ()) -> tuple[ClosedLoopEvidence, ...]:
    """Read documents of ``evaluate_closed_loop.py --json``, and find the checkpoint of each by its SHA-256.

    Args:
        paths: of the documents.
        checkpoints: at hand, the likeliest first; read only as far as it takes.

    Raises:
        ResultError: a document cannot be read, or is something else.
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
    """The results of the checkpoint to deploy, those of most scenes first.

    Where that one was not rolled out, those of the one that was and succeeds most surely; empty without any.
    """
    counting = [evidence for evidence in looked if evidence.counts]
    chosen = [evidence for evidence in counting if evidence.checkpoint and evidence.checkpoint == deployable]
    if counting and not chosen:
        best = max(counting, key=lambda evidence: evidence.success.interval)
        chosen = [evidence for evidence in counting if evidence.sha256 == best.sha256]
    return sorted(chosen, key=lambda evidence: -evidence.success.of)


def compared(first: ClosedLoopEvidence, second: ClosedLoopEvidence) -> Comparison | None:
    """Two results on the scenes that both met; None where these are none, or of other simulators or referees."""
    if differing(first.found.about, second.found.about, scenes_only=True):
        return None
    try:
        return compare(first.found.results, second.found.results)
    except ResultError:
        return None


def comparison_sentence(found: Comparison, first: str, second: str) -> str:
    """``B does 4 more of 40 than A (only B 8, only A 4; McNemar's exact test: p = 0.39)``."""
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
    """Closed-loop results, those named or else those in the run's folder, of the checkpoint or else the run's.

    Raises:
        ResultError: a document cannot be read, or is something else.
    """
    paths = paths or (run.closed_loop if run is not None else ())
    at_hand = [checkpoint] if checkpoint is not None else []
    if run is not None and not at_hand:
        at_hand = sorted(run.checkpoints.values(), key=lambda path: path != run.deployable)
    return look_at_closed_loop(paths, at_hand)
