"""The figures of a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffusion_policy.intervals import wilson_interval

# Okabe and Ito's palette, safe for the color-blind.
COLORS = ("#000000", "#D55E00", "#009E73", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
PANELS = {
    "val_loss": "held-out loss",
    "val_position_error_mm": "position error (mm)",
    "val_gripper_f1": "gripper F1",
    "success": "success in closed loop",
}


def draw_curves(study: dict[str, Any], arms: Sequence[str], path: Path) -> None:
    """Draws four figures over updates, in a row for each number of demonstrations: means and ranges over seeds."""
    counts = sorted({training["demonstrations"] for training in study["trainings"]})
    figure = Figure(figsize=(13, 2.9 * len(counts) + 0.5), layout="constrained")
    axes = figure.subplots(len(counts), len(PANELS), squeeze=False, sharex=True)
    for row, count in zip(axes, counts, strict=True):
        for (name, title), panel in zip(PANELS.items(), row, strict=True):
            for arm, color in zip(arms, COLORS, strict=False):
                _band(panel, _values(study, arm, count, name), arm, color)
            panel.set_title(f"{title}, {count} demonstrations", fontsize=9)
            panel.grid(alpha=0.3)
            if name == "val_loss":
                panel.set_yscale("log")
            elif name != "val_position_error_mm":
                panel.set_ylim(-0.03, 1.03)
    for panel in axes[-1]:
        panel.set_xlabel("updates")
    handles, labels = axes[-1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(arms), frameon=False, fontsize=9)
    save(figure, path)


def _values(study: dict[str, Any], arm: str, count: int, name: str) -> dict[int, list[float]]:
    """Returns the values of all seeds, by update."""
    found: dict[int, list[float]] = {}
    if name == "success":
        for record in study["records"]:
            if (record["arm"], record["demonstrations"], record["broken"]) == (arm, count, None):
                loop = record["closed_loop"]
                found.setdefault(record["update"], []).append(loop["success"] / loop["of"])
        return found
    for training in study["trainings"]:
        if (training["arm"], training["demonstrations"]) == (arm, count):
            for point in training["curves"]:
                if name in point:
                    found.setdefault(point["global_step"], []).append(point[name])
    return found


def _band(panel: Axes, values: dict[int, list[float]], label: str, color: str) -> None:
    if not values:
        return
    updates = sorted(values)
    panel.plot(updates, [np.mean(values[u]) for u in updates], color=color, marker=".", label=label)
    low, high = ([choose(values[u]) for u in updates] for choose in (min, max))
    panel.fill_between(updates, low, high, color=color, alpha=0.15, linewidth=0)


def draw_success(study: dict[str, Any], path: Path) -> None:
    """Draws the final success of every arm with its interval, and each seed as a dot."""
    rows = sorted(study["finals"], key=lambda row: (row["demonstrations"], row["success"]["count"]))
    figure = Figure(figsize=(8.5, 0.34 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        done, of = row["success"]["count"], row["success"]["of"]
        low, high = wilson_interval(done, of)
        axes.plot([low, high], [place, place], color="#0072B2", linewidth=3, alpha=0.4)
        axes.plot(done / of, place, "o", color="#0072B2")
        axes.plot(row["success_by_seed"], [place] * len(row["seeds"]), "|", color="#000000", markersize=9)
    axes.set_yticks(range(len(rows)), [f"{row['arm']}, {row['demonstrations']}" for row in rows], fontsize=8)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("block in the tray, share of scenes: all seeds with 95 % interval; a line for each seed")
    axes.grid(axis="x", alpha=0.3)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """As PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))
