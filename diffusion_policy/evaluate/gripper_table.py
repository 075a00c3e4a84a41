"""Verdicts on many logs: as a table, as JSON, and as a comparison of two groups of logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_policy.evaluate.gripper import GripperReport, Unreadable, judge_file
from diffusion_policy.evaluate.verdicts import OPENS_AND_CLOSES, Verdict
from diffusion_policy.gripper_scale import DeclaredScales
from diffusion_policy.intervals import difference_interval, probability_improved, wilson_interval
from diffusion_policy.run_log import RunLogError
from diffusion_policy.storage import write_json
from diffusion_policy.tables import Column, Printable, Table, Text, as_texts

Entry = GripperReport | Unreadable

# A difference between groups below this probability is not claimed.
_SURE = 0.95
# Verdicts that say nothing about when a policy would close its gripper.
UNJUDGED: tuple[Verdict, ...] = ("no gripper command", "unknown scale", "every answer refused", "too short")
# What no verdict on commands can show.
_LIMIT = "commands show when the gripper would close; only a rollout shows whether it then holds anything"
_COLUMNS = (
    Column("log", min_width=15),
    Column("steps", right=True, no_wrap=True),
    Column("verdict", max_width=22),
    Column("firm", right=True, no_wrap=True),
    Column("evidence"),
)


@dataclass(frozen=True)
class GroupComparison:
    """Shares of logs whose gripper opens and closes, in two groups; logs that cannot be judged do not count."""

    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def measured(self) -> bool:
        """Whether both groups hold a log that counts."""
        return bool(self.before[1] and self.after[1])

    @property
    def probability(self) -> float | None:
        """Posterior probability of an improvement, see ``intervals.probability_improved``; None if unmeasured."""
        return probability_improved(self.before, self.after) if self.measured else None

    def to_json(self) -> dict[str, Any]:
        """Returns counts and intervals as plain JSON; "learned" is the former name of "opens and closes"."""
        return {
            "before": _share(self.before),
            "after": _share(self.after),
            "difference_interval": difference_interval(self.before, self.after) if self.measured else None,
            "probability_improved": self.probability,
            "finding": self.finding,
        }

    @property
    def finding(self) -> str:
        """The claim that can be made at 95 %."""
        if self.probability is not None and self.probability >= _SURE:
            return "the gripper improved"
        if self.probability is not None and self.probability <= 1 - _SURE:
            return "the gripper got worse"
        return "no difference can be claimed"

    def sentence(self) -> str:
        """Returns the comparison in words."""
        low, high = difference_interval(self.before, self.after)
        counts = (
            f"it opens and closes in {self.before[0]} of {self.before[1]} logs before, {self.after[0]} of "
            f"{self.after[1]} after"
        )
        if self.probability is None:
            return f"{self.finding}: {counts}; a group in which no log counts has no share"
        return (
            f"{self.finding}: {counts}; difference {low:+.0%} to {high:+.0%}, probability of improvement "
            f"{self.probability:.1%}"
        )


def short_name(file: str) -> str:
    """Returns what distinguishes a log from others: its date and time."""
    return Path(file).name.removeprefix("inference_log_").removesuffix(".json")


def _share(counts: tuple[int, int]) -> dict[str, Any]:
    learned, judged = counts
    return {"learned": learned, "judged": judged, "interval": wilson_interval(learned, judged) if judged else None}


@dataclass(frozen=True)
class Validation:
    """Verdicts on all given logs, and the comparison with an earlier group, if given."""

    entries: tuple[Entry, ...]
    before: tuple[Entry, ...] = ()

    @property
    def exit_status(self) -> int:
        """0 if the gripper opens and closes in every log, 1 if not, 2 if a log (of either group) could not be read."""
        if any(isinstance(entry, Unreadable) for entry in (*self.entries, *self.before)):
            return 2
        return 0 if all(isinstance(entry, GripperReport) and entry.opens_and_closes for entry in self.entries) else 1

    @property
    def comparison(self) -> GroupComparison | None:
        """The comparison of ``entries`` with ``before``; None without the latter."""
        return GroupComparison(_count(self.before), _count(self.entries)) if self.before else None

    def sentences(self) -> list[str]:
        """Returns shares with their interval, the other verdicts, and the comparison, one sentence each."""
        count, judged = _count(self.entries)
        low, high = wilson_interval(count, judged)
        reports = [entry for entry in self.entries if isinstance(entry, GripperReport)]
        naive = sum(report.naive["verdict"] == "learned" for report in reports if report.verdict not in UNJUDGED)
        share = f" ({count / judged:.0%}, 95 % interval {low:.0%}-{high:.0%})" if judged else ""
        text = [
            f"{OPENS_AND_CLOSES}: {count} of {judged} logs with a gripper command{share}; the naive check would call "
            f"{naive} of them learned"
        ]
        others = Counter("unreadable" if isinstance(e, Unreadable) else e.verdict for e in self.entries)
        del others[OPENS_AND_CLOSES]
        if others:
            text.append("the others: " + ", ".join(f"{count} {verdict}" for verdict, count in others.most_common()))
        widths = [report.width_verdict for report in reports if report.width_verdict is not None]
        if widths:
            count = widths.count(OPENS_AND_CLOSES)
            text.append(f"{len(widths)} command a gripper width: by its own thresholds {count} of them open and close")
        if judged:
            text.append(_LIMIT)
        return [*text, self.comparison.sentence()] if self.comparison else text

    def summary(self) -> str:
        """Returns the sentences as one text."""
        return ". ".join(self.sentences())

    def table(self) -> list[Printable]:
        """Returns output for the terminal: one row per log, then the summary."""
        table = Table(*_COLUMNS)
        for entry in self.entries:
            name, steps, verdict, firm, evidence = _cells(entry)
            good = isinstance(entry, GripperReport) and entry.opens_and_closes
            table.add(name, steps, Text(verdict, style="green" if good else "red"), firm, evidence)
        return [table, *as_texts(self.sentences())]

    def write(self, path: Path) -> None:
        """Writes the verdicts as JSON; raises StorageError if the disk refuses.

        A list with one object per log or, with a group to compare with, an object with both lists (``logs``,
        ``before``) and the ``comparison``.
        """
        logs = [entry.to_json() for entry in self.entries]
        before = [entry.to_json() for entry in self.before]
        comparison = self.comparison
        compared = {"logs": logs, "before": before, "comparison": comparison and comparison.to_json()}
        write_json(path, compared if comparison else logs)


def validate_logs(
    paths: Sequence[Path], before: Sequence[Path] = (), declared: DeclaredScales | None = None
) -> Validation:
    """Judges logs, or all logs in folders (see ``find_logs``).

    Args:
        paths: paths of logs and folders.
        before: a second group to compare with.
        declared: the scale of the grippers in all of them, if declared.

    Raises:
        RunLogError: a folder holds no log. A log that cannot be read is an entry, not an error.
    """
    return Validation(_judge_all(paths, declared), _judge_all(before, declared))


def _judge_all(paths: Iterable[Path], declared: DeclaredScales | None) -> tuple[Entry, ...]:
    return tuple(judge_file(log, declared) for log in find_logs(paths))


def find_logs(paths: Iterable[Path]) -> list[Path]:
    """Returns the logs at these paths: each a file, a run folder of this server, or a folder that holds such.

    Raises:
        RunLogError: a folder without a log.
    """
    return [log for path in paths for log in _logs_at(path)]


def _logs_at(path: Path) -> list[Path]:
    if not path.is_dir() or (path / "steps.jsonl").is_file():
        return [path]
    logs = sorted([*path.glob("inference_log_*.json"), *(file.parent for file in path.glob("*/steps.jsonl"))])
    if not logs:
        raise RunLogError(f"{path}: no log in this folder; expected inference_log_*.json, or folders with steps.jsonl")
    return logs


def _count(entries: Iterable[Entry]) -> tuple[int, int]:
    judged = [entry for entry in entries if isinstance(entry, GripperReport) and entry.verdict not in UNJUDGED]
    return sum(entry.opens_and_closes for entry in judged), len(judged)


def _cells(entry: Entry) -> tuple[str, str, str, str, str]:
    if isinstance(entry, Unreadable):
        return short_name(entry.file), "-", "unreadable", "-", entry.reason
    firm = "-" if entry.firmness is None else f"{entry.firmness:.0%}"
    return short_name(entry.file), str(entry.steps), entry.verdict, firm, entry.reason
