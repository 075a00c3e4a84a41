"""One episode as a picture: recorded and predicted commands, one panel per action dimension.

gray   recorded             the gripper's panel also shows the dead band (open >= 0.7, closed <= 0.3)
blue   predicted, chunk after chunk as the robot executes them; a chunk begins at each vertical line
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from diffusion_policy.gripper_events import GRIPPER_BAND
from diffusion_policy.spec.action_layout import is_gripper_name
from diffusion_policy.workspace.validation import EpisodePrediction

WIDTH, HEIGHT, HEADER, MARGIN = 640, 72, 24, 8
LABEL_WIDTH = 96
RECORDED, PREDICTED, BAND, INK = (150, 150, 150), (30, 90, 200), (225, 225, 225), (60, 60, 60)
# Ranges smaller than this are drawn as flat lines, not scaled to full height.
SMALLEST_RANGE = 0.01

Image = NDArray[np.uint8]


def draw_episode(prediction: EpisodePrediction, names: Sequence[str]) -> Image:
    """RGB picture (HEADER + D * HEIGHT, WIDTH, 3) of one episode's commands."""
    starts = np.cumsum(prediction.inside.sum(axis=1))[:-1]  # of all chunks but the first
    header = _blank(HEADER)
    title = f"episode {prediction.episode}, {len(prediction.recorded)} steps, {len(prediction.inside)} chunks:"
    x = _write(header, title, 4, HEADER - 8, INK)
    x = _write(header, "recorded", x + 12, HEADER - 8, RECORDED)
    _write(header, "predicted", x + 12, HEADER - 8, PREDICTED)
    columns = enumerate(names)
    panels = [_panel(prediction.recorded[:, i], prediction.predicted[:, i], name, starts) for i, name in columns]
    return np.concatenate([header, *panels])


def _blank(height: int) -> Image:
    return np.full((height, WIDTH, 3), 255, dtype=np.uint8)


def _write(canvas: Image, text: str, x: int, y: int, color: tuple[int, int, int]) -> int:
    """Write text at (x, y); returns the x at which it ends."""
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.36, 1)
    cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.36, color, 1, cv2.LINE_AA)
    return x + width


def _panel(
    recorded: NDArray[np.float64], predicted: NDArray[np.float64], name: str, starts: NDArray[np.int64]
) -> Image:
    canvas = _blank(HEIGHT)
    for x in _columns(len(recorded))[starts[starts < len(recorded)]]:
        cv2.line(canvas, (int(x), MARGIN), (int(x), HEIGHT - MARGIN), BAND, 1)
    both = np.concatenate([recorded, predicted])
    low, high = (0.0, 1.0) if is_gripper_name(name) else (float(both.min()), float(both.max()))
    if high - low < SMALLEST_RANGE:
        low, high = low - SMALLEST_RANGE / 2, high + SMALLEST_RANGE / 2
    if is_gripper_name(name):
        for level in (GRIPPER_BAND.open, GRIPPER_BAND.closed):
            _draw(canvas, _line(np.full(len(recorded), level), low, high), BAND, 1)
    _draw(canvas, _line(recorded, low, high), RECORDED, 3)
    _draw(canvas, _line(predicted, low, high), PREDICTED, 2)
    for text, y in ((name, HEIGHT // 2), (f"{low:.3g} .. {high:.3g}", HEIGHT // 2 + 16)):
        _write(canvas, text, 4, y, INK)
    return canvas


def _columns(n_steps: int) -> NDArray[np.int64]:
    """Pixel column of each step."""
    return np.linspace(LABEL_WIDTH, WIDTH - MARGIN, n_steps).round().astype(np.int64)


def _draw(canvas: Image, line: NDArray[np.int32], color: tuple[int, int, int], thickness: int) -> None:
    cv2.polylines(canvas, [line], isClosed=False, color=color, thickness=thickness, lineType=cv2.LINE_AA)


def _line(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.int32]:
    """(N, 1, 2) pixel positions."""
    x = _columns(len(values))
    y = HEIGHT - MARGIN - np.clip((values - low) / (high - low), -0.1, 1.1) * (HEIGHT - 2 * MARGIN)
    return np.stack([x, y], axis=-1).round().astype(np.int32)[:, None]
