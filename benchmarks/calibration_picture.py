"""Success in closed loop against figures from recordings, with a dot for every policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from study_figures import save  # type: ignore[import-not-found]

SHOWN = ("position_mm", "first_step_mm", "grasp_mm", "gripper_f1", "open_and_close", "val_loss")
# Okabe and Ito's palette, safe for the color-blind.
YES, NO, BROKEN = "#0072B2", "#D55E00", "#999999"


def draw(found: dict[str, Any], figures: Sequence[Any], path: Path) -> None:
    """Draws six figures with a dot for each policy, by verdict; policies broken on purpose are marked separately."""
    titles = {figure.name: figure.title for figure in figures}
    drawing = Drawing(figsize=(12, 7), layout="constrained")
    panels = drawing.subplots(2, 3).flat
    for name, panel in zip(SHOWN, panels, strict=True):
        _panel(panel, found, name)
        panel.set_xlabel(titles[name], fontsize=9)
        panel.set_ylabel("success in closed loop", fontsize=9)
    handles, labels = drawing.axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    save(drawing, path)


def _panel(panel: Axes, found: dict[str, Any], name: str) -> None:
    kinds = (
        ("all logs open and close", YES, "o", lambda p: p["yes"] and p["broken"] is None),
        ("another verdict", NO, "X", lambda p: not p["yes"] and p["broken"] is None),
        ("broken on purpose, opens and closes", BROKEN, "s", lambda p: p["yes"] and p["broken"] is not None),
        ("broken on purpose, another verdict", BROKEN, "x", lambda p: not p["yes"] and p["broken"] is not None),
    )
    for label, color, marker, belongs in kinds:
        chosen = [policy for policy in found["by_policy"] if policy[name] is not None and belongs(policy)]
        x, y = ([policy[key] for policy in chosen] for key in (name, "success"))
        if chosen:
            panel.scatter(x, y, c=color, marker=marker, s=22, alpha=0.7, label=label, linewidths=0.8)
    threshold = found["figures"][name]["threshold"]
    if threshold is not None:
        panel.axvline(threshold, color="#000000", linewidth=0.8, linestyle=":")
    panel.axhline(found["succeeds"], color="#000000", linewidth=0.8, linestyle=":")
    if name in ("position_mm", "first_step_mm", "grasp_mm", "val_loss"):
        ticks = (0.01, 0.02, 0.05, 0.1) if name == "val_loss" else (10, 20, 40, 80)
        panel.set_xscale("log")
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.set_xticks([], minor=True)
    panel.set_ylim(-0.04, 1.04)
    panel.grid(alpha=0.3)
