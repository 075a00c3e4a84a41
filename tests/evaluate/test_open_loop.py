"""Errors of chunks: known distances, phases, baselines, and what a copycat scores."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from diffusion_policy.evaluate.open_loop import baselines, phases, sample_spread, score_chunks, transition_error


def chunks(n_steps: int = 6, n_actions: int = 4, width: int = 8) -> np.ndarray:
    found = np.zeros((n_steps, n_actions, width))
    found[..., :3] = np.random.default_rng(0).random((n_steps, n_actions, 3))
    found[..., 3:7] = Rotation.random(n_steps * n_actions, random_state=0).as_quat().reshape(n_steps, n_actions, 4)
    if width == 8:
        found[..., 7] = 1.0
    return found


def test_known_errors() -> None:
    recorded, predicted = chunks(), chunks()
    predicted[..., 0] += 0.003
    predicted[..., 1] += 0.004
    turned = Rotation.from_quat(predicted[..., 3:7].reshape(-1, 4)) * Rotation.from_euler("z", 10, degrees=True)
    predicted[..., 3:7] = -turned.as_quat().reshape(6, 4, 4) * 1.003
    predicted[:, 2, 7] = 0.25
    errors = score_chunks(predicted, recorded)
    np.testing.assert_allclose(errors.position_mm, 5.0)
    np.testing.assert_allclose(errors.rotation_deg, 10.0, atol=1e-6)
    assert errors.means() == pytest.approx({"position_mm": 5.0, "rotation_deg": 10.0, "gripper": 0.75 / 4})
    assert errors.per_horizon_step()["gripper"] == [0.0, 0.0, 0.75, 0.0]
    assert errors.select(np.arange(6) < 2).position_mm.shape == (2, 4)


def test_what_was_not_recorded_does_not_count() -> None:
    recorded, predicted = chunks(width=7), chunks(width=7)
    predicted[-1, 1:] += 100
    inside = np.ones((6, 4), dtype=bool)
    inside[-1, 1:] = False
    errors = score_chunks(predicted, recorded, inside)
    assert np.isnan(errors.position_mm[-1, 1:]).all()
    assert errors.means() == pytest.approx({"position_mm": 0.0, "rotation_deg": 0.0, "gripper": None}, abs=1e-5)


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"predicted chunks have shape \(6, 4, 8\), recorded \(6, 3, 8\)"):
        score_chunks(chunks(), chunks(n_actions=3))
    with pytest.raises(ValueError, match="expected"):
        score_chunks(np.zeros((2, 3, 6)), np.zeros((2, 3, 6)))


def test_phases() -> None:
    gripper = np.array([1.0] * 10 + [0.0] * 10 + [1.0] * 10)
    labels = phases(gripper, margin=2).tolist()
    assert labels[:8] == ["approach"] * 8
    assert labels[8:13] == ["grasp"] * 5
    assert labels[13:18] == ["move"] * 5
    assert labels[18:23] == ["release"] * 5
    assert labels[23:] == ["approach"] * 7
    near = phases(np.array([1.0] * 5 + [0.0] * 3 + [1.0] * 5), margin=5).tolist()
    assert near[:7] == ["grasp"] * 7
    assert near[7:] == ["release"] * 6
    assert phases(np.ones(3)).tolist() == ["approach"] * 3


def test_a_copycat_fails_where_decisions_are_due() -> None:
    command = np.array([1.0] * 10 + [0.0] * 10)
    recorded = np.stack([np.pad(command, (0, 4), mode="edge")[i : i + 4] for i in range(20)])
    copied = np.repeat(command[:, None], 4, axis=1)
    # Chunks 7, 8, 9 hold the closing: a copycat is wrong in their last 1, 2 and 3 of 4 actions.
    assert transition_error(copied, recorded) == pytest.approx(6 / 12)
    assert transition_error(recorded, recorded) == 0.0
    assert transition_error(np.ones((3, 4)), np.ones((3, 4))) is None
    inside = np.ones((20, 4), dtype=bool)
    inside[:, 1:] = False
    assert transition_error(copied, recorded, inside) is None


def test_baselines() -> None:
    recorded = chunks()
    measured = np.arange(48, dtype=float).reshape(6, 8)
    found = baselines(recorded, measured, np.full(8, 7.0))
    assert set(found) == {"hold pose", "previous action", "mean action", "copy the measured gripper"}
    np.testing.assert_array_equal(found["hold pose"][2, 3, :7], measured[2, :7])
    assert np.isnan(found["hold pose"][..., 7]).all()
    np.testing.assert_array_equal(found["previous action"][2, 3], recorded[1, 0])
    assert np.isnan(found["previous action"][0]).all(), "nothing is invented for the first step"
    assert (found["mean action"] == 7.0).all()
    np.testing.assert_array_equal(found["copy the measured gripper"][2, :, 7], np.full(4, measured[2, 7]))
    assert "copy the measured gripper" not in baselines(recorded[..., :7], measured, np.full(7, 7.0))


def test_spread() -> None:
    assert sample_spread(chunks()[None]) == {"position_mm": None, "gripper": None}
    two = np.stack([chunks(), chunks()])
    two[1, :, 2, 0] += 0.002
    spread = sample_spread(two)
    assert spread["position_mm"] == pytest.approx([0.0, 0.0, 1.0, 0.0], abs=1e-9)
    assert spread["gripper"] == [0.0] * 4
    assert sample_spread(two[..., :7])["gripper"] is None
