"""Open-loop errors for the terminal: with baselines, by phase and step of the chunk, and two checkpoints compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_policy.evaluate.open_loop import COPYCAT, HOLD, PHASES, POLICY, joint_error
from diffusion_policy.evaluate.open_loop_report import COLUMNS, OpenLoopReport
from diffusion_policy.tables import Printable, Table, Text, as_texts, numbers

# In these columns larger is better.
_RISING = ("gripper_f1",)


def open_loop_table(report: OpenLoopReport) -> list[Printable]:
    """Returns a row per predictor; the policy by phase; events and spread; then, in red, what it does not beat."""
    episodes = ", ".join(str(episode.episode) for episode in report.episodes)
    sampling, count = report.sampling, len(report.episodes[0].samples)
    text = f"episodes {episodes}; {sampling.scheduler}, {sampling.steps} steps, {count} noise samples at each step"
    lines = as_texts(report.shortcomings(), style="red")
    return [
        Text(report.checkpoint, style="bold"),
        Text(text),
        *([Text(report.choice.note)] if report.choice is not None else []),
        *([Text(report.sampler_note, style="yellow")] if report.sampler_note is not None else []),
        _predictors(report),
        Text(),
        _by_phase(report),
        Text(),
        *_by_arm(report),
        *_in_words(report),
        *(lines or [Text(_beats_all(report), style="green")]),
        *as_texts(report.unmeasured(), style="yellow"),
    ]


def _beats_all(report: OpenLoopReport) -> str:
    return "beats every baseline" + (" in what was measured" if report.unmeasured() else "")


def _predictors(report: OpenLoopReport) -> Table:
    table = _table("predictor", *(heading(column, report.tolerance_s) for column in report.columns))
    for name, score in report.scores.items():
        means = score.means()
        cells = [_number(means[column]) for column in report.columns]
        table.add(name, *cells, style="bold" if name == POLICY else "")
    return table


def _motion(report: OpenLoopReport) -> list[str]:
    """Returns the names from COLUMNS of errors in the arm's motion."""
    return [column for column in report.columns if not column.startswith("gripper")]


def _by_arm(report: OpenLoopReport) -> list[Printable]:
    """Returns the policy's errors of each arm, if there are several."""
    arms = report.scores[POLICY].per_arm()
    if not arms:
        return []
    table = _table("arm", *(heading(column, None) for column in _motion(report)), "gripper")
    for arm, means in arms.items():
        table.add(arm, *(_number(means.get(column)) for column in (*_motion(report), "gripper")))
    return [table, Text()]


def heading(column: str, tolerance_s: float | None) -> str:
    """Returns the heading of a column; that of F1 names the tolerance."""
    return COLUMNS[column] + (f" ({tolerance_s:.3g} s)" if column == "gripper_f1" and tolerance_s is not None else "")


def _by_phase(report: OpenLoopReport) -> Table:
    """Returns where in the task the errors are, and what holding the pose would score."""
    columns = _motion(report)
    table = _table("phase", *(text for column in columns for text in (heading(column, None), f"({HOLD})")), "gripper")
    ours, held = report.scores[POLICY].per_phase(), report.scores[HOLD].per_phase()
    for phase in PHASES:
        means, still = ours[phase], held[phase]
        moved = [_number(scores[key]) for key in columns for scores in (means, still)]
        table.add(phase, *moved, _number(means["gripper"]))
    return table


def _in_words(report: OpenLoopReport) -> list[Printable]:
    score, spread, copycat = report.scores[POLICY], report.spread(), report.against_copycat()
    what, key, unit = "position", "position_mm", "mm"
    if "position_mm" not in report.columns and report.layout.has_joints:
        what, key, unit = "joints", joint_error(report.layout), report.layout.joint_unit
    steps = score.errors.per_horizon_step()[key]
    text = [f"{what} by step of the chunk: {', '.join(map(_number, steps))} {unit}"]
    apart, known = spread.get(key), spread["gripper"]
    if apart is not None:
        first, last = f"{apart[0]:.3g} {unit}", f"{apart[-1]:.3g}"
        gripper = "" if known is None else f"; gripper {known[0]:.2g} and {known[-1]:.2g}"
        text.append(f"spread of the samples: {first} at the first action, {last} at the last{gripper}")
    if score.events is not None:
        text.append(f"gripper: {score.events.sentence()}")
    if copycat is not None:
        against = report.scores[COPYCAT].means()["gripper_at_transitions"]
        difference = _finding("gripper_at_transitions", copycat)
        text.append(
            f"at transitions {_number(score.gripper_at_transitions)} of the gripper states are wrong, "
            f"{_number(against)} of a copy of the measured gripper: {difference} ({_interval(copycat)})"
        )
    return [*as_texts(text)]


def comparison_table(
    differences: Mapping[str, Mapping[str, Any]], first: str = "first", second: str = "second"
) -> list[Printable]:
    """Returns the comparison; a difference whose interval contains 0 is not claimed."""
    table = _table("", "difference", "95 % interval", "finding")
    for column, entry in differences.items():
        cells = (f"{entry['difference']:+.3g}", _interval(entry), _finding(column, entry))
        table.add(heading(column, entry.get("tolerance_s")), *cells)
    return [Text(f"{second} minus {first}, paired by episode", style="bold"), table]


def _finding(column: str, entry: Mapping[str, Any]) -> str:
    if not entry["differs"]:
        return "no difference can be claimed"
    return "better" if (entry["difference"] > 0) == (column in _RISING) else "worse"


def _interval(entry: Mapping[str, Any]) -> str:
    return "one episode: no interval" if entry["interval"] is None else "{:+.3g} to {:+.3g}".format(*entry["interval"])


def _table(first: str, *others: str) -> Table:
    return Table(first, *numbers(*others))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
