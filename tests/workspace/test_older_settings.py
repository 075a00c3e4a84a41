"""Keys of older configs keep their meaning, and are reported as older."""

import pytest
import torch
from omegaconf import OmegaConf
from tiny_run import settings, write_dataset

from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.older_settings import with_present_keys
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "set.zarr")


def test_dropout_of_the_dataset_becomes_dropout_of_observations(dataset, caplog):
    before = settings(dataset, "+task.dataset.obs_dropout={robot_gripper_state: 0.3}")
    after = with_present_keys(before)
    assert after.observation_dropout.low_dim == {"robot_gripper_state": 0.3}
    assert "obs_dropout" not in after.task.dataset
    assert before.task.dataset.obs_dropout == {"robot_gripper_state": 0.3}
    assert "write +observation_dropout.low_dim.robot_gripper_state=0.3 instead" in caplog.text
    assert with_present_keys(after) is after
    assert settings(dataset, "+observation_dropout.low_dim.robot_gripper_state=0.3") == after


def test_it_is_read_beside_a_config_that_does_not_know_the_present_key(dataset):
    cfg = settings(dataset, "+task.dataset.obs_dropout={robot_eef_pose: 0.25}")
    OmegaConf.set_struct(cfg, value=False)
    del cfg.observation_dropout.low_dim
    assert with_present_keys(cfg).observation_dropout.low_dim == {"robot_eef_pose": 0.25}


def test_two_shares_for_one_observation_are_refused(dataset):
    twice = ("+task.dataset.obs_dropout={robot_eef_pose: 0.2}", "+observation_dropout.low_dim.robot_eef_pose=0.1")
    with pytest.raises(TrainingError, match="both name robot_eef_pose; leave the former"):
        with_present_keys(settings(dataset, *twice))


@pytest.mark.parametrize("share", ["{image: 0.1}", "{robot_gripper_state: 1.5}", "{grip: 0.1}"])
def test_what_cannot_be_hidden_is_refused_before_the_first_update(dataset, tmp_path, share):
    cfg = settings(dataset, f"+task.dataset.obs_dropout={share}")
    with pytest.raises(TrainingError, match=r"observation_dropout\.low_dim\..*; expected a share from 0 to 1"):
        TrainDiffusionTransformerHybridWorkspace(cfg, tmp_path).run()
    assert not (tmp_path / "checkpoints" / "latest.ckpt").exists()


def test_the_old_key_hides_the_middle_of_the_datasets_range(dataset, tmp_path):
    """As before: this share of windows is replaced by (min + max) / 2 of the dataset, regardless of the cache."""
    cfg = settings(dataset, "+task.dataset.obs_dropout={robot_eef_pose: 1.0}", "training.cache=memory")
    workspace = TrainDiffusionTransformerHybridWorkspace(cfg, tmp_path)
    seen = []
    loss = workspace.model.compute_loss
    workspace.model.compute_loss = lambda batch, **rest: seen.append(batch["obs"]) or loss(batch, **rest)
    workspace.cfg.training.num_epochs = 1
    workspace.run()
    poses = workspace._data.dataset.get_normalizer()["robot_eef_pose"].get_input_stats()
    middle = (poses["min"] + poses["max"]) / 2
    trained = [obs["robot_eef_pose"] for obs in seen if torch.equal(obs["robot_eef_pose"][0, 0], middle)]
    assert trained
    assert all(torch.equal(pose, middle.expand_as(pose)) for pose in trained)
