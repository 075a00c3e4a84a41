"""Runs beside each other: settings that differ, curves over each other, gripper scores with intervals, which to deploy.

The choice is made by what training measured with the deployed sampler, in the order of `checkpoint.best`: success in
closed loop, gripper events found (F1) in held-out episodes, then position error, then validation loss. What is not
defined in one of the runs ranks none of them: the next figure does. It is only called a difference if the Wilson
intervals of the share that decides do not overlap; runs that were measured on other episodes are never ranked, F1 of
other tolerances and success in other simulators are not compared.
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

from diffusion_policy.intervals import Interval
from diffusion_policy.report import ReportError
from diffusion_policy.report import figures as plot
from diffusion_policy.report.findings import Finding
from diffusion_policy.report.page import Section, grid, place, render, table
from diffusion_policy.report.run_folder import Curve, RunFolder, open_run
from diffusion_policy.report.run_score import HEAD, RunScore, cell, score_run, share_cell
from diffusion_policy.report.sections import findings_section

# Settings that differ between any two runs and say nothing about them.
INCIDENTAL = ("hydra.", "logging.", "training.resume", "multi_run.")
# Measured on the same episodes, if these settings agree.
HOW_MANY = ("sampler.max_episodes",)
MEASURED_ON = ("task.dataset.zarr_path", "task.dataset.val_ratio", "task.dataset.seed", *HOW_MANY)
# Place of F1 among the figures that rank.
F1_RANK = 1
CURVES = {
    "Training loss (logarithmic)": ("train_loss", "loss"),
    "Validation loss": ("val_loss", "loss"),
    "Position error of held-out episodes": ("val_position_error_mm", "mm"),
}


@dataclass(frozen=True)
class Comparison:
    """Two or more runs."""

    scores: tuple[RunScore, ...]
    differences: Mapping[str, tuple[Any, ...]]

    @property
    def comparable(self) -> bool:
        """Whether all were measured on the same episodes."""
        return not self.measured_otherwise

    @property
    def measured_otherwise(self) -> tuple[str, ...]:
        """What makes the measured episodes different ones.

        Runs tell their held-out episodes by content; where one is older and does not, the settings count that chose
        them.
        """
        digests = {score.run.first.get("held_out_sha256") for score in self.scores}
        told = MEASURED_ON if None in digests else HOW_MANY
        differing = tuple(name for name in told if name in self.differences)
        return differing if None in digests or len(digests) == 1 else ("the held-out episodes", *differing)

    @property
    def candidates(self) -> list[RunScore]:
        """Runs that may be deployed and were measured; none if they were measured on different episodes."""
        if not self.comparable:
            return []
        return [score for score in self.scores if score.measured and score.may_be_deployed]

    @property
    def ruled_out(self) -> list[tuple[RunScore, Finding]]:
        """Runs with a checkpoint of which report and doctor say that they must not be deployed, and why."""
        causes = [(score, score.cause) for score in self.scores if score.run.deployable is not None]
        return [(score, cause) for score, cause in causes if cause is not None and not score.may_be_deployed]

    @property
    def same_tolerance(self) -> bool:
        """Whether the F1 of all candidates are of one measure."""
        return len({score.tolerance for score in self.candidates if score.f1 is not None}) <= 1

    def rank(self, score: RunScore) -> tuple[float, ...]:
        """Of a candidate, by the figures that all candidates have; smaller is better."""
        columns = list(zip(*(other.figures() for other in self.candidates), strict=True))
        ranking = [all(value is not None for value in column) for column in columns]
        ranking[0] = ranking[0] and not any(name.startswith("task.env_runner.") for name in self.differences)
        ranking[F1_RANK] = ranking[F1_RANK] and self.same_tolerance
        return tuple(
            value for value, ranks in zip(score.figures(), ranking, strict=True) if ranks and value is not None
        )

    @property
    def best(self) -> RunScore | None:
        """The run to deploy; None if no figure was measured of all that could be deployed, on the same episodes."""
        candidates = self.candidates
        if not candidates or not self.rank(candidates[0]):
            return None
        return min(candidates, key=self.rank)

    @property
    def second(self) -> RunScore | None:
        """The next best of the candidates; None if there is no other."""
        others = [score for score in self.candidates if score is not self.best]
        return min(others, key=self.rank) if others else None

    @property
    def sure(self) -> bool:
        """Whether the best run is better by more than chance, and without trouble of its own."""
        best, second = self.best, self.second
        return best is not None and second is not None and self._apart(best, second) and self.trouble is None

    def _apart(self, best: RunScore, second: RunScore) -> bool:
        """Whether the intervals of the share that decides do not overlap: of scenes done, else of events found."""
        if best.success is not None and second.success is not None and best.success != second.success:
            return _apart(best.success_interval, second.success_interval)
        return self.same_tolerance and _apart(best.interval, second.interval)

    @property
    def trouble(self) -> Finding | None:
        """What is wrong with the best run."""
        return None if self.best is None else self.best.cause

    def advice(self) -> str:
        """Which to deploy and why, in one sentence."""
        if not self.comparable:
            names = ", ".join(self.measured_otherwise)
            return (
                f"They were measured on different episodes ({names} differ): evaluate their checkpoints on one dataset."
            )
        best, second, troubled = self.best, self.second, self.trouble
        if best is None:
            if self.ruled_out and not self.candidates:
                score, cause = self.ruled_out[0]
                return f"None can be chosen: do not deploy {score.run.name}: {cause.evidence}."
            if len(self.candidates) > 1:
                return "None can be chosen: no figure was measured of all of them."
            return "None can be chosen: no run has both a checkpoint and a measurement on held-out episodes."
        doubt = f"; but first look at this: {troubled.evidence}" if troubled is not None else ""
        if second is None:
            why = "it is the only run with a checkpoint and a measurement on held-out episodes"
            if self.ruled_out:
                score, cause = self.ruled_out[0]
                why = f"it is the only one that may be; do not deploy {score.run.name}: {cause.evidence}"
            return f"Deploy {best.run.deployable}: {why}{doubt}."
        sure = "clearly" if self._apart(best, second) else _unsure(best, second)
        other = "" if self.same_tolerance else "; their gripper F1 are of different tolerances and were not compared"
        if self.rank(best) == self.rank(second):
            why = "no figure that both have tells it from the next one"
            return f"Deploy {best.run.deployable}: {why}{other}{doubt}."
        return f"Deploy {best.run.deployable}: {self._reason(best, second)}, {sure}{other}{doubt}."

    def _reason(self, best: RunScore, second: RunScore) -> str:
        """The first figure of the ranking in which they differ."""
        pairs = zip(self.rank(best), self.rank(second), strict=True)
        first = next(ours for ours, theirs in pairs if ours != theirs)
        if best.success is not None and first == -best.success:
            return f"it succeeds most often in closed loop ({best.success:.0%}, next {share_cell(second.success)})"
        if best.f1 is not None and first == -best.f1 and self.same_tolerance:
            within = "" if best.tolerance is None else f" within {best.tolerance}"
            return f"it finds the gripper's events best (F1{within} {best.f1:.2f}, next {cell(second.f1)})"
        if first == best.position_mm:
            return f"its positions are nearest ({best.position_mm:.3g} mm, next {cell(second.position_mm)})"
        return f"its validation loss is lowest ({cell(best.val_loss)}, next {cell(second.val_loss)})"

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
        findings = findings_section({score.run.name: score.findings for score in self.scores})
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


def _with_interval(run: RunFolder) -> tuple[Curve, Curve, Curve]:
    return (
        run.curve("val_gripper_recall"),
        run.curve("val_gripper_recall_low"),
        run.curve("val_gripper_recall_high"),
    )


def _unsure(best: RunScore, second: RunScore) -> str:
    if best.success is None and (best.interval is None or second.interval is None):
        return "though no gripper event was measured that could tell them apart"
    return "though the intervals overlap: this may be chance"


def _apart(first: Interval | None, second: Interval | None) -> bool:
    return first is not None and second is not None and (first[0] > second[1] or second[0] > first[1])
