"""What is measured during training."""

import copy
import re

import numpy as np
import pytest
import tiny_run
import torch

from diffusion_policy.checkpoint import build_policy
from diffusion_policy.evaluate.recorded_inference import RecordedEpisodes
from diffusion_policy.spec import POSE, POSE_GRIPPER, ActionLayout
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.data import open_data, read_all_steps, window_rows
from diffusion_policy.workspace.processes import Processes
from diffusion_policy.workspace.sampler_settings import read_sampler
from diffusion_policy.workspace.validation import (
    EpisodePrediction,
    FixedNoise,
    count_active_features,
    deployed_sampler,
    early_warning,
    evaluating,
    fixed_noise_loss,
    gripper_scores,
    inactive_features_warning,
    motion_errors,
    predict_episodes,
    undefined_scores,
)

WITH_GRIPPER, POSE_ONLY = ActionLayout.of(POSE_GRIPPER), ActionLayout.of(POSE)
ALONE = Processes(torch.device("cpu"))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_run.settings(tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "set.zarr"))


@pytest.fixture(scope="module")
def policy(config):
    torch.manual_seed(0)
    made = build_policy(config)
    made.set_normalizer(open_data(config, ALONE).normalizer)
    return made


def test_val_loss_is_the_same_whenever_and_in_whatever_batches_it_is_taken(config, policy):
    losses = []
    for batch_size in (2, 5):
        config.val_dataloader.batch_size = batch_size
        data = open_data(config, ALONE)
        noise = FixedNoise(policy, len(data.held_out))
        torch.manual_seed(batch_size)
        state = torch.get_rng_state()
        losses.append(fixed_noise_loss(policy, data.validation, noise, ALONE))
        assert torch.equal(torch.get_rng_state(), state)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert policy.training
    data = open_data(config, ALONE)
    parts = [Processes(torch.device("cpu"), rank, 4) for rank in range(4)]
    for part in parts:
        assert len(list(open_data(config, part).validation.epoch(0))) == len(data.validation.order)


def test_the_deployed_sampler_is_taken_off_again(config, policy):
    scheduler, steps = policy.noise_scheduler, policy.num_inference_steps
    with evaluating(policy), deployed_sampler(policy, config.sampler):
        assert type(policy.noise_scheduler).__name__ == "DDIMScheduler"
        assert policy.num_inference_steps == 2
        assert not policy.training
    assert (policy.noise_scheduler, policy.num_inference_steps) == (scheduler, steps)


def test_predicted_episodes_cover_every_step_once(config, policy):
    (prediction,) = predict_episodes(RecordedEpisodes(policy, config.task.dataset_path), [2], config.sampler)
    assert prediction.predicted.shape == prediction.recorded.shape == (14, 8)
    expected = tiny_run.episode(14, 2)["action"]
    assert np.allclose(prediction.recorded, expected)
    assert prediction.inside.sum() == 14


