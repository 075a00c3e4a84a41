"""One episode as a picture."""

import numpy as np

from diffusion_policy.spec import POSE_GRIPPER
from diffusion_policy.workspace.pictures import (
    BAND,
    HEADER,
    HEIGHT,
    LABEL_WIDTH,
    MARGIN,
    PREDICTED,
    RECORDED,
    WIDTH,
    draw_episode,
)
from diffusion_policy.workspace.validation import EpisodePrediction


def prediction(predicted, recorded):
    """Twenty steps in chunks of eight, of which the last is cut off by the end of the episode."""
    nothing = np.empty((3, 8, 8))
    return EpisodePrediction(3, predicted, recorded, nothing, nothing, np.arange(24).reshape(3, 8) < 20)


def test_each_dimension_has_a_panel_with_both_lines():
    recorded = np.linspace(0, 1, 20)[:, None] * np.ones(8)
    predicted = recorded * 0.5
    image = draw_episode(prediction(predicted, recorded), POSE_GRIPPER)
    assert image.shape == (HEADER + 8 * HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    header = image[:HEADER].astype(int)
    assert (header[..., 2] - header[..., 0] > 80).any()  # the label in the color of its line
    for panel in np.split(image[HEADER:], 8):
        for color in (RECORDED, PREDICTED):
            assert (panel == color).all(axis=-1).sum() > 20


def test_a_constant_is_a_flat_line():
    constant = np.full((20, 8), 0.25)
    image = draw_episode(prediction(constant, constant), POSE_GRIPPER)
    rows, _ = np.nonzero((image[HEADER : HEADER + HEIGHT] == PREDICTED).all(axis=-1))
    assert HEIGHT // 2 - 1 <= min(rows) <= max(rows) <= HEIGHT // 2 + 1


def test_a_line_marks_where_a_chunk_begins():
    low = np.zeros((20, 8))
    low[0] = 1  # the lines of the commands run along the bottom
    panel = draw_episode(prediction(low, low), POSE_GRIPPER)[HEADER : HEADER + HEIGHT]
    upright = np.flatnonzero((panel[MARGIN : HEIGHT // 2] == BAND).all(axis=(0, 2)))
    step = (WIDTH - MARGIN - LABEL_WIDTH) / 19
    assert upright.tolist() == [round(LABEL_WIDTH + 8 * step), round(LABEL_WIDTH + 16 * step)]
