"""Plotly figures from arrays. The page sets the colors of axes and text, for light and dark themes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from diffusion_policy.diagnose.playback import Playback
from diffusion_policy.env_runner.outcomes import ACROSS, AHEAD, cells
from diffusion_policy.env_runner.outcomes import outcomes as outcomes_of
from diffusion_policy.env_runner.results import SceneResult
from diffusion_policy.gripper_events import GRIPPER_BAND, Event

FloatArray = NDArray[np.float64]
Curve = Sequence[tuple[int, float]]

# Distinguishable on screen and in print, on white and on black: blue, orange, green, purple; gray for recordings.
PREDICTED, MEASURED, GOOD, OTHER, RECORDED = "#2f86d1", "#e07b1a", "#2a9d6f", "#a06cd5", "#8b929c"
PALETTE = (PREDICTED, MEASURED, GOOD, OTHER, "#d1495b", "#5fa8a8", "#b59a3b", RECORDED)
SYMBOLS = ("circle", "x", "square", "triangle-up", "triangle-down", "diamond", "cross", "star", "hexagon")
DASHES = ("solid", "dash", "dot", "dashdot")
# Number of chunks drawn in three dimensions, evenly spread.
DRAWN_CHUNKS = 40
# Shorter latencies are drawn as this.
SHORTEST_MS = 0.01


def base(title: str, x: str = "", y: str = "", **layout: Any) -> go.Figure:
    """Returns an empty figure with titled axes."""
    figure = go.Figure()
    figure.update_layout(
        title={"text": title, "font": {"size": 14}, "x": 0.01, "y": 0.97},
        margin={"l": 56, "r": 14, "t": 64, "b": 44},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0, "font": {"size": 11}},
        xaxis={"title": {"text": x, "standoff": 6}},
        yaxis={"title": {"text": y, "standoff": 6}},
        hovermode="x unified",
        **layout,
    )
    return figure


def line(
    figure: go.Figure,
    x: Any,
    y: Any,
    name: str,
    color: str,
    *,
    dash: str = "solid",
    width: float = 1.8,
    **options: Any,
) -> None:
    """Add a line."""
    shown = {"mode": "lines", "name": name, "line": {"color": color, "dash": dash, "width": width}, **options}
    figure.add_trace(go.Scatter(x=list(x), y=_plain(y), **shown))


def curves(
    title: str, lines: Mapping[str, Curve], unit: str, *, logarithmic: bool = False, start: float | None = None
) -> go.Figure:
    """Draws training curves over updates; `start` is the value before the first update."""
    figure = base(title, "update", unit)
    for i, (name, curve) in enumerate(lines.items()):
        steps, values = [step for step, _ in curve], [value for _, value in curve]
        mode = "lines+markers" if len(curve) < 30 else "lines"
        dash = DASHES[(i // len(PALETTE)) % len(DASHES)]
        line(figure, steps, values, name, PALETTE[i % len(PALETTE)], mode=mode, dash=dash)
    if start is not None:
        last = max((curve[-1][0] for curve in lines.values()), default=1)
        line(figure, [0, last], [start, start], "before the first update", RECORDED, dash="dash")
    figure.update_yaxes(exponentformat="power")
    if not logarithmic:
        figure.update_yaxes(rangemode="tozero")
    if logarithmic:
        figure.update_yaxes(type="log")
    return figure


def shares(title: str, lines: Mapping[str, tuple[Curve, Curve, Curve]]) -> go.Figure:
    """Draws shares over updates with 95 % intervals: name -> (value, low, high); no bar where no interval is known."""
    figure = base(title, "update", "share")
    for i, (name, (middle, low, high)) in enumerate(lines.items()):
        color = PALETTE[i % len(PALETTE)]
        known_low, known_high = dict(low), dict(high)
        steps = [step for step, _ in middle]
        values = [value for _, value in middle]
        error = {
            "type": "data",
            "symmetric": False,
            "array": [known_high[s] - v if s in known_high else None for s, v in middle],
            "arrayminus": [v - known_low[s] if s in known_low else None for s, v in middle],
            "thickness": 1,
            "width": 4,
        }
        line(figure, steps, values, name, color, mode="lines+markers", error_y=error)
    figure.update_yaxes(range=[-0.02, 1.05])
    return figure


def gripper_timeline(playback: Playback, events: Sequence[Event], recorded_events: Sequence[Event]) -> go.Figure:
    """Draws the commanded, measured and recorded gripper over steps, with the dead band and the events."""
    figure = base(playback.name, "step", "gripper (1 = open)")
    steps = np.arange(len(playback))
    if playback.recorded is not None:
        line(figure, steps, playback.recorded, "recorded command", RECORDED, width=3, line_shape="hv")
    if playback.measured is not None:
        line(figure, steps, playback.measured, "measured", MEASURED, dash="dot", width=1.3, line_shape="hv")
    name = "predicted command" if playback.predicted else "recorded command"
    if playback.commands is not None:
        line(figure, steps, playback.commands, name, PREDICTED)
    for marks, color, label in ((recorded_events, RECORDED, "recorded event"), (events, PREDICTED, "event")):
        if marks:
            symbols = ["triangle-down" if kind == "close" else "triangle-up" for _, kind in marks]
            figure.add_trace(
                go.Scatter(
                    x=[step for step, _ in marks], y=[1.12 if label == "event" else -0.12] * len(marks), name=label,
                    mode="markers", marker={"symbol": symbols, "size": 10, "color": color},
                    hovertext=[kind for _, kind in marks],
                )
            )  # fmt: skip
    figure.add_hrect(y0=GRIPPER_BAND.closed, y1=GRIPPER_BAND.open, fillcolor=RECORDED, opacity=0.12, line_width=0)
    figure.update_yaxes(range=[-0.2, 1.22], tickvals=[0, GRIPPER_BAND.closed, GRIPPER_BAND.open, 1])
    return figure


def horizon_errors(
    title: str, lines: Mapping[str, Sequence[float | None]], unit: str, spread: Sequence[float] | None = None
) -> go.Figure:
    """Draws errors at each step of the chunk; an empty line is left out but keeps its color for other figures.

    `spread`, the spread between samples of one step, is dotted.
    """
    figure = base(title, "step of the chunk", unit)
    for i, (name, values) in enumerate(lines.items()):
        if any(value is not None for value in values):
            steps = np.arange(1, len(values) + 1)
            line(figure, steps, list(values), name, PALETTE[i % len(PALETTE)], mode="lines+markers")
    if spread is not None:
        line(figure, np.arange(1, len(spread) + 1), spread, "spread of the samples", PREDICTED, dash="dot")
    figure.update_yaxes(rangemode="tozero")
    return figure


def bars(title: str, x: Sequence[str], series: Mapping[str, Sequence[float | None]], unit: str) -> go.Figure:
    """Grouped bars."""
    figure = base(title, "", unit, barmode="group")
    for i, (name, values) in enumerate(series.items()):
        figure.add_trace(go.Bar(x=list(x), y=list(values), name=name, marker={"color": PALETTE[i % len(PALETTE)]}))
    return figure


def boxes(title: str, series: Mapping[str, FloatArray], unit: str) -> go.Figure:
    """Draws distributions of milliseconds on a logarithmic axis, one row each, the first on top."""
    figure = base(title, unit, "", showlegend=False)
    for i, (name, values) in enumerate(reversed(list(series.items()))):
        color = PALETTE[(len(series) - 1 - i) % len(PALETTE)]
        drawn = values.clip(SHORTEST_MS).round(3).tolist()
        figure.add_trace(go.Box(x=drawn, name=name, marker={"color": color}, boxpoints="outliers"))
    figure.update_xaxes(type="log")
    figure.update_layout(hovermode="closest", margin={"l": 150, "r": 14, "t": 44, "b": 44})
    return figure


def state_strips(title: str, episodes: Sequence[FloatArray]) -> go.Figure:
    """Draws one row per episode: where its gripper is commanded open, in between, or closed."""
    longest = max(len(values) for values in episodes)
    rows = [[round(float(v), 2) for v in values] + [None] * (longest - len(values)) for values in episodes]
    figure = base(title, "step", "episode", showlegend=False)
    low, high = GRIPPER_BAND.closed, GRIPPER_BAND.open
    scale = [[0, MEASURED], [low, MEASURED], [low, "#d9d2b0"], [high, "#d9d2b0"], [high, "#8fbfe6"], [1, "#8fbfe6"]]
    figure.add_trace(go.Heatmap(z=rows, zmin=0, zmax=1, colorscale=scale, showscale=False, hoverongaps=False, ygap=1))
    figure.update_yaxes(autorange="reversed", dtick=max(1, len(episodes) // 12))
    figure.update_layout(hovermode="closest")
    return figure


def outcomes(title: str, results: Sequence[SceneResult]) -> go.Figure:
    """Draws every scene at its block's position, colored by its outcome, over cells with their share of successes."""
    figure = base(title, ACROSS, AHEAD, hoverlabel={"namelength": -1})
    grid = cells(results)
    counts = [
        [f"{done:.0f} of {total:.0f}" if total else "" for done, total in zip(*row, strict=True)]
        for row in zip(grid.done, grid.total, strict=True)
    ]
    shares = [[None if np.isnan(share) else float(share) for share in row] for row in grid.share]
    shades = [[0, "rgba(139,146,156,0.10)"], [1, "rgba(42,157,111,0.55)"]]
    middles = [(edges[:-1] + edges[1:]) / 2 for edges in (grid.y, grid.x)]
    figure.add_trace(
        go.Heatmap(
            x=_plain(middles[0]), y=_plain(middles[1]), z=shares, zmin=0, zmax=1, colorscale=shades, showscale=False,
            text=counts, texttemplate="%{text}", textfont={"size": 10}, hoverinfo="skip",
        )
    )  # fmt: skip
    for outcome, symbol in zip(outcomes_of(results), cycle(SYMBOLS), strict=False):
        x, y = outcome.points.T
        marker = {"size": 10, "symbol": symbol, "color": outcome.color, "line": {"color": "white", "width": 1}}
        name = f"{outcome.kind} ({len(outcome.points)})"
        scenes = [f"scene {scene}: {outcome.kind}" for scene in outcome.scenes]
        figure.add_trace(
            go.Scatter(
                x=_plain(y), y=_plain(x), name=name, mode="markers", marker=marker, hovertext=scenes, hoverinfo="text"
            )
        )
    figure.update_xaxes(
        autorange="reversed", constrain="domain"
    )  # drawn from the robot's view, in whose frame y points left
    figure.update_yaxes(scaleanchor="x", constrain="domain")
    figure.update_layout(hovermode="closest")
    return figure


