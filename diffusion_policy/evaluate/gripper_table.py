"""Verdicts on many logs: as a table, as JSON, as a page, and as a comparison of two groups of logs."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from diffusion_policy.evaluate.gripper import GripperReport, Unreadable, judge_file
from diffusion_policy.evaluate.intervals import difference_interval, probability_improved, wilson_interval
from diffusion_policy.evaluate.writing import write_json, write_report
from diffusion_policy.run_log import RunLogError

Entry = GripperReport | Unreadable

# Below this probability a difference between groups is not called one.
_SURE = 0.95
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Gripper verdicts</title><style>:root{{color-scheme:light dark}}
body{{font:15px/1.5 system-ui;margin:2em;max-width:70em}} table{{border-collapse:collapse}} .learned{{font-weight:600}}
td,th{{text-align:left;padding:.3em .8em;border-bottom:1px solid #8886;vertical-align:top}}</style>
<h1>Gripper verdicts</h1><p>{summary}</p><table><thead><tr><th>log</th><th>steps</th><th>verdict</th><th>evidence</th>
<th>firm</th><th>naive check</th></tr></thead><tbody>{rows}</tbody></table></html>
"""


@dataclass(frozen=True)
class GroupComparison:
    """Shares of learned logs in two groups; logs without a gripper command, unreadable or too short do not count."""

    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def probability(self) -> float:
        """Posterior probability that the gripper improved; see ``intervals.probability_improved``."""
        return probability_improved(self.before, self.after)

    def to_json(self) -> dict[str, Any]:
        """Counts (learned, judged) and intervals, plain JSON."""
        return {
            "before": {"learned": self.before[0], "judged": self.before[1], "interval": wilson_interval(*self.before)},
            "after": {"learned": self.after[0], "judged": self.after[1], "interval": wilson_interval(*self.after)},
            "difference_interval": difference_interval(self.before, self.after),
            "probability_improved": self.probability,
        }

    def sentence(self) -> str:
        """The comparison in words."""
        low, high = difference_interval(self.before, self.after)
        probability = self.probability
        if probability >= _SURE:
            finding = "the gripper improved"
        elif probability <= 1 - _SURE:
            finding = "the gripper got worse"
        else:
            finding = "no difference can be claimed"
        return (
            f"{finding}: learned in {self.before[0]} of {self.before[1]} logs before, {self.after[0]} of "
            f"{self.after[1]} after; difference {low:+.0%} to {high:+.0%}, probability of improvement {probability:.1%}"
        )


@dataclass(frozen=True)
class Validation:
    """Verdicts on all logs asked for, and the comparison with a group before, if one was given."""

    entries: tuple[Entry, ...]
    before: tuple[Entry, ...] = ()

    @property
    def exit_status(self) -> int:
        """0 every log learned, 1 one is not, 2 one (of either group) could not be read."""
        if any(isinstance(entry, Unreadable) for entry in (*self.entries, *self.before)):
            return 2
        return 0 if all(isinstance(entry, GripperReport) and entry.learned for entry in self.entries) else 1

    @property
    def comparison(self) -> GroupComparison | None:
        """Of ``entries`` against ``before``; None without the latter."""
        return GroupComparison(_count(self.before), _count(self.entries)) if self.before else None

    def summary(self) -> str:
        """One sentence: shares with their interval, then the comparison."""
        learned, judged = _count(self.entries)
        low, high = wilson_interval(learned, judged)
        naive = sum(isinstance(e, GripperReport) and e.naive["verdict"] == "learned" for e in self.entries)
        share = f" ({learned / judged:.0%}, 95 % interval {low:.0%}-{high:.0%})" if judged else ""
        text = f"learned: {learned} of {judged} logs with a gripper command{share}; the naive check would say {naive}"
        return f"{text}. {self.comparison.sentence()}" if self.comparison else text

    def table(self) -> Group:
        """A rich renderable: one row a log, then the summary."""
        table = Table(box=None, pad_edge=False)
        for heading in ("log", "steps", "verdict", "evidence", "firm", "naive check"):
            table.add_column(heading, justify="right" if heading in ("steps", "firm") else "left", overflow="fold")
        for entry in self.entries:
            colour = "green" if isinstance(entry, GripperReport) and entry.learned else "red"
            name, steps, verdict, evidence, firm, naive = map(escape, _cells(entry))
            table.add_row(name, steps, f"[{colour}]{verdict}[/]", evidence, firm, naive)
        return Group(table, Text(self.summary()))

    def write(self, json_path: Path | None = None, html_path: Path | None = None) -> None:
        """Write the verdicts as JSON (a list of objects) and as one page; EvaluateError if the disk refuses."""
        if json_path is not None:
            write_json(json_path, [entry.to_json() for entry in self.entries])
        if html_path is not None:
            rows = "".join(_html_row(entry) for entry in self.entries)
            write_report(html_path, _PAGE.format(summary=html.escape(self.summary()), rows=rows))


def validate_logs(paths: Sequence[Path], before: Sequence[Path] = ()) -> Validation:
    """Judge logs, or all ``inference_log_*.json`` of folders; ``before`` is a second group to compare with.

    Raises:
        RunLogError: a folder holds no log. A log that cannot be read is an entry, not an error.
    """
    return Validation(_judge_all(paths), _judge_all(before))


def _judge_all(paths: Iterable[Path]) -> tuple[Entry, ...]:
    return tuple(judge_file(log) for path in paths for log in _expand(path))


def _expand(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    logs = sorted(path.glob("inference_log_*.json"))
    if not logs:
        raise RunLogError(f"{path}: no inference_log_*.json in this folder")
    return logs


def _count(entries: Iterable[Entry]) -> tuple[int, int]:
    judged = [
        entry
        for entry in entries
        if isinstance(entry, GripperReport) and entry.verdict not in ("no gripper command", "too short")
    ]
    return sum(entry.learned for entry in judged), len(judged)


def _cells(entry: Entry) -> tuple[str, str, str, str, str, str]:
    if isinstance(entry, Unreadable):
        return Path(entry.file).name, "-", "unreadable", entry.reason, "-", "-"
    firm = "-" if entry.firmness is None else f"{entry.firmness:.0%}"
    naive = f"{entry.naive['verdict']} ({entry.naive['distinct_values']} values, {entry.naive['changes']} changes)"
    return entry.file, str(entry.steps), entry.verdict, entry.reason, firm, naive


def _html_row(entry: Entry) -> str:
    marked = ' class="learned"' if isinstance(entry, GripperReport) and entry.learned else ""
    return f"<tr{marked}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(entry)) + "</tr>"