def prediction(predicted_gripper, recorded_gripper, offset=0.0, step_seconds=0.1):
    n = len(recorded_gripper)
    recorded = np.tile([0.4, 0, 0.2, 1, 0, 0, 0, 0.0], (n, 1))
    recorded[:, 7] = recorded_gripper
    predicted = recorded.copy()
    predicted[:, 7], predicted[:, 0] = predicted_gripper, 0.4 + offset
    shape, inside = (n // 8, 8, 8), np.ones((n // 8, 8), dtype=bool)
    chunks, targets = predicted.reshape(shape), recorded.reshape(shape)
    return EpisodePrediction(0, predicted, recorded, chunks, targets, inside, step_seconds)


def test_scores_of_the_gripper_come_with_counts_and_intervals():
    recorded = [1] * 4 + [0] * 8 + [1] * 4
    late = [1] * 6 + [0] * 6 + [1] * 4
    scores = gripper_scores([prediction(late, recorded)], WITH_GRIPPER, 0.3)
    assert scores["val_gripper_f1"] == scores["val_gripper_recall"] == 1
    assert (scores["val_gripper_events_recorded"], scores["val_gripper_events_found"]) == (2, 2)
    assert scores["val_gripper_lag_steps"] == 1
    assert scores["val_gripper_lag_ms"] == pytest.approx(100)
    assert scores["val_gripper_frame_accuracy"] == 14 / 16
    assert 0 < scores["val_gripper_recall_low"] < 1 == scores["val_gripper_recall_high"]
    never = gripper_scores([prediction([1] * 16, recorded, step_seconds=None)], WITH_GRIPPER, 0.3)
    assert never["val_gripper_f1"] == never["val_gripper_recall"] == 0
    assert "val_gripper_precision" not in never
    assert "val_gripper_lag_ms" not in never
    assert gripper_scores([prediction(late, recorded)], POSE_ONLY) == {}


def test_what_the_held_out_episodes_cannot_measure_is_left_out_and_reported():
    still, grasp = [1] * 16, [1] * 4 + [0] * 8 + [1] * 4
    nothing = prediction(still, still)
    scores = gripper_scores([nothing], WITH_GRIPPER)
    assert not {name for name in scores if re.search("f1|recall|precision|lag", name)}
    assert (scores["val_gripper_events_recorded"], scores["val_gripper_false_flips"]) == (0, 0)
    assert "no gripper event is recorded in the 1 held-out episodes" in undefined_scores([nothing], WITH_GRIPPER)
    made_up = gripper_scores([prediction(grasp, still)], WITH_GRIPPER)
    assert (made_up["val_gripper_false_flips"], made_up["val_gripper_precision"]) == (2, 0)
    assert "val_gripper_f1" not in made_up, "it would rank a policy above one that does nothing wrong"
    broken = prediction(grasp, grasp, offset=np.nan)
    assert gripper_scores([broken], WITH_GRIPPER) == motion_errors([broken], WITH_GRIPPER) == {}
    assert "predicts NaN" in undefined_scores([prediction(grasp, grasp), broken], WITH_GRIPPER)
    assert undefined_scores([prediction(grasp, grasp)], WITH_GRIPPER) is None
    assert undefined_scores([nothing], POSE_ONLY) is None


@pytest.mark.parametrize(
    ("section", "step_seconds", "seconds"),
    [
        (None, 0.1, 1.0),
        ({}, 0.1, 1.0),
        ({"tolerance_s": 0.4}, 0.1, 0.4),
        ({"tolerance_steps": 5}, 0.1, 0.5),
        ({"tolerance_steps": 5, "tolerance_s": 1.0}, 0.8, 4.0),
        ({"tolerance_steps": 5}, None, 0.5),
        ({"tolerance_steps": None, "tolerance_s": 2}, 0.1, 2.0),
    ],
)
def test_the_former_tolerance_in_steps_is_read_with_a_note(section, step_seconds, seconds, caplog):
    settings = read_sampler(section, step_seconds)
    assert settings.tolerance_s == pytest.approx(seconds)
    mapped = bool(section) and section.get("tolerance_steps") is not None
    assert ("is read as sampler.tolerance_s=" in caplog.text) == mapped


@pytest.mark.parametrize("section", [{"tolerance_s": 0}, {"tolerance_s": "1 s"}, {"tolerance_steps": -5}])
def test_an_invalid_tolerance_is_refused(section):
    with pytest.raises(TrainingError, match=r"sampler.tolerance_s(teps)? is .*expected a positive number"):
        read_sampler(section, 0.1)


def test_errors_of_the_pose_are_in_millimeters_and_degrees():
    errors = motion_errors([prediction([1] * 16, [1] * 16, offset=0.002)], WITH_GRIPPER)
    assert errors["val_position_error_mm"] == pytest.approx(2)
    assert errors["val_rotation_error_deg"] == pytest.approx(0)
    assert errors["val_position_error_mm_step_8"] == pytest.approx(2)
    assert motion_errors([], WITH_GRIPPER) == {}


def test_a_warning_comes_early_if_the_loss_falls_and_the_gripper_stays():
    scores = {"val_gripper_events_recorded": 6, "val_gripper_events_found": 0}
    assert "none of 6 recorded gripper events" in early_warning(1.0, 0.1, scores)
    assert early_warning(1.0, 0.9, scores) is None
    assert early_warning(1.0, 0.1, scores | {"val_gripper_events_found": 1}) is None
    assert early_warning(None, 0.1, scores) is None
    assert early_warning(1.0, 0.1, {}) is None


def test_cached_windows_are_those_of_the_dataset(config):
    data = open_data(config, ALONE)
    steps = read_all_steps(config, torch.device("cpu"))
    obs_rows, action_rows = window_rows(data.dataset)
    expected = data.dataset.get_batch([0, 3, len(data.dataset) - 1])
    rows = torch.tensor([0, 3, len(data.dataset) - 1])
    assert torch.equal(steps["action"][action_rows[rows]], expected["action"])
    for key, value in expected["obs"].items():
        assert torch.equal(steps["obs"][key][obs_rows[rows]], value)
    assert data.episodes_of([0, len(data.dataset) - 1]) == [
        int(np.flatnonzero(data.dataset.train_episodes)[i]) for i in (0, -1)
    ]


def test_a_policy_that_does_not_see_is_reported(config, policy):
    """Units at zero for every image, as caused by too high a learning rate for the encoder."""
    windows = open_data(config, ALONE).held_out
    obs = windows.get_batch(np.arange(len(windows)))["obs"]
    state = torch.get_rng_state()
    seeing = count_active_features(policy, obs)
    assert torch.equal(torch.get_rng_state(), state)
    assert 8 < seeing <= 64
    assert inactive_features_warning({"val_image_features": seeing}) is None
    assert inactive_features_warning({}) is None
    blind = copy.deepcopy(policy)
    projection = blind.obs_encoder.obs_nets["image"].nets[-1]
    with torch.no_grad():
        projection.bias[:60] = -100
    few = count_active_features(blind, obs)
    assert few <= 4
    with torch.no_grad():
        projection.bias[60:] = -100
    assert count_active_features(blind, obs) == 0
    assert "the policy sees nothing" in inactive_features_warning({"val_image_features": 0})
