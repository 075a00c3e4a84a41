"""The sections of the page about a policy's errors, its latency, and the effect of the motion guard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plotly.graph_objects import Figure

from diffusion_policy.diagnose.latency import Stage
from diffusion_policy.diagnose.playback import Playback
from diffusion_policy.evaluate.open_loop import HOLD, POLICY, measured_as_action
from diffusion_policy.gripper_events import gripper_events
from diffusion_policy.report import figures as plot
from diffusion_policy.report.page import Section, grid, paragraph, plot_placeholder, table
from diffusion_policy.run_folder.reading import RunFolder
from diffusion_policy.run_log import RunLog
from diffusion_policy.run_log.session_log import read_lines
from diffusion_policy.serve.checks.motion_guard import GuardSettings, MotionGuard, MotionLimits, MotionRefusedError
from diffusion_policy.spec import ActionLayout, SpecError

FloatArray = NDArray[np.float64]

MOST_TRAJECTORIES = 4
# Margin of the workspace around the arm's path, for a guard applied to a log afterwards.
BOX_MARGIN_M = 0.1
REFUSED = "refused: "
COLUMNS = (
    ("position_mm", "position (mm)"),
    ("rotation_deg", "rotation (degrees)"),
    ("joint_rad", "joints (rad)"),
    ("joint_deg", "joints (degrees)"),
    ("joint", "joints"),
    ("gripper_at_transitions", "wrong at transitions"),
    ("gripper_f1", "events F1"),
)


# Errors by their names in open-loop evaluation and training, and their units.
UNITS = {
    "position_mm": "mm",
    "rotation_deg": "degrees",
    "joint_rad": "rad",
    "joint_deg": "degrees",
    "joint": "",
    "gripper": "difference in the command",
}
VALIDATED = {
    "position_error_mm": "mm",
    "rotation_error_deg": "degrees",
    "joint_error_rad": "rad",
    "joint_error_deg": "degrees",
    "joint_error": "",
}


def open_loop_section(documents: Sequence[Mapping[str, Any]]) -> Section:
    """Returns tables with the baselines, those that are not beaten, and errors per horizon step and phase."""
    parts: list[str] = []
    drawn: dict[str, Figure] = {}
    for i, document in enumerate(documents):
        scores = document["scores"]
        columns = [(key, title) for key, title in COLUMNS if key not in _unmeasured(scores)]
        rows = [[name, *(_cell(_defined(score, key)) for key, _ in columns)] for name, score in scores.items()]
        sampler = f"{document['scheduler']}, {document['steps']} steps, {document['samples']} samples per step"
        caption = f"{document['checkpoint']}; episodes {document['episodes']}; {sampler}"
        within = f" ({document['tolerance_s']:.3g} s)" if "tolerance_s" in document else ""
        head = ["predictor", *(title + (within if key == "gripper_f1" else "") for key, title in columns)]
        parts.append(table(head, rows, caption, _marks(scores)))
        parts += [paragraph(line) for line in (*_about_episodes(document), *_in_words(document))]
        parts += [paragraph(line) for line in document.get("unmeasured", ())]
        for line in document["shortcomings"]:
            parts.append(f'<p class="bad"><span class="tag">{_escaped(line)}</span></p>')
        parts.append(
            grid(
                *(
                    _horizon(f"{i}-{key}", key, unit, document, drawn)
                    for key, unit in UNITS.items()
                    if key in scores[POLICY]["per_horizon_step"]
                )
            )
        )
        parts.append(_phases(f"phases-{i}", scores, drawn))
        parts.append(_arms(scores))
    return Section("open-loop", "Open loop: errors per horizon step", "".join(parts), drawn)


def _unmeasured(scores: Mapping[str, Any]) -> set[str]:
    """Returns the motion errors that no predictor has, since the action layout lacks what they measure."""
    motions = [key for key in UNITS if key != "gripper"]
    return {key for key in motions if all(score.get(key) is None for score in scores.values())}


def _arms(scores: Mapping[str, Any]) -> str:
    """Returns the policy's errors by arm; empty with a single arm."""
    arms: Mapping[str, Any] = scores[POLICY].get("per_arm") or {}
    if not arms:
        return ""
    columns = [*((key, title) for key, title in COLUMNS if key in next(iter(arms.values()))), ("gripper", "gripper")]
    rows = [[arm, *(_cell(means[key]) for key, _ in columns)] for arm, means in arms.items()]
    return table(["arm", *(title for _, title in columns)], rows, "the policy's errors of each arm")


