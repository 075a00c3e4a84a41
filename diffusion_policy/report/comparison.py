"""Runs beside each other: settings that differ, curves over each other, gripper scores with intervals, which to deploy.

The choice is made by what was measured on held-out episodes with the deployed sampler, in this order: gripper events
found (F1), then position error, then validation loss. It is only called a difference if the Wilson intervals of the
share of events found do not overlap; runs that were measured on other episodes are never ranked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape as escape_markup
from rich.table import Table
from rich.text import Text

from diffusion_policy.intervals import wilson_interval
from diffusion_policy.report import ReportError
from diffusion_policy.report import figures as plot
from diffusion_policy.report.findings import Finding, diagnose
from diffusion_policy.report.page import Section, grid, place, render, table
from diffusion_policy.report.run_folder import Curve, RunFolder, open_run
from diffusion_policy.report.sections import findings_section
from diffusion_policy.report.training_findings import run_findings

# Settings that differ between any two runs and say nothing about them.
INCIDENTAL = ("hydra.", "logging.", "training.resume", "multi_run.")
# Measured on the same episodes, if these settings agree.
MEASURED_ON = ("task.dataset.zarr_path", "task.dataset.val_ratio", "task.dataset.seed", "sampler.max_episodes")
CURVES = {
    "Training loss (logarithmic)": ("train_loss", "loss"),
    "Validation loss": ("val_loss", "loss"),
    "Position error of held-out episodes": ("val_position_error_mm", "mm"),
}


@dataclass(frozen=True)
class RunScore:
    """What a run came to, at its best measured epoch; None where it was not measured.

    Attributes:
        run: the run.
        update: of the best epoch.
        f1: of gripper events.
        found, recorded, false_flips: gripper events of held-out episodes.
        position_mm: mean error.
        val_loss: at that epoch, or the lowest one.
    """

    run: RunFolder
    update: int | None
    f1: float | None
    found: int
    recorded: int
    false_flips: int
    position_mm: float | None
    val_loss: float | None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the share of events found."""
        return wilson_interval(self.found, self.recorded)

    @property
    def rank(self) -> tuple[float, float, float]:
        """Smaller is better; what was not measured is worst."""
        worst = float("inf")
        return (
            worst if self.f1 is None else -self.f1,
            worst if self.position_mm is None else self.position_mm,
            worst if self.val_loss is None else self.val_loss,
        )

    def cells(self) -> list[str]:
        """The row of the table."""
        low, high = self.interval
        found = f"{self.found} of {self.recorded} ({low:.0%}-{high:.0%})" if self.recorded else "-"
        return [
            self.run.name,
            str(self.run.updates),
            _cell(self.f1),
            found,
            str(self.false_flips) if self.recorded else "-",
            _cell(self.position_mm),
            _cell(self.val_loss),
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "run": str(self.run.path),
            "updates": self.run.updates,
            "best_update": self.update,
            "gripper_f1": self.f1,
            "events_found": self.found,
            "events_recorded": self.recorded,
            "interval": list(self.interval),
            "false_flips": self.false_flips,
            "position_error_mm": self.position_mm,
            "val_loss": self.val_loss,
            "checkpoint": None if self.run.deployable is None else str(self.run.deployable),
        }


HEAD = ("run", "updates", "F1", "events found (95 % interval)", "false flips", "position (mm)", "validation loss")


