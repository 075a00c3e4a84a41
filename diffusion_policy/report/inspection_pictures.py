"""Pictures of recordings or of a dataset, to check before training: one file each, named in PICTURES.

Drawn without a display. Colors are those of the report's page.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from diffusion_policy.command_line import Stopped
from diffusion_policy.dataset.replay_buffer import ACTION_KEY, GRIPPER_KEY, POSE_KEY, TIMESTAMP_KEY
from diffusion_policy.diagnose.arm_paths import arm_paths, buttons
from diffusion_policy.diagnose.inspection import Inspection
from diffusion_policy.diagnose.steps import FloatArray, Steps
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.gripper_events import gripper_events
from diffusion_policy.recording.contract import true_runs
from diffusion_policy.report.figures import GOOD, MEASURED, OTHER, PREDICTED, RECORDED
from diffusion_policy.spec import GRIPPER, ImageArray
from diffusion_policy.spec.action_layout import is_gripper_name
from diffusion_policy.storage import atomic_file

# Rows (episodes) and columns (moments) of the contact sheet, and the size of its frames.
SHEET_EPISODES, SHEET_MOMENTS, SHEET_FRAME = 6, 6, (240, 135)
CURVE_EPISODES = 3
TIMELINE_EPISODES = 60
BINS = 36
_OPEN, _CLOSED, _UNKNOWN = "#d9e6f2", PREDICTED, "#e3e3e3"
_ROTATIONS = {"quaternion": "quaternion", "rotation_vector": "radians"}
_COLORS = (PREDICTED, MEASURED, GOOD, OTHER, "#d1495b", "#5fa8a8", "#b59a3b")


def draw_pictures(inspection: Inspection, folder: Path) -> list[Path]:
    """Writes every picture that can be drawn, and returns the files.

    Raises:
        StorageError: the folder cannot be written to.
        Stopped: interrupted after some files were written.
    """
    written: list[Path] = []
    try:
        for name, draw in PICTURES.items():
            figure = draw(inspection)
            if figure is not None:
                written.append(_save(figure, folder / name))
    except KeyboardInterrupt as error:
        if not written:
            raise
        raise Stopped(f"written: {', '.join(map(str, written))}") from error
    return written


def contact_sheet(inspection: Inspection) -> Figure | None:
    """Draws the first camera's frames of episodes spread over the set, one row each, from first to last step."""
    steps = inspection.steps
    if not steps.cameras:
        return None
    chosen = _spread(len(steps.episode_names), SHEET_EPISODES)
    width, height = SHEET_FRAME
    figure = Figure(
        figsize=(SHEET_MOMENTS * width / 100, len(chosen) * (height / 100 + 0.25) + 0.3), layout="compressed"
    )
    grid = figure.subplots(len(chosen), SHEET_MOMENTS, squeeze=False)
    name = next(iter(steps.cameras))
    for row, episode in zip(grid, chosen, strict=True):
        part = steps.slices[episode]
        for axes, step in zip(row, np.linspace(part.start, part.stop - 1, SHEET_MOMENTS).astype(int), strict=True):
            frame, why = _frame(steps, name, int(step))
            if frame is None:
                axes.text(0.5, 0.5, why, ha="center", va="center", color="#d1495b", fontsize=8)
                axes.set_facecolor("#eeeeee")
            else:
                axes.imshow(frame)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{steps.episode_names[episode]}, step {step - part.start}", fontsize=7, pad=2)
    figure.suptitle(f"camera {name}", fontsize=9)
    return figure


def _frame(steps: Steps, camera: str, step: int) -> tuple[ImageArray | None, str]:
    try:
        frame = steps.cameras[camera].frame(step, *SHEET_FRAME)
    except WorkspaceError:
        return None, "does not decode"
    return (None, "no image") if frame is None else (frame.frame, "")


