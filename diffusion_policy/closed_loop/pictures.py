"""A plot of outcomes by position of the block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffusion_policy.env_runner.outcomes import ACROSS, AHEAD, Cells, cells, outcomes, with_position
from diffusion_policy.env_runner.results import ResultError, SceneResult, success_of
from diffusion_policy.storage import atomic_file

_MARKERS = ("o", "X", "s", "^", "v", "D", "P", "<", ">")


def draw_outcomes(results: Sequence[SceneResult], title: str, path: Path) -> None:
    """Plots every scene at its position, colored by outcome, over cells shaded by their success rate.

    Raises:
        ResultError: the simulator reported no position of any scene.
        StorageError: the file cannot be written.
    """
    if not with_position(results):
        raise ResultError(
            "no scene has a position to plot; simulator.info.position names the entry of info that holds it"
        )
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    _shade(axes, cells(results))
    for outcome, marker in zip(outcomes(results), cycle(_MARKERS), strict=False):
        x, y = outcome.points.T
        label = f"{outcome.kind} ({len(outcome.points)})"
        axes.scatter(y, x, s=42, c=outcome.color, marker=marker, label=label, edgecolors="white", zorder=3)
    axes.invert_xaxis()  # y points left in the robot's frame: as the robot sees it
    axes.set_xlabel(ACROSS)
    axes.set_ylabel(AHEAD)
    axes.set_title(f"{title}\nsuccess {success_of(with_position(results))}", fontsize=10)
    axes.set_aspect("equal")
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    with atomic_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def _shade(axes: object, found: Cells) -> None:
    """Shades each cell by its success rate, and labels it with the counts."""
    axes.pcolormesh(found.y, found.x, found.share, cmap="Greens", vmin=0, vmax=1.4, alpha=0.55, zorder=1)  # type: ignore[attr-defined]
    for row, column in np.argwhere(found.total > 0):
        x, y = found.x[row : row + 2].mean(), found.y[column : column + 2].mean()
        label = f"{found.done[row, column]:.0f}/{found.total[row, column]:.0f}"
        axes.text(y, x, label, ha="center", va="center", fontsize=8, color="#555555", zorder=2)  # type: ignore[attr-defined]