def trajectories(title: str, paths: Mapping[str, tuple[FloatArray, str, str]], chunks: FloatArray | None) -> go.Figure:
    """Draws paths in three dimensions: name -> ((N, 3), color, dash); chunks (N, T, 3) as thin lines."""
    figure = go.Figure()
    if chunks is not None:
        chosen = chunks[np.unique(np.linspace(0, len(chunks) - 1, DRAWN_CHUNKS).astype(int))]
        gaps = np.concatenate([chosen, np.full((len(chosen), 1, 3), np.nan)], axis=1).reshape(-1, 3)
        _path(figure, gaps, "predicted chunks", PREDICTED, "solid", 2, opacity=0.55)
    for name, (path, color, dash) in paths.items():
        _path(figure, path, name, color, dash, 5)
    axes = {axis: {"title": {"text": f"{axis[0]} (m)"}} for axis in ("xaxis", "yaxis", "zaxis")}
    figure.update_layout(
        title={"text": title, "font": {"size": 14}, "x": 0.01, "y": 0.98},
        margin={"l": 0, "r": 0, "t": 34, "b": 0},
        legend={"orientation": "h", "y": -0.02, "font": {"size": 11}},
        scene={**axes, "aspectmode": "data", "camera": {"eye": dict.fromkeys("xyz", _distance(paths))}},
    )
    return figure


