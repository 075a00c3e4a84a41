"""Comparison of runs: differing settings, overlaid curves, gripper scores with intervals, and which run to deploy.

Runs are ranked by success in closed loop if they were rolled out alike; then by what training measured with the
deployed sampler, in the order of `checkpoint.best`: success in closed loop during training, gripper events found (F1)
in held-out episodes, position error, validation loss. A figure that is not defined for one of the runs ranks none of
them; the next one does. A difference counts only if McNemar's test on common scenes confirms it, or the Wilson
intervals of the deciding share do not overlap. Runs measured on different episodes are not ranked by those figures, and
F1 with different tolerances or success in different simulators is not compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from diffusion_policy.diagnose.closed_loop_evidence import compared
from diffusion_policy.diagnose.findings import Finding
from diffusion_policy.env_runner.results import Comparison as Paired
from diffusion_policy.intervals import Interval
from diffusion_policy.report import ReportError
from diffusion_policy.report import figures as plot
from diffusion_policy.report.page import Section, grid, paragraph, plot_placeholder, render, table
from diffusion_policy.report.rollouts import alike, pairs, rollouts_of
from diffusion_policy.report.run_score import HEAD, RunScore, cell, score_run, share_cell
from diffusion_policy.report.sections import findings_section
from diffusion_policy.run_folder.reading import Curve, RunFolder, open_run
from diffusion_policy.tables import Printable, Table, Text

# Settings that differ between any two runs and have no bearing on the comparison.
INCIDENTAL = ("hydra.", "logging.", "training.resume", "multi_run.")
# Runs were measured on the same episodes if these settings agree.
HOW_MANY = ("sampler.max_episodes",)
MEASURED_ON = ("task.dataset.zarr_path", "task.dataset.val_ratio", "task.dataset.seed", *HOW_MANY)
# Positions of these figures in the ranking.
ROLLOUT_RANK, SUCCESS_RANK, F1_RANK, POSITION_RANK = range(4)
# A difference of paired rollouts counts if its p-value is below this.
LEVEL = 0.05
CURVES = {
    "Training loss (logarithmic)": ("train_loss", "loss"),
    "Validation loss": ("val_loss", "loss"),
    "Position error of held-out episodes": ("val_position_error_mm", "mm"),
    "Joint error of held-out episodes": ("val_joint_error_rad", "rad"),
    "Joint error of held-out episodes (degrees)": ("val_joint_error_deg", "degrees"),
    "Joint error of held-out episodes (in the data's unit)": ("val_joint_error", ""),
}
SHARES = {
    "compare-success": (
        "test_success", "Success in closed loop during training, 95 % intervals", "scenes done during training",
    ),
    "compare-recall": (
        "val_gripper_recall", "Gripper events found, 95 % intervals", "share of recorded gripper events found",
    ),
}  # fmt: skip


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
        """Why the measured episodes differ, if they do.

        Runs identify their held-out episodes by content. If an older run does not, the settings that chose the episodes
        are compared.
        """
        digests = {score.run.first.get("held_out_sha256") for score in self.scores}
        compared_by = MEASURED_ON if None in digests else HOW_MANY
        differing = tuple(name for name in compared_by if name in self.differences)
        return differing if None in digests or len(digests) == 1 else ("the held-out episodes", *differing)

    @property
    def candidates(self) -> list[RunScore]:
        """Measured runs that may be deployed; none if they were measured on different episodes and scenes."""
        scored = [score for score in self.scores if score.measured and score.may_be_deployed]
        return scored if self.comparable or self.rolled_out_alike else []

    @property
    def rolled_out_alike(self) -> bool:
        """Whether all runs with a checkpoint were rolled out under the same conditions, in the same scenes."""
        made = [score.rollouts for score in self.scores if score.checkpoint is not None]
        return bool(made) and all(one.chosen for one in made) and alike(made)

    @property
    def ruled_out(self) -> list[tuple[RunScore, Finding]]:
        """Runs with a checkpoint that must not be deployed according to report and doctor, and why."""
        causes = [(score, score.cause) for score in self.scores if score.checkpoint is not None]
        return [(score, cause) for score, cause in causes if cause is not None and not score.may_be_deployed]

    @property
    def same_tolerance(self) -> bool:
        """Whether the F1 scores of all candidates have the same tolerance."""
        return len({score.tolerance for score in self.candidates if score.f1 is not None}) <= 1

    def _ranking(self) -> list[int]:
        """Returns the positions of the figures that rank the candidates: those that all have, measured alike."""
        columns = list(zip(*(other.figures() for other in self.candidates), strict=True))
        ranking = {number for number, column in enumerate(columns) if all(value is not None for value in column)}
        if not alike([other.rollouts for other in self.candidates]):
            ranking -= {ROLLOUT_RANK}
        if any(name.startswith("task.env_runner.") for name in self.differences):
            ranking -= {SUCCESS_RANK}
        if not self.same_tolerance:
            ranking -= {F1_RANK}
        if len({None if other.motion is None else other.motion[1] for other in self.candidates}) > 1:
            ranking -= {POSITION_RANK}  # millimeters cannot be compared with units of joints
        return sorted(ranking if self.comparable else ranking & {ROLLOUT_RANK})

    def rank(self, score: RunScore) -> tuple[float, ...]:
        """Returns a candidate's sort key, from the figures that all candidates have; smaller is better."""
        figures = score.figures()
        return tuple(value for value in (figures[number] for number in self._ranking()) if value is not None)

    def _decider(self, best: RunScore, second: RunScore) -> int | None:
        """Returns the position of the first ranking figure in which two runs differ; None if they are equal."""
        ours, theirs = best.figures(), second.figures()
        return next((number for number in self._ranking() if ours[number] != theirs[number]), None)

    @property
    def best(self) -> RunScore | None:
        """The run to deploy; None if no figure was measured for all deployable runs on the same episodes."""
        candidates = self.candidates
        if not candidates or not self.rank(candidates[0]):
            return None
        return min(candidates, key=self.rank)

    @property
    def second(self) -> RunScore | None:
        """The second-best candidate; None if there is no other."""
        others = [score for score in self.candidates if score is not self.best]
        return min(others, key=self.rank) if others else None

    @property
    def sure(self) -> bool:
        """Whether the best run is better by more than chance, and has no findings against it."""
        best, second = self.best, self.second
        return best is not None and second is not None and self._apart(best, second) and self.trouble is None

    def _apart(self, best: RunScore, second: RunScore) -> bool:
        """Whether the deciding share differs by more than chance.

        By McNemar's test on common scenes; otherwise if the intervals of scenes done, or events found, do not overlap.
        """
        decider, paired = self._decider(best, second), _paired(best, second)
        if decider == ROLLOUT_RANK and paired is not None:
            return paired.p_value < LEVEL
        if decider == SUCCESS_RANK:
            return _apart(best.success_interval, second.success_interval)
        return self.same_tolerance and _apart(best.interval, second.interval)

    def _unsure(self, best: RunScore, second: RunScore) -> str:
        """Returns why a difference may not be real."""
        if self._decider(best, second) == ROLLOUT_RANK:
            return "though this may be chance"
        if best.success is None and (best.interval is None or second.interval is None):
            return "though no gripper event was measured that could tell them apart"
        return "though the intervals overlap: this may be chance"

    @property
    def pairs(self) -> tuple[list[str], list[dict[str, Any]]]:
        """Returns the best run's rollouts compared with those of every other run, in words and as plain JSON."""
        first = next((number for number, score in enumerate(self.scores) if score is self.best), None)
        return pairs([(score.run.name, score.rollouts) for score in self.scores], first)

    @property
    def trouble(self) -> Finding | None:
        """The gravest finding about the best run."""
        return None if self.best is None else self.best.cause

    def advice(self) -> str:
        """Returns which run to take and why: recordings alone show which to roll out, closed loop which to deploy."""
        if not self.comparable and not self.candidates:
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
                return "None can be chosen: no figure was measured for all of them."
            return "None can be chosen: no run has both a checkpoint and a measurement on held-out episodes."
        doubt = f", but first look at this: {troubled.evidence}" if troubled is not None else ""
        if second is None:
            why = "it is the only run with a checkpoint and a measurement on held-out episodes"
            if self.ruled_out:
                score, cause = self.ruled_out[0]
                why = f"it is the only one that may be; do not deploy {score.run.name}: {cause.evidence}"
            return f"{_take(best)}: {why}{doubt}."
        sure = "clearly" if self._apart(best, second) else self._unsure(best, second)
        other = (
            "" if self.same_tolerance else "; their gripper F1 scores have different tolerances and were not compared"
        )
        if self._decider(best, second) is None:
            why = "no figure that both have separates it from the next one"
            return f"{_take(best)}: {why}{other}{doubt}."
        return f"{_take(best)}: {self._reason(best, second)}, {sure}{other}{doubt}."

    def _reason(self, best: RunScore, second: RunScore) -> str:
        """Returns a clause on the first ranking figure in which they differ."""
        decider, paired = self._decider(best, second), _paired(best, second)
        if decider == ROLLOUT_RANK and paired is not None:
            test = f"McNemar's exact test: p = {paired.p_value:.2g}"
            return f"it does the task most often ({best.rollouts.share}, next {second.rollouts.share}; {test})"
        if decider == SUCCESS_RANK:
            return (
                f"it succeeds most often in closed loop ({share_cell(best.success)}, next {share_cell(second.success)})"
            )
        if decider == F1_RANK:
            within = "" if best.tolerance is None else f" within {best.tolerance}"
            return f"it finds the gripper's events best (F1{within} {cell(best.f1)}, next {cell(second.f1)})"
        if decider == POSITION_RANK:
            if best.position_mm is None:
                return f"its joint error is lowest ({best.motion_cell()}, next {second.motion_cell()})"
            return f"its position error is lowest ({cell(best.position_mm)} mm, next {cell(second.position_mm)})"
        return f"its validation loss is lowest ({cell(best.val_loss)}, next {cell(second.val_loss)})"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "runs": [score.to_json() for score in self.scores],
            "differences": {name: list(values) for name, values in self.differences.items()},
            "paired": self.pairs[1],
            "deploy": None if self.best is None else str(self.best.checkpoint),
            "advice": self.advice(),
        }

    def _selected_columns(self) -> tuple[list[str], list[list[str]]]:
        """Returns head and rows of the scores, without success columns that are empty for all runs."""
        rows = [score.cells() for score in self.scores]
        shown = [n for n, title in enumerate(HEAD) if "success" not in title or any(row[n] != "-" for row in rows)]
        return [HEAD[n] for n in shown], [[row[n] for n in shown] for row in rows]

    def table(self) -> list[Printable]:
        """Returns output for the terminal: scores, differing settings, advice."""
        head, rows = self._selected_columns()
        scores = Table(*head)
        for score, row in zip(self.scores, rows, strict=True):
            scores.add(*row, style="bold" if score is self.best else "")
        settings = Table("setting", *(score.run.name for score in self.scores))
        for name, values in self.differences.items():
            settings.add(name, *map(str, values))
        return [
            scores,
            *(Text(f"\n{sentence}") for sentence in self.pairs[0]),
            Text(),
            settings if self.differences else Text("no setting differs"),
            Text(),
            Text(self.advice(), style="bold"),
        ]

    def page(self) -> str:
        """Returns the same as one page, with overlaid curves and the findings of each run."""
        marks = ["best" if score is self.best else "" for score in self.scores]
        head, cells = self._selected_columns()
        body = table(
            head, cells, "success of the checkpoint; everything else at the best measured epoch of each run", marks
        )
        body += "".join(paragraph(f"{sentence[0].upper()}{sentence[1:]}.") for sentence in self.pairs[0])
        rows = [[name, *map(str, values)] for name, values in self.differences.items()]
        settings = table(("setting", *(s.run.name for s in self.scores)), rows) if rows else "<p>no setting differs</p>"
        drawn, plots = {}, []
        for title, (key, unit) in CURVES.items():
            lines = {score.run.name: score.run.curve(key) for score in self.scores if score.run.curve(key)}
            if lines:
                drawn[f"compare-{key}"] = plot.curves(title, lines, unit, logarithmic=key == "train_loss")
                ends = ", ".join(f"{name} {curve[-1][1]:.3g}" for name, curve in lines.items())
                plots.append(plot_placeholder(f"compare-{key}", f"{title.lower()} at the end: {ends}"))
        for name, (key, title, alt) in SHARES.items():
            measured = {s.run.name: _with_interval(s.run, key) for s in self.scores if s.run.curve(key)}
            if measured:
                drawn[name] = plot.shares(title, measured)
                ends = ", ".join(f"{run} {curve[-1][1]:.2f}" for run, (curve, _, _) in measured.items())
                plots.append(plot_placeholder(name, f"{alt} at the end: {ends}"))
        findings = findings_section({score.run.name: score.findings for score in self.scores})
        level = "good" if self.sure else "doubt"
        lead = f'<div class="verdict {level}" role="status"><p><strong>{escape(self.advice())}</strong></p></div>'
        sections = [
            Section("scores", "Scores", body),
            Section("settings", "Settings that differ", settings),
            Section("curves", "Overlaid curves", grid(*plots), drawn),
            findings,
        ]
        return render(f"Comparison of {len(self.scores)} runs", lead, sections)


