"""One episode as a picture: recorded and predicted commands, a panel for each action dimension.

grey   recorded             the gripper's panel also shows the dead band (open >= 0.7, closed <= 0.3)
blue   predicted, chunk after chunk as the robot executes them
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from diffusion_policy.evaluate.events import GRIPPER_BAND
from diffusion_policy.spec import GRIPPER
from diffusion_policy.workspace.validation import EpisodePrediction

WIDTH, HEIGHT, MARGIN = 640, 72, 8
LABEL_WIDTH = 96
RECORDED, PREDICTED, BAND, INK = (150, 150, 150), (30, 90, 200), (225, 225, 225), (60, 60, 60)
# Ranges smaller than this are drawn as flat lines, not blown up to full height.
SMALLEST_RANGE = 0.01

Image = NDArray[np.uint8]


def draw_episode(prediction: EpisodePrediction, names: Sequence[str]) -> Image:
    """RGB picture (D * HEIGHT, WIDTH, 3) of one episode's commands."""
    panels = [_panel(prediction.recorded[:, i], prediction.predicted[:, i], name) for i, name in enumerate(names)]
    return np.concatenate(panels)


def _panel(recorded: NDArray[np.float64], predicted: NDArray[np.float64], name: str) -> Image:
    canvas = np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8)
    both = np.concatenate([recorded, predicted])
    low, high = (0.0, 1.0) if name == GRIPPER else (float(both.min()), float(both.max()))
    if high - low < SMALLEST_RANGE:
        low, high = low - SMALLEST_RANGE / 2, high + SMALLEST_RANGE / 2
    if name == GRIPPER:
        for level in (GRIPPER_BAND.open, GRIPPER_BAND.closed):
            _draw(canvas, _line(np.full(len(recorded), level), low, high), BAND, 1)
    _draw(canvas, _line(recorded, low, high), RECORDED, 3)
    _draw(canvas, _line(predicted, low, high), PREDICTED, 2)
    for text, y in ((name, HEIGHT // 2), (f"{low:.3g} .. {high:.3g}", HEIGHT // 2 + 16)):
        cv2.putText(canvas, text, (4, y), cv2.FONT_HERSHEY_SIMPLEX, 0.36, INK, 1, cv2.LINE_AA)
    return canvas


def _draw(canvas: Image, line: NDArray[np.int32], colour: tuple[int, int, int], thickness: int) -> None:
    cv2.polylines(canvas, [line], isClosed=False, color=colour, thickness=thickness, lineType=cv2.LINE_AA)


def _line(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.int32]:
    """(N, 1, 2) pixel positions."""
    x = np.linspace(LABEL_WIDTH, WIDTH - MARGIN, len(values))
    y = HEIGHT - MARGIN - np.clip((values - low) / (high - low), -0.1, 1.1) * (HEIGHT - 2 * MARGIN)
    return np.stack([x, y], axis=-1).round().astype(np.int32)[:, None]