def _distance(paths: Mapping[str, tuple[FloatArray, str, str]]) -> float:
    """Returns the camera's distance; a long thin path needs a larger one than a cube."""
    spans = np.ptp(np.concatenate([path for path, _, _ in paths.values()]), axis=0).clip(0.02)
    return 1.5 * max(1.0, float(spans.max() / np.cbrt(spans.prod())) / 1.25)


def mark_points(figure: go.Figure, points: FloatArray, name: str, color: str, symbol: str) -> None:
    """Adds markers in three dimensions."""
    if len(points):
        x, y, z = (_plain(column) for column in points.T)
        marker = {"size": 5, "color": color, "symbol": symbol}
        figure.add_trace(go.Scatter3d(x=x, y=y, z=z, mode="markers", name=name, marker=marker))


def _path(
    figure: go.Figure, points: FloatArray, name: str, color: str, dash: str, width: int, opacity: float = 1.0
) -> None:
    x, y, z = (_plain(column) for column in points.T)
    style = {"color": color, "dash": dash, "width": width}
    figure.add_trace(
        go.Scatter3d(x=x, y=y, z=z, mode="lines", name=name, line=style, connectgaps=False, opacity=opacity)
    )


def _plain(values: Any) -> list[Any]:
    """Returns values rounded to what a screen shows, with NaN as gaps."""
    array = np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)
    return [None if not np.isfinite(value) else float(f"{value:.5g}") for value in array]
