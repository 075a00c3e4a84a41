"""Outcomes over the positions of the block, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffusion_policy.env_runner.results import ResultError, SceneResult, reasons_of, success_of

_CELLS = 5
# Okabe and Ito's palette, safe for the color-blind; success first.
_COLORS = ("#009E73", "#D55E00", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442", "#999999")
_MARKERS = ("o", "X", "s", "^", "v", "D", "P", "<", ">")


def draw_outcomes(results: Sequence[SceneResult], title: str, path: Path) -> None:
    """Draw every scene at its position, colored by outcome, over cells with their share of success.

    Raises:
        ResultError: the simulator told no position of any scene, or the picture cannot be written.
    """
    placed = [result for result in results if result.position is not None]
    if not placed:
        raise ResultError("no scene has a position to be drawn at; simulator.info.position names where info holds it")
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    points = np.array([result.position for result in placed])
    _cells(axes, points, np.array([result.success for result in placed]))
    kinds = ["success", *reasons_of(placed)]
    for kind, color, marker in zip(kinds, _repeated(_COLORS, kinds), _repeated(_MARKERS, kinds), strict=True):
        chosen = [result.position for result in placed if (result.reason or "success") == kind]
        if chosen:
            x, y = np.array(chosen).T
            axes.scatter(
                y, x, s=42, c=color, marker=marker, label=f"{kind} ({len(chosen)})", edgecolors="white", zorder=3
            )
    axes.invert_xaxis()  # y points left in the robot's frame: as the robot sees it
    axes.set_xlabel("y of the block, m (left of the robot is left)")
    axes.set_ylabel("x of the block, m (away from the robot)")
    axes.set_title(f"{title}\nsuccess {success_of(placed)}", fontsize=10)
    axes.set_aspect("equal")
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure).print_png(str(path))
    except OSError as error:
        raise ResultError(f"{path}: cannot be written ({error.strerror})") from error


def _cells(axes: object, points: np.ndarray, success: np.ndarray) -> None:
    """Shade each cell by its share of success, with the counts."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = np.maximum(0.04 * (high - low), 0.004)
    edges = [np.linspace(*ends, _CELLS + 1) for ends in zip(low - margin, high + margin, strict=True)]
    total, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=edges)
    done, _, _ = np.histogram2d(points[success, 0], points[success, 1], bins=edges)
    share = np.divide(done, total, out=np.full_like(done, np.nan), where=total > 0)
    axes.pcolormesh(edges[1], edges[0], share, cmap="Greens", vmin=0, vmax=1.4, alpha=0.55, zorder=1)  # type: ignore[attr-defined]
    for row, column in np.argwhere(total > 0):
        x, y = (edges[axis][index : index + 2].mean() for axis, index in ((0, row), (1, column)))
        label = f"{done[row, column]:.0f}/{total[row, column]:.0f}"
        axes.text(y, x, label, ha="center", va="center", fontsize=8, color="#555555", zorder=2)  # type: ignore[attr-defined]


def _repeated(values: Sequence[str], kinds: Sequence[str]) -> list[str]:
    return [values[index % len(values)] for index in range(len(kinds))]
