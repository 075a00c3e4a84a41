"""Actions of VPT against tables and examples that upstream computed, and against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_policy.minecraft.actions import (
    BUTTONS,
    GROUPS,
    MIDDLE,
    N_BUTTONS,
    N_CAMERA,
    NULL,
    Factored,
    MinecraftError,
    degrees_of,
    from_environment,
    quantize,
    to_environment,
    to_factored,
    to_joint,
)

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "vpt"
CASES: dict[str, Any] = json.loads((SHARED / "action_cases.json").read_text()) if SHARED.is_dir() else {}
needs_tables = pytest.mark.skipif(not CASES, reason="tables that upstream computed are not on this machine")


@needs_tables
def test_names_and_groups_are_upstreams():
    assert list(BUTTONS) == CASES["buttons_all"]
    assert {name: list(choices) for name, choices in GROUPS.items()} == CASES["groups"]


@needs_tables
def test_every_joint_number_is_factored_as_upstream_does():
    tables = np.load(SHARED / "action_tables.npz")
    factored = to_factored({"buttons": np.arange(N_BUTTONS), "camera": np.full(N_BUTTONS, 3)})
    np.testing.assert_array_equal(factored.buttons, tables["button_idx_to_factored"])
    off = (factored.camera == MIDDLE).all(axis=-1)
    np.testing.assert_array_equal(off, tables["button_idx_camera_meta_off"])
    turned = to_factored({"buttons": np.ones(N_CAMERA, dtype=int), "camera": np.arange(N_CAMERA)})
    np.testing.assert_array_equal(turned.camera, tables["camera_idx_to_factored"])
    np.testing.assert_allclose(degrees_of(np.arange(11)), tables["camera_bin_degrees"], atol=1e-9)


@needs_tables
def test_bins_change_where_upstreams_do():
    edges = np.load(SHARED / "action_tables.npz")["camera_bin_edges_deg"]
    below, above = quantize(edges - 2e-5), quantize(edges + 2e-5)
    np.testing.assert_array_equal(above - below, np.ones(10, dtype=int))


@pytest.mark.parametrize("name", CASES.get("cases", {}))
def test_examples_of_upstream(name: str):
    case = CASES["cases"][name]
    joint = to_joint(from_environment(case["env"]))
    assert {key: int(value) for key, value in joint.items()} == case["joint"]
    back = to_environment(to_factored(joint))
    pressed = {key: value for key, value in back.items() if key != "camera" and value}
    assert pressed == {key: value for key, value in case["back"].items() if key != "camera"}
    np.testing.assert_allclose(back["camera"], case["back"]["camera"], atol=1e-4)


def test_every_joint_action_that_means_something_comes_back():
    rng = np.random.default_rng(0)
    joint = {"buttons": np.arange(N_BUTTONS), "camera": rng.integers(0, N_CAMERA, N_BUTTONS)}
    again = to_joint(to_factored(joint))
    factored = to_factored(joint)
    # An odd number means that the camera moves; with both bins in the middle it does not, and the number below means
    # that.
    moves = (factored.camera != MIDDLE).any(axis=-1)
    expected = np.where((joint["buttons"] < N_BUTTONS - 1) & ~moves, joint["buttons"] // 2 * 2, joint["buttons"])
    np.testing.assert_array_equal(again["buttons"], expected)


def test_nothing_pressed_is_the_null_action():
    assert {key: int(value) for key, value in to_joint(from_environment({})).items()} == NULL


def test_degrees_come_back_from_their_bins():
    np.testing.assert_array_equal(quantize(degrees_of(np.arange(11))), np.arange(11))
    np.testing.assert_array_equal(quantize([-500.0, 500.0]), [0, 10])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_environment({"ESC": 1}), "VPT has no button ESC"),
        (lambda: from_environment({"camera": [1.0]}), "expected .pitch, yaw. in degrees"),
        (lambda: from_environment({"camera": [np.nan, 0.0]}), "expected .pitch, yaw. in degrees"),
        (lambda: to_factored({"buttons": [8641], "camera": [0]}), "expected 0 to 8640"),
        (lambda: to_factored({"buttons": [1], "camera": [121]}), "expected 0 to 120"),
        (lambda: to_factored({"buttons": [1, 2], "camera": [1]}), "expected equal shapes"),
        (lambda: to_joint(Factored(np.zeros(19), np.zeros(2))), r"expected \(..., 20\)"),
        (lambda: to_joint(Factored(np.zeros(20), np.array([11, 0]))), "expected 0 to 10"),
    ],
)
def test_invalid_actions_are_refused(call: Any, message: str):
    with pytest.raises(MinecraftError, match=message):
        call()