def _about_episodes(document: Mapping[str, Any]) -> list[str]:
    """Returns whether the policy was trained on these episodes, and whether it was chosen with this sampler."""
    note = (document.get("split") or {}).get("note") or "It is not known whether the policy was trained on them."
    return [f"Episodes: {note}", *([document["sampler_note"]] if document.get("sampler_note") else [])]


def _defined(score: Mapping[str, Any], key: str) -> Any:
    """Returns a predictor's number; older files hold an F1 of 1 where no event is recorded."""
    events = score.get("events")
    nothing = events is not None and not events["matched"] and not events["missed"]
    return None if key == "gripper_f1" and nothing else score.get(key)


def _in_words(document: Mapping[str, Any]) -> list[str]:
    """Returns sentences on gripper events and the copycat, without what an older file lacks."""
    events, copycat = document["scores"][POLICY].get("events"), document.get("beside_copycat")
    text = []
    if events is not None:
        matched, recorded = len(events["matched"]), len(events["matched"]) + len(events["missed"])
        made = f"{len(events['false'])} false, {events['bounces']} undone at once"
        low, high = events["recall_interval"] or (0.0, 1.0)
        offset = events["median_offset_steps"]
        median = "" if offset is None else f", median {offset:+.3g} steps"
        text.append(
            f"Gripper: {matched} of {recorded} recorded events found in {document['samples']} samples (95 % interval "
            f"{low:.0%}-{high:.0%}), {events['early']} early and {events['late']} late{median}; {made}."
            if recorded
            else f"Gripper: no event is recorded in these episodes, so F1 and recall are not defined; {made}."
        )
    if copycat is not None:
        low, high = copycat["interval"] or (None, None)
        interval = "one episode, no interval" if low is None else f"95 % interval {low:+.3g} to {high:+.3g}"
        text.append(
            f"Wrong at transitions, minus a copy of the measured gripper: {copycat['difference']:+.3g} ({interval})."
        )
    return text


def _horizon(name: str, key: str, unit: str, document: Mapping[str, Any], drawn: dict[str, Figure]) -> str:
    lines = {predictor: score["per_horizon_step"][key] for predictor, score in document["scores"].items()}
    ours = [value for value in lines[POLICY] if value is not None]
    if not ours:
        return ""
    title = f"{key.split('_')[0].capitalize()} error per step of the chunk"
    spread = (document.get("spread") or {}).get(key)
    drawn[f"horizon-{name}"] = plot.horizon_errors(title, lines, unit, spread)
    alt = f"{title.lower()}: policy {ours[0]:.3g} at the first, {ours[-1]:.3g} at the last ({unit})"
    if spread is not None:
        alt += f"; samples are {spread[0]:.2g} to {spread[-1]:.2g} apart"
    return plot_placeholder(f"horizon-{name}", alt)


def _phases(name: str, scores: Mapping[str, Any], drawn: dict[str, Figure]) -> str:
    lacking = _unmeasured(scores)
    key = next((key for key in UNITS if key not in lacking and key != "rotation_deg"), "position_mm")
    what, unit = ("Position", "mm") if key == "position_mm" else ("Joint", UNITS[key])
    ours = {phase: means for phase, means in scores[POLICY]["per_phase"].items() if means[key] is not None}
    if not ours or key == "gripper":
        return ""
    series = {
        predictor: [scores[predictor]["per_phase"].get(phase, {}).get(key) for phase in ours]
        for predictor in (POLICY, HOLD)
        if predictor in scores
    }
    drawn[name] = plot.bars(f"{what} error by phase", list(ours), series, unit)
    alt = f"{what.lower()} error by phase: " + ", ".join(f"{phase} {m[key]:.3g} {unit}" for phase, m in ours.items())
    return plot_placeholder(name, alt, 260)


def _marks(scores: Mapping[str, Any]) -> list[str]:
    return ["best" if name == POLICY else "" for name in scores]