def action_curves(inspection: Inspection) -> Figure | None:
    """Draws poses or joints and gripper events over time, commanded and measured, of the episodes with most events."""
    steps = inspection.steps
    counts = [len(episode.events) for episode in inspection.details.episodes]
    chosen = sorted(np.argsort(counts, kind="stable")[::-1][:CURVE_EPISODES].tolist())
    rows = _curve_rows(steps)
    if not rows:
        return None
    figure = Figure(figsize=(4.6 * len(chosen), 2.3 * len(rows) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), len(chosen), squeeze=False, sharex="col", sharey="row")
    for column, episode in zip(grid.T, chosen, strict=True):
        times = _times(steps, episode)
        for axes, (wanted, unit) in zip(column, rows, strict=True):
            _curves(axes, steps, steps.slices[episode], times, wanted)
            axes.set_ylabel(unit if episode == chosen[0] else "")
            for step, kind in inspection.details.episodes[episode].events:
                axes.axvline(times[step], color=MEASURED if kind == "close" else GOOD, lw=0.8, alpha=0.7, zorder=0)
        column[0].set_title(steps.episode_names[episode], fontsize=9)
        column[-1].set_xlabel("seconds" if TIMESTAMP_KEY in steps.numbers else "step")
    for axes in grid[:, -1]:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.suptitle(
        "commanded (solid) and measured (dotted); vertical lines: gripper closes (orange), opens (green)", fontsize=9
    )
    return figure


def _curve_rows(steps: Steps) -> list[tuple[tuple[str, ...], str]]:
    """Returns names of numbers drawn together, and their unit: each arm's position, rotation, joints, gripper."""
    layout = steps.layout(ACTION_KEY)
    if layout is None:
        return []
    motions: list[tuple[tuple[int, ...], str, str]] = []
    grippers: list[tuple[tuple[int, ...], str, str]] = []
    for arm in layout.arms:
        motions.append((arm.position, "meters", arm.name))
        motions.append((arm.rotation, _ROTATIONS.get(str(arm.representation), "6-D rotation"), arm.name))
        motions.append((arm.joints, layout.joint_unit, arm.name))
        grippers.append((arm.gripper, "1 = open", arm.name))
    named = [
        (tuple(layout.names[column] for column in columns), f"{arm}: {unit}" if arm else unit)
        for columns, unit, arm in (*motions, *grippers)
        if columns
    ]
    return [row for row in named if all(steps.column(ACTION_KEY, name) is not None for name in row[0])]


def _curves(axes: Axes, steps: Steps, part: slice, times: FloatArray, wanted: Sequence[str]) -> None:
    for name, color in zip(wanted, itertools.cycle(_COLORS), strict=False):
        is_gripper = is_gripper_name(name)
        # The two coincide if a recorder writes one value for both.
        measured_curve = (_measured(steps, name), ":", MEASURED if is_gripper else color, None)
        for values, line, drawn, label in ((steps.column(ACTION_KEY, name), "-", color, name), measured_curve):
            if values is not None:
                shape = "steps-post" if is_gripper else "default"
                axes.plot(times, values[part], line, lw=1.4, color=drawn, drawstyle=shape, label=label)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)


def _measured(steps: Steps, name: str) -> FloatArray | None:
    """Returns (N,) a measured number; the bare name "gripper" counts only in the array named after it."""
    usual = (GRIPPER_KEY,) if name == GRIPPER else (POSE_KEY, *steps.measured_keys, *sorted(steps.names))
    columns = (steps.column(key, name) for key in usual if key != ACTION_KEY)
    return next((column for column in columns if column is not None), None)


def workspace(inspection: Inspection) -> Figure | None:
    """Draws where each arm has been, from above, front and side, and where its gripper closes and opens."""
    steps = inspection.steps
    ways = arm_paths(steps)
    if not ways:
        return None
    figure = Figure(figsize=(12, 3.8 * len(ways)), layout="constrained")
    views = ((0, 1, "from above"), (1, 2, "from the front"), (0, 2, "from the side"))
    for row, (arm, position) in zip(figure.subplots(len(ways), 3, squeeze=False), sorted(ways.items()), strict=True):
        for axes, (across, up, title) in zip(row, views, strict=True):
            x, y = position[:, across], position[:, up]
            # The lightest blue is one step, so that a place visited once is visible too.
            picture = axes.hist2d(x, y, bins=BINS, cmap="Blues", cmin=1, norm=LogNorm(vmin=0.3))[3]
            for kind, color, marker in (("close", MEASURED, "v"), ("open", GOOD, "^")):
                at = _events(inspection, kind, arm)
                axes.scatter(x[at], y[at], c=color, marker=marker, s=22, label=f"{kind}s", lw=0)
            whose = f"{arm}, {title}" if arm else title
            axes.set(xlabel=f"{'xyz'[across]} (m)", ylabel=f"{'xyz'[up]} (m)", title=whose)
            axes.set_aspect("equal", adjustable="datalim")
            figure.colorbar(picture, ax=axes, label="steps", shrink=0.8)
        axes.legend(fontsize=8)
    return figure


