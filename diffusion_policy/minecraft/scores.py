"""Scores of VPT's actions, and those of two trivial policies: always the most frequent action, and the previous one.

Actions are compared as VPT can express them: opposite buttons cancel, and turns fall into 11 bins per axis.

Legend of shapes: N frames, 22 numbers of an action in the order of ``VPT_ACTION``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_policy.minecraft.actions import BUTTONS, Factored, IntArray, degrees_of, quantize, to_factored, to_joint

FloatArray = NDArray[np.floating]
_BUTTONS = slice(0, len(BUTTONS))


def score_actions(predicted: FloatArray, recorded: FloatArray) -> dict[str, float]:
    """Accuracies, and the F1 of each button that is pressed in either; (N, 22) each.

    Returns:
        accuracy_buttons (all 20 right), accuracy_camera (both bins right), accuracy_camera_pitch, accuracy_camera_yaw,
        f1_BUTTON, and f1: the mean over the buttons that were recorded; undefined values are left out.
    """
    (found, turned), (wanted, turns) = (_as_given(numbers) for numbers in (predicted, recorded))
    scores = {
        "accuracy_buttons": (found == wanted).all(axis=-1).mean(),
        "accuracy_camera": (turned == turns).all(axis=-1).mean(),
        **dict(zip(("accuracy_camera_pitch", "accuracy_camera_yaw"), (turned == turns).mean(axis=0), strict=True)),
    }
    hits, pressed, expected = (found & wanted).sum(axis=0), found.sum(axis=0), wanted.sum(axis=0)
    for name, right, all_found, all_wanted in zip(BUTTONS, hits, pressed, expected, strict=True):
        if all_found + all_wanted:
            scores[f"f1_{name}"] = 2 * right / (all_found + all_wanted)
    recorded_ones = [scores[f"f1_{name}"] for name, count in zip(BUTTONS, expected, strict=True) if count]
    if recorded_ones:
        scores["f1"] = np.mean(recorded_ones)
    return {name: float(value) for name, value in scores.items()}


def most_frequent(actions: FloatArray) -> FloatArray:
    """(22,) the most frequent combination of buttons, and the most frequent turn, of actions (N, 22)."""
    joint = to_joint(Factored(*_as_given(actions)))
    usual = {name: np.bincount(values).argmax() for name, values in joint.items()}
    buttons, camera = to_factored(usual)
    return np.concatenate([buttons, degrees_of(camera)])


def previous(actions: FloatArray, first: NDArray[np.bool_]) -> FloatArray:
    """(N, 22) the action of the previous frame; where an episode starts (N,), nothing is pressed."""
    before = np.roll(actions, 1, axis=0)
    before[first] = 0
    return before


def _as_given(numbers: FloatArray) -> tuple[IntArray, IntArray]:
    """Buttons (N, 20) of 0 and 1, and bins (N, 2), in the form of the joint coding."""
    factored = Factored((numbers[:, _BUTTONS] > 0.5).astype(np.int64), quantize(numbers[:, len(BUTTONS) :]))
    buttons, camera = to_factored(to_joint(factored))
    return buttons, camera
