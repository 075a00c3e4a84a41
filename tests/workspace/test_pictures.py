"""One episode as a picture."""

import numpy as np

from diffusion_policy.spec import POSE_GRIPPER
from diffusion_policy.workspace.pictures import HEIGHT, PREDICTED, RECORDED, WIDTH, draw_episode
from diffusion_policy.workspace.validation import EpisodePrediction


def test_each_dimension_has_a_panel_with_both_lines():
    recorded = np.linspace(0, 1, 20)[:, None] * np.ones(8)
    predicted = recorded * 0.5
    nothing = np.empty((0, 8, 8))
    image = draw_episode(
        EpisodePrediction(3, predicted, recorded, nothing, nothing, np.empty((0, 8), dtype=bool)), POSE_GRIPPER
    )
    assert image.shape == (8 * HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    for panel in np.split(image, 8):
        for colour in (RECORDED, PREDICTED):
            assert (panel == colour).all(axis=-1).sum() > 20


def test_a_constant_is_a_flat_line():
    constant = np.full((20, 8), 0.25)
    nothing = np.empty((0, 8, 8))
    image = draw_episode(
        EpisodePrediction(0, constant, constant, nothing, nothing, np.empty((0, 8), dtype=bool)), POSE_GRIPPER
    )
    rows, _ = np.nonzero((image[:HEIGHT] == PREDICTED).all(axis=-1))
    assert HEIGHT // 2 - 1 <= min(rows) <= max(rows) <= HEIGHT // 2 + 1
