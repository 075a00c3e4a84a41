"""The sections of the page; report_page.py chooses which of them appear."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from plotly.graph_objects import Figure

from diffusion_policy.dataset.replay_buffer import ACTION_KEY, ReplayBuffer
from diffusion_policy.dataset.sampling import Share
from diffusion_policy.diagnose.dataset_evidence import DatasetEvidence, episode_slices
from diffusion_policy.diagnose.findings import Finding, distinct
from diffusion_policy.diagnose.playback import Playback, gripper_column
from diffusion_policy.diagnose.steps import ConvertedCamera
from diffusion_policy.gripper_events import gripper_events
from diffusion_policy.report import figures as plot
from diffusion_policy.report.page import Section, grid, paragraph, picture, plot_placeholder, table
from diffusion_policy.run_folder import SAMPLING_NAME
from diffusion_policy.run_folder.reading import JOINT_ERRORS, RunFolder
from diffusion_policy.spec.action_layout import is_gripper_name

CLASSES = {"ok": "good", "note": "note", "warning": "doubt", "error": "bad"}
SAMPLE_FRAMES = 8
MOST_TIMELINES = 6
MOST_EVENT_FRAMES = 8
STRIPS = 60
MOST_FILES = 6
MOST_SHARES = 40
# Shares that training measures, some with intervals.
SHARES = {
    "success": "test_success",
    "grasped": "test_grasped",
    "played": "success_share",
    "recall": "val_gripper_recall",
    "precision": "val_gripper_precision",
    "f1": "val_gripper_f1",
}


def findings_section(groups: Mapping[str, Sequence[Finding]]) -> Section:
    """Returns every finding, warnings and errors first in each group; passed checks are folded."""
    parts = []
    for name, group in groups.items():
        once = distinct(group)
        several = len({finding.about for finding in group}) > 1
        shown = [(finding, files if several else ()) for finding, files in once if finding.severity != "ok"]
        fine = [(finding, files if several else ()) for finding, files in once if finding.severity == "ok"]
        parts.append(f"<h3>{escape(name)}</h3>{_findings(shown) if shown else ''}")
        if fine:
            count = f"{len(fine)} check{'s' if len(fine) > 1 else ''} found nothing wrong"
            parts.append(f"<details><summary>{count}</summary>{_findings(fine)}</details>")
    return Section("findings", "Findings", "".join(parts))


def _findings(findings: Sequence[tuple[Finding, Sequence[str]]]) -> str:
    rows = "".join(
        f'<tr><td class="{CLASSES[f.severity]}"><span class="tag">{f.severity}</span></td>'
        f"<td>{escape(f.evidence)}{_in_files(files)}"
        f"{f'<br><span class=dim>{escape(f.remedy)}</span>' if f.remedy else ''}"
        f"{f'<br><code>{escape(f.command)}</code>' if f.command else ''}</td></tr>"
        for f, files in findings
    )
    head = '<thead><tr><th scope="col">severity</th><th scope="col">what was found, and what to do</th></tr></thead>'
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'


def _in_files(files: Sequence[str]) -> str:
    """Returns the names of the files that something was found in; empty if there is only one candidate."""
    names = [Path(file).name for file in files]
    more = f" and {len(names) - MOST_FILES} more" if len(names) > MOST_FILES else ""
    return f' <span class="dim">({escape(", ".join(names[:MOST_FILES]))}{more})</span>' if names else ""


def data_section(
    data: DatasetEvidence, buffer: ReplayBuffer, cameras: Mapping[str, ConvertedCamera], number: int = 0
) -> Section:
    """Returns sizes, ranges, the gripper of every episode and a few frames; `number` counts the datasets of a page."""
    suffix = f"-{number + 1}" if number else ""
    spacing = "unknown" if data.step_seconds is None else f"{data.step_seconds:.3g} s between steps"
    rows = [
        [name, f"{low:.4g}", f"{high:.4g}"]
        for name, low, high in zip(data.action_names, data.low, data.high, strict=True)
    ]
    drawn = {
        f"lengths{suffix}": plot.bars(
            "Steps of each episode", [str(i) for i in range(len(data.lengths))], {"steps": data.lengths}, "steps"
        )
    }
    alt = f"{len(data.lengths)} episodes of {min(data.lengths)} to {max(data.lengths)} steps"
    parts = [plot_placeholder(f"lengths{suffix}", alt)]
    for name in filter(is_gripper_name, data.action_names):
        command = gripper_column(buffer, ACTION_KEY, name)
        if command is None:
            continue
        strips = [command[steps] for steps in episode_slices(buffer.episode_ends)[:STRIPS]]
        arm = name.rpartition(".")[0]
        plotted, whose = (f"strips-{arm}{suffix}", f"{arm} gripper") if arm else (f"strips{suffix}", "gripper")
        drawn[plotted] = plot.state_strips(f"Commanded {whose} (orange: closed)", strips)
        gripper = data.gripper
        closings = "" if gripper is None else f": {gripper.closings} closings, {gripper.openings} openings"
        parts.append(plot_placeholder(plotted, f"when each episode's {whose} is commanded open or closed{closings}"))
    ranges = table(("dimension", "lowest", "highest"), rows)
    body = (
        paragraph(f"{data.n_steps} steps in {len(data.lengths)} episodes, {spacing}; {data.path}")
        + grid(*parts)
        + f"<details><summary>Range of each action dimension</summary>{ranges}</details>"
        + _sample_frames(buffer, cameras)
    )
    return Section(f"data{suffix}", "Data quality" + (f" ({number + 1})" if number else ""), body, drawn)


def _sample_frames(buffer: ReplayBuffer, cameras: Mapping[str, ConvertedCamera]) -> str:
    if not cameras:
        return ""
    steps = np.unique(np.linspace(0, buffer.n_steps - 1, SAMPLE_FRAMES).astype(int))
    frames = ((int(step), name, camera.whole(int(step))) for name, camera in cameras.items() for step in steps)
    shown = "".join(
        picture(
            frame,
            f"camera frame of step {step}{_of_camera(name, cameras)}",
            f"step {step}, episode {np.searchsorted(buffer.episode_ends, step, side='right')}"
            f"{_of_camera(name, cameras)}",
        )
        for step, name, frame in frames
        if frame is not None
    )
    return f'<h3>Frames, evenly spread</h3><div class="frames">{shown}</div>'


def training_section(run: RunFolder) -> Section:
    """Returns losses (including before the first update), pose errors, gripper events and the learning rate."""
    start = run.first.get("train_loss_before_first_update")
    loss = _curves(
        run, {"training": "train_loss", "held out, averaged": "val_loss", "held out, live": "val_loss_model"}
    )
    drawn: dict[str, Figure] = {}
    parts: list[str] = []
    if loss:  # reinforcement learning has no meaningful loss
        drawn["loss"] = plot.curves("Loss (logarithmic)", loss, "loss", logarithmic=True, start=start)
        ends = "; ".join(f"{name} ends at {curve[-1][1]:.3g}" for name, curve in loss.items())
        before = "" if start is None else f"; before the first update it is {start:.3g}"
        parts.append(plot_placeholder("loss", f"loss over updates: {ends}{before}"))
    for name, title, unit, keys in (
        (
            "position",
            "Position error of held-out episodes",
            "mm",
            ("val_position_error_mm", "val_position_error_mm_model"),
        ),
        (
            "rotation",
            "Rotation error of held-out episodes",
            "degrees",
            ("val_rotation_error_deg", "val_rotation_error_deg_model"),
        ),
        *(
            ("joints", "Joint error of held-out episodes", unit, (key, f"{key}_model"))
            for key, unit in JOINT_ERRORS.items()
        ),
        ("kl", "KL divergence from the pretrained policy", "nats per frame", ("kl_to_pretrained",)),
        ("value", "Variance of returns explained by the value head", "", ("explained_variance",)),
        ("rate", "Learning rate", "", ("lr",)),
    ):
        label = title[0].lower() + title[1:] if title[1].islower() else title
        names = ("averaged", "live") if len(keys) > 1 else (label,)
        lines = _curves(run, dict(zip(names, keys, strict=True)))
        if lines:
            drawn[name] = plot.curves(title, lines, unit)
            parts.append(plot_placeholder(name, f"{label}: {next(iter(lines.values()))[-1][1]:.3g} {unit} at the end"))
    _share_curves(run, drawn, parts)
    facts = [run.name, f"{run.updates} updates", f"started from: {_start_of(run)}"]
    trained, held_out = (run.first.get(f"episodes_{name}") for name in ("trained", "held_out"))
    if trained is not None:
        facts.append(f"{trained} episodes trained on, {held_out} held out")
    body = paragraph("; ".join(facts)) + _shares(run.sampling) + _actions(run) + grid(*parts)
    return Section("training", "Training", body, drawn)


def _start_of(run: RunFolder) -> str:
    """What a run began with: as its log says, or its config where it learns from rewards, which starts from weights."""
    named = run.flat_config().get("pretrained.path") if run.learns_from_rewards else None
    return str(run.first.get("start") or named or "unknown")


def _shares(shares: Sequence[Share]) -> str:
    """Returns a table of how often each dataset's or task's windows are drawn; empty if there was only one."""
    if not shares:
        return ""
    rows = [
        [share.name or "no task", str(share.windows), "" if share.weight is None else f"{share.weight:g}",
         f"{share.share:.1%}", f"{share.repeats:.2f}"]
        for share in shares[:MOST_SHARES]
    ]  # fmt: skip
    head = (shares[0].by, "windows", "weight", "share of samples", "times per epoch")
    hidden = len(shares) - MOST_SHARES
    more = paragraph(f"{hidden} more are in {SAMPLING_NAME} of the run.", "dim") if hidden > 0 else ""
    return table(head, rows, "What an epoch is drawn from") + more


def _actions(run: RunFolder) -> str:
    """Returns a table of scores on held-out action classes, with those of two blind policies; empty without classes."""
    names = [key.removesuffix("_previous") for line in run.metrics[-1:] for key in line if key.endswith("_previous")]
    rows = [
        [name.removeprefix("val_"), *("-" if value is None else f"{value:.3f}" for value in values)]
        for name in names
        if (values := [run.last(f"{name}{policy}") for policy in ("", "_majority", "_previous")])
    ]
    head = ("held-out actions", "policy", "always the most frequent", "same as the previous frame")
    return table(head, rows, "Accuracies and F1 after the last epoch") if rows else ""


def _share_curves(run: RunFolder, drawn: dict[str, Figure], parts: list[str]) -> None:
    """Draws the shares of scenes done in closed loop and of gripper events found, with their intervals."""
    curves = {
        name: (run.curve(key), run.curve(f"{key}_low"), run.curve(f"{key}_high"))
        for name, key in SHARES.items()
        if run.curve(key)
    }
    counts = {"scenes": run.last("test_scenes"), "steps of a chunk executed": run.last("test_n_action_steps")}
    how = "".join(f", {count:.0f} {unit}" for unit, count in counts.items() if count is not None)
    within = "" if run.tolerance is None else f" (found is within {run.tolerance})"
    for name, of, title, alt in (
        ("success", ("success", "grasped"), f"Closed loop during training, 95 % interval{how}", "closed loop"),
        (
            "played",
            ("played",),
            "Success in training, 95 % interval",
            "success in training (too high at first, since episodes that succeed end early)",
        ),
        (
            "gripper-scores",
            ("recall", "precision", "f1"),
            f"Gripper events of held-out episodes, 95 % intervals{within}",
            "gripper events found",
        ),
    ):
        lines = {key: curves[key] for key in of if key in curves}
        if lines:
            drawn[name] = plot.shares(title, lines)
            values = ", ".join(f"{key} {curve[0][-1][1]:.2f}" for key, curve in lines.items())
            parts.append(plot_placeholder(name, f"{alt} over updates; at the end {values}"))


def _curves(run: RunFolder, keys: Mapping[str, str]) -> dict[str, Any]:
    return {name: run.curve(key) for name, key in keys.items() if run.curve(key)}


def gripper_section(playbacks: Sequence[Playback], verdicts: Mapping[str, str]) -> Section:
    """Returns each log's gripper timeline (predicted, measured and recorded), with the frames at its events."""
    drawn: dict[str, Figure] = {}
    parts: list[str] = []
    for i, playback in enumerate(playbacks[:MOST_TIMELINES]):
        commands = playback.commands
        assert commands is not None
        events = gripper_events(commands)
        recorded = [] if playback.recorded is None else gripper_events(playback.recorded)
        drawn[f"gripper-{i}"] = plot.gripper_timeline(playback, events, recorded)
        listed = ", ".join(f"{kind} at {step}" for step, kind in events[:12]) or "none"
        more = f" and {len(events) - 12} more" if len(events) > 12 else ""
        alt = f"gripper of {playback.name}: {len(events)} events ({listed}{more})"
        alt += (
            f"; recorded: {', '.join(f'{kind} at {step}' for step, kind in recorded[:12]) or 'none'}"
            if playback.recorded is not None
            else ""
        )
        verdict = verdicts.get(playback.name)
        parts.append(
            (paragraph(f"{playback.name}: {verdict}") if verdict else "")
            + plot_placeholder(f"gripper-{i}", alt, 300)
            + _event_frames(playback, events)
        )
    hidden = len(playbacks) - MOST_TIMELINES
    hidden_note = paragraph(f"{hidden} more are not shown.", "dim") if hidden > 0 else ""
    return Section("gripper", "Gripper", "".join(parts) + hidden_note, drawn)


def _event_frames(playback: Playback, events: Sequence[tuple[int, str]]) -> str:
    shown: list[str] = []
    for step, kind in events:
        if len(shown) >= MOST_EVENT_FRAMES:
            break
        frames = playback.frames(step)
        for name, frame in frames.items():
            camera = _of_camera(name, frames)
            alt = f"camera frame at step {step}, where the gripper {kind}s{camera}"
            shown.append(picture(frame, alt, f"step {step}: {kind}s{camera}"))
    return f'<div class="frames">{"".join(shown)}</div>' if shown else ""


def _of_camera(name: str, cameras: Collection[str]) -> str:
    """Returns the name of a camera to append to a caption, if there are several."""
    return f", {name}" if len(cameras) > 1 else ""