def _take(best: RunScore) -> str:
    """Returns what to do with the best run; recordings alone are not a reason to deploy it."""
    if best.success is None and best.rollouts.chosen is None:
        return f"On recordings alone, first roll out {best.checkpoint}"
    return f"Deploy {best.checkpoint}"


def compare(paths: Sequence[Path], closed_loop: Sequence[Path] = ()) -> Comparison:
    """Compares run folders.

    Args:
        paths: paths of the run folders.
        closed_loop: results of their checkpoints, in addition to those in the folders.

    Raises:
        ReportError: fewer than two runs, one named twice, a folder that is not a run, or a result of none of them.
        ResultError: a result cannot be read.
    """
    if len({path.resolve() for path in paths}) < 2 or len({path.resolve() for path in paths}) < len(paths):
        raise ReportError(f"{len(paths)} runs given; expected two or more different ones")
    runs = [open_run(path) for path in paths]
    flat = [run.flat_config() for run in runs]
    names = sorted({name for settings in flat for name in settings if not name.startswith(INCIDENTAL)})
    values = {name: tuple(settings.get(name, "-") for settings in flat) for name in names}
    differing = {name: of_runs for name, of_runs in values.items() if any(value != of_runs[0] for value in of_runs)}
    made = rollouts_of(runs, closed_loop)
    return Comparison(tuple(score_run(run, one) for run, one in zip(runs, made, strict=True)), differing)


def _with_interval(run: RunFolder, key: str) -> tuple[Curve, Curve, Curve]:
    return run.curve(key), run.curve(f"{key}_low"), run.curve(f"{key}_high")


def _paired(best: RunScore, second: RunScore) -> Paired | None:
    """Returns the rollouts of two runs on their common scenes; None if there are none."""
    ours, theirs = best.rollouts.chosen, second.rollouts.chosen
    return None if ours is None or theirs is None else compared(theirs, ours)


def _apart(first: Interval | None, second: Interval | None) -> bool:
    return first is not None and second is not None and (first[0] > second[1] or second[0] > first[1])