def _events(inspection: Inspection, wanted: str, arm: str) -> list[int]:
    """Returns the steps at which an arm's gripper is commanded to open, or to close."""
    steps = inspection.steps
    command = steps.column(ACTION_KEY, f"{arm}.{GRIPPER}" if arm else GRIPPER)
    if command is None:
        return []
    by_episode = ((part.start, gripper_events(np.nan_to_num(command[part]))) for part in steps.slices)
    return [start + step for start, events in by_episode for step, kind in events if kind == wanted]


def episode_timeline(inspection: Inspection) -> Figure | None:
    """Draws every episode as a bar (light: gripper commanded open; dark: closed) with pauses, jumps and gaps."""
    steps, details = inspection.steps, inspection.details
    shown = _spread(len(details.episodes), TIMELINE_EPISODES)
    commands, pressed = steps.commanded_grippers(), buttons(steps)
    figure = Figure(figsize=(10, 1.3 + 0.22 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for row, episode in enumerate(shown):
        part, seen = steps.slices[episode], details.episodes[episode]
        closed = np.zeros(seen.steps, dtype=bool) if commands is None else np.any(commands[part] < 0.5, axis=1)
        edges = [0, *(np.flatnonzero(np.diff(closed)) + 1).tolist(), seen.steps]
        for start, end in itertools.pairwise(edges):
            state = _UNKNOWN if commands is None else _CLOSED if closed[start] else _OPEN
            axes.barh(row, end - start, left=start, height=0.8, color=state)
        for start, end in (
            seen.idle if not pressed else true_runs(~np.any(steps.numbers[ACTION_KEY][part] != 0, axis=1))
        ):
            axes.barh(row, end - start, left=start, height=0.8, color="none", hatch="////", edgecolor=RECORDED, lw=0)
        for marker, at in (("x", _at(details.jumps, seen.name)), ("|", _gaps(inspection, seen.name))):
            axes.plot(at, [row] * len(at), marker, color="#d1495b", ms=6, ls="")
    axes.set_yticks(range(len(shown)), [steps.episode_names[episode] for episode in shown], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="step")
    robot = "dark: gripper commanded closed; hatched: idle; red x: jump of the pose; red bar: gap in time"
    title = "hatched: nothing is pressed and nothing turns; red bar: gap in time" if pressed else robot
    axes.set_title(title, fontsize=9)
    return figure


def _at(jumps: Sequence[Any], episode: str) -> list[int]:
    return [jump.step for jump in jumps if jump.episode == episode]


def _gaps(inspection: Inspection, episode: str) -> list[int]:
    times = inspection.details.times
    return [] if times is None else [step for name, step, _ in times.gaps if name == episode]


def _times(steps: Steps, episode: int) -> FloatArray:
    part = steps.slices[episode]
    if TIMESTAMP_KEY not in steps.numbers:
        return np.arange(part.stop - part.start, dtype=np.float64)
    times = steps.numbers[TIMESTAMP_KEY][part]
    return times - times[0]


def _spread(n: int, at_most: int) -> list[int]:
    """Returns numbers below n, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, at_most)).astype(int)).tolist()


def _save(figure: Figure, path: Path) -> Path:
    with atomic_file(path) as temporary:
        FigureCanvasAgg(figure).print_figure(str(temporary), dpi=100, format="png")
    return path


PICTURES: dict[str, Callable[[Inspection], Figure | None]] = {
    "sample_images.png": contact_sheet,
    "action_trajectory.png": action_curves,
    "workspace.png": workspace,
    "episode_timeline.png": episode_timeline,
}
"""Files, and the functions that draw them, which return None if the set has nothing to draw."""