@dataclass(frozen=True)
class Comparison:
    """Two or more runs."""

    scores: tuple[RunScore, ...]
    differences: Mapping[str, tuple[Any, ...]]

    @property
    def comparable(self) -> bool:
        """Whether all were measured on the same episodes."""
        return not any(name in self.differences for name in MEASURED_ON)

    @property
    def best(self) -> RunScore | None:
        """The run to deploy; None if they were measured on different episodes, or none was measured."""
        measured = [score for score in self.scores if score.f1 is not None or score.val_loss is not None]
        deployable = [score for score in measured if score.run.deployable is not None]
        return min(deployable, key=lambda score: score.rank) if deployable and self.comparable else None

    @property
    def second(self) -> RunScore:
        """The next best of the runs that are not `best`."""
        return min((score for score in self.scores if score is not self.best), key=lambda score: score.rank)

    @property
    def sure(self) -> bool:
        """Whether the best run is better by more than chance, and without trouble of its own."""
        best = self.best
        return best is not None and _apart(best.interval, self.second.interval) and self.trouble is None

    @property
    def trouble(self) -> Finding | None:
        """What is wrong with the best run."""
        return None if self.best is None else diagnose(run_findings(self.best.run)).cause

    def advice(self) -> str:
        """Which to deploy and why, in one sentence."""
        if not self.comparable:
            names = ", ".join(name for name in MEASURED_ON if name in self.differences)
            return (
                f"They were measured on different episodes ({names} differ): evaluate their checkpoints on one dataset."
            )
        best = self.best
        if best is None:
            return "None can be chosen: no run has both a checkpoint and a measurement on held-out episodes."
        second, troubled = self.second, self.trouble
        sure = (
            "clearly" if _apart(best.interval, second.interval) else "though the intervals overlap: this may be chance"
        )
        why = _reason(best, second)
        doubt = f"; but first look at this: {troubled.evidence}" if troubled is not None else ""
        return f"Deploy {best.run.deployable}: {why}, {sure}{doubt}."

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "runs": [score.to_json() for score in self.scores],
            "differences": {name: list(values) for name, values in self.differences.items()},
            "deploy": None if self.best is None else str(self.best.run.deployable),
            "advice": self.advice(),
        }

    def table(self) -> Group:
        """For the terminal: scores, settings that differ, advice."""
        scores = Table(*HEAD, box=None, pad_edge=False)
        for score in self.scores:
            scores.add_row(*map(escape_markup, score.cells()), style="bold" if score is self.best else "")
        settings = Table("setting", *(score.run.name for score in self.scores), box=None, pad_edge=False)
        for name, values in self.differences.items():
            settings.add_row(escape_markup(name), *(escape_markup(str(value)) for value in values))
        blocks: list[RenderableType] = [
            scores,
            Text(),
            settings if self.differences else Text("no setting differs"),
            Text(),
        ]
        return Group(*blocks, Text(self.advice(), "bold"))

    def page(self) -> str:
        """The same as one page, with curves over each other and the findings of each run."""
        marks = ["best" if score is self.best else "" for score in self.scores]
        body = table(HEAD, [score.cells() for score in self.scores], "at the best measured epoch of each run", marks)
        rows = [[name, *map(str, values)] for name, values in self.differences.items()]
        settings = table(("setting", *(s.run.name for s in self.scores)), rows) if rows else "<p>no setting differs</p>"
        drawn, places = {}, []
        for title, (key, unit) in CURVES.items():
            lines = {score.run.name: score.run.curve(key) for score in self.scores if score.run.curve(key)}
            if lines:
                drawn[f"compare-{key}"] = plot.curves(title, lines, unit, logarithmic=key == "train_loss")
                ends = ", ".join(f"{name} {curve[-1][1]:.3g}" for name, curve in lines.items())
                places.append(place(f"compare-{key}", f"{title.lower()} at the end: {ends}"))
        recalls = {s.run.name: _with_interval(s.run) for s in self.scores if s.run.curve("val_gripper_recall")}
        if recalls:
            drawn["compare-recall"] = plot.shares("Gripper events found, 95 % intervals", recalls)
            ends = ", ".join(f"{name} {curve[-1][1]:.2f}" for name, (curve, _, _) in recalls.items())
            places.append(place("compare-recall", f"share of recorded gripper events found at the end: {ends}"))
        findings = findings_section({score.run.name: run_findings(score.run) for score in self.scores})
        level = "good" if self.sure else "doubt"
        lead = f'<div class="verdict {level}" role="status"><p><strong>{escape(self.advice())}</strong></p></div>'
        sections = [
            Section("scores", "Scores", body),
            Section("settings", "Settings that differ", settings),
            Section("curves", "Curves over each other", grid(*places), drawn),
            findings,
        ]
        return render(f"Comparison of {len(self.scores)} runs", lead, sections)


def compare(paths: Sequence[Path]) -> Comparison:
    """Compare run folders.

    Raises:
        ReportError: fewer than two, one named twice, or a folder that is no run.
    """
    if len({path.resolve() for path in paths}) < 2 or len({path.resolve() for path in paths}) < len(paths):
        raise ReportError(f"{len(paths)} runs given; expected two or more different ones")
    runs = [open_run(path) for path in paths]
    flat = [run.flat_config() for run in runs]
    names = sorted({name for settings in flat for name in settings if not name.startswith(INCIDENTAL)})
    values = {name: tuple(settings.get(name, "-") for settings in flat) for name in names}
    differing = {name: found for name, found in values.items() if any(value != found[0] for value in found)}
    return Comparison(tuple(score_run(run) for run in runs), differing)


def score_run(run: RunFolder) -> RunScore:
    """A run at its best measured epoch: highest F1, then lowest position error, then lowest validation loss."""
    measured = [line for line in run.metrics if line.get("val_gripper_f1") is not None]
    lowest = min((value for _, value in run.curve("val_loss")), default=None)
    if not measured:
        return RunScore(run, None, None, 0, 0, 0, run.last("val_position_error_mm"), lowest)
    worst = float("inf")
    line = min(measured, key=lambda m: (-m["val_gripper_f1"], m.get("val_position_error_mm") or worst))
    return RunScore(
        run,
        int(line["global_step"]),
        float(line["val_gripper_f1"]),
        int(line.get("val_gripper_events_found") or 0),
        int(line.get("val_gripper_events_recorded") or 0),
        int(line.get("val_gripper_false_flips") or 0),
        line.get("val_position_error_mm"),
        line.get("val_loss") or lowest,
    )


def _with_interval(run: RunFolder) -> tuple[Curve, Curve, Curve]:
    return (
        run.curve("val_gripper_recall"),
        run.curve("val_gripper_recall_low"),
        run.curve("val_gripper_recall_high"),
    )


def _reason(best: RunScore, second: RunScore) -> str:
    if best.f1 != second.f1 and best.f1 is not None:
        return f"it finds the gripper's events best (F1 {best.f1:.2f}, next {_cell(second.f1)})"
    if best.position_mm != second.position_mm and best.position_mm is not None:
        return f"its positions are nearest ({best.position_mm:.3g} mm, next {_cell(second.position_mm)})"
    return f"its validation loss is lowest ({_cell(best.val_loss)}, next {_cell(second.val_loss)})"


def _apart(first: tuple[float, float], second: tuple[float, float]) -> bool:
    return first[0] > second[1] or second[0] > first[1]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