def horizon_section(run: RunFolder) -> Section | None:
    """Returns the errors per horizon step from training's validation; None if there was none."""
    drawn: dict[str, Figure] = {}
    parts: list[str] = []
    for key, unit in VALIDATED.items():
        values: list[float] = []
        while (value := run.last(f"val_{key}_step_{len(values) + 1}")) is not None:
            values.append(value)
        if values:
            title = f"{key.split('_')[0].capitalize()} error per step of the chunk"
            drawn[f"steps-{key}"] = plot.horizon_errors(title, {"held-out episodes": values}, unit)
            parts.append(
                plot_placeholder(f"steps-{key}", f"{title.lower()}: {values[0]:.3g} to {values[-1]:.3g} {unit}")
            )
    return Section("horizon", "Errors per horizon step", grid(*parts), drawn) if parts else None


def trajectory_section(playbacks: Sequence[Playback]) -> Section:
    """Returns paths of arms in three dimensions, with predicted chunks and positions of gripper events.

    For layouts without a position, the section only states that.
    """
    if not playbacks:
        text = "These actions have no position, so no path of the arm is drawn or replayed."
        return Section("trajectories", "Trajectories", paragraph(text))
    drawn: dict[str, Figure] = {}
    parts: list[str] = []
    for i, playback in enumerate(playbacks[:MOST_TRAJECTORIES]):
        assert playback.positions is not None
        paths = {"measured": (playback.positions, plot.RECORDED, "solid")}
        if playback.recorded_positions is not None:
            paths["recorded command"] = (playback.recorded_positions, plot.GOOD, "solid")
        figure = plot.trajectories(playback.name, paths, playback.chunks if playback.predicted else None)
        events = [] if playback.commands is None else gripper_events(playback.commands)
        for kind, symbol in (("close", "diamond"), ("open", "circle-open")):
            points = playback.positions[[step for step, event in events if event == kind]]
            plot.mark_points(figure, points, f"{kind}s", plot.MEASURED, symbol)
        drawn[f"trajectory-{i}"] = figure
        spans = " x ".join(f"{span * 100:.0f}" for span in np.ptp(playback.positions, axis=0))
        alt = f"path of the arm in {playback.name}, within {spans} cm, with {len(events)} gripper events"
        parts.append(plot_placeholder(f"trajectory-{i}", alt, 460))
    hidden = len(playbacks) - MOST_TRAJECTORIES
    text = "Drag to turn, scroll to zoom." + (f" {hidden} more are not shown." if hidden > 0 else "")
    return Section("trajectories", "Trajectories", paragraph(text, "dim") + grid(*parts), drawn)


def latency_section(stages: Sequence[Stage]) -> Section:
    """Returns the section that shows where the time goes."""
    rows = [
        [
            stage.name,
            str(len(stage.milliseconds)),
            *(f"{value:.1f}" for value in stage.quantiles()),
            str(stage.left_out),
        ]
        for stage in stages
    ]
    head = ("stage", "inferences", "median (ms)", "95 %", "99 %", "left out")
    figure = plot.boxes("Latency by stage", {stage.name: stage.milliseconds for stage in stages}, "ms")
    alt = "latency by stage: " + ", ".join(f"{stage.name} {stage.quantiles()[0]:.3g} ms" for stage in stages)
    note = (
        "Stages of the server come from one clock. Stages between robot and server compare two clocks that "
        "are not synchronized; values below 0 or above a minute are implausible and left out."
    )
    body = plot_placeholder("latency", alt, 60 + 46 * len(stages)) + table(head, rows) + paragraph(note, "dim")
    return Section("latency", "Latency by stage", body, {"latency": figure})


def pooled(stages: Sequence[Sequence[Stage]]) -> list[Stage]:
    """Merges the stages of several logs by name, in the order of their first appearance."""
    names = dict.fromkeys(stage.name for of_log in stages for stage in of_log)
    parts = {name: [stage for of_log in stages for stage in of_log if stage.name == name] for name in names}
    return [
        Stage(name, np.concatenate([p.milliseconds for p in same]), sum(p.left_out for p in same))
        for name, same in parts.items()
    ]


def guard_section(logs: Sequence[RunLog]) -> Section | None:
    """Returns what the motion guard did in served runs and would do to other logs' chunks; None without either.

    A log goes through the guard in its own layout, see `motion_of`.
    """
    served = {log.path.name: served_interventions(log) for log in logs if log.path.is_dir()}
    motions = {log.path.name: motion_of(log) for log in logs if not log.path.is_dir()}
    replayed = {name: guarded(motion) for name, motion in motions.items() if motion is not None}
    totals = {**served, **replayed}
    if not totals:
        return None
    pool = sum(totals.values(), Counter[str]())
    limits = sorted(pool)
    # A refused chunk of a served run is not a step of its log.
    lengths = {log.path.name: len(log.steps) + _refused(served.get(log.path.name, Counter())) for log in logs}
    rows = [[name, str(lengths[name]), *(str(c[limit]) for limit in limits)] for name, c in totals.items()]
    refused = _refused(pool)
    text = f"Of {sum(lengths[name] for name in totals)} chunks {refused} were refused"
    body = paragraph(f"{text}; {pool.total() - refused} actions of the others were limited.")
    if replayed:
        box = f"a workspace of {BOX_MARGIN_M} m around the arm's path"
        of_joints = any(motion is not None and motion.layout.has_joints for motion in motions.values())
        box += ", and steps of a tenth of each joint's range in the log" if of_joints else ""
        body += paragraph(
            f"Logs without a guard were passed through it afterwards, with its default limits and {box}.", "dim"
        )
    body += table(("log", "chunks", *limits), rows)
    drawn: dict[str, Figure] = {}
    if pool:
        drawn["guard"] = plot.bars("Interventions", limits, {"all logs": [pool[limit] for limit in limits]}, "count")
        body += plot_placeholder("guard", "interventions by limit: " + ", ".join(f"{k} {pool[k]}" for k in limits), 280)
    return Section("guard", "Motion guard", body, drawn)


def _refused(counts: Counter[str]) -> int:
    return sum(count for limit, count in counts.items() if limit.startswith(REFUSED))


@dataclass(frozen=True)
class LoggedMotion:
    """A log's commands and measurements, as input of the guard.

    Attributes:
        layout: layout of both, rotations as quaternions.
        chunks: (N, T, D) the log's chunks.
        measured: (N, D) state before each chunk.
    """

    layout: ActionLayout
    chunks: FloatArray
    measured: FloatArray


def motion_of(log: RunLog) -> LoggedMotion | None:
    """Returns the motion in a log; None if the guard cannot judge it.

    It cannot if the layouts are unknown, if not all that is commanded was measured, if a rotation is invalid, or if no
    joint moved, so that no step limit can be derived.
    """
    commanded, state = log.action_layout, log.state_layout
    if not log.steps or commanded is None or state is None or not commanded.motion_columns:
        return None
    layout = commanded.with_rotations_as("quaternion")
    measured = measured_as_action(log.states, state, layout)
    moved = not layout.has_joints or bool(np.ptp(layout.joints(measured), axis=0).any())
    if not moved or not np.isfinite(measured[:, list(layout.motion_columns)]).all():
        return None
    try:
        chunks = log.actions if layout.names == commanded.names else commanded.converted(log.actions, layout)
    except SpecError:
        return None
    return LoggedMotion(layout, chunks, measured)


def guarded(motion: LoggedMotion, settings: GuardSettings | None = None) -> Counter[str]:
    """Counts how often each limit would act on the chunks of a log, each starting at the measured state.

    Args:
        motion: the log's motion.
        settings: limits, by default the guard's own. The box and joint steps, which normally come from the training
            range, are derived from the arm's path.
    """
    low, high = motion.measured.min(axis=0), motion.measured.max(axis=0)
    limits = MotionLimits.within(settings or GuardSettings(), motion.layout, low, high, BOX_MARGIN_M)
    guard = MotionGuard(limits)
    for chunk, start in zip(motion.chunks, motion.measured, strict=True):
        try:
            guard.accept(guard.check(chunk, start))
        except MotionRefusedError:
            continue  # counted by the guard
    return guard.totals


def served_interventions(log: RunLog) -> Counter[str]:
    """Counts what the guard did while a run was served, from the log's lines."""
    _, lines = read_lines(log.path)
    counts = Counter[str]()
    for line in lines:
        counts.update(line.get("interventions") or {})
        if line.get("event") == "error" and line.get("code") == "refused":
            counts[f"{REFUSED}{str(line.get('message')).partition(':')[0]}"] += 1
    return counts


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
