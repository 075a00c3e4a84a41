"""Steps kept in memory are numbered like those of the windows, whatever part of the dataset is used."""

import numpy as np
import torch
from omegaconf import OmegaConf
from tiny_run import settings, write_dataset

from diffusion_policy.workspace.data import open_data, read_all_steps, window_rows
from diffusion_policy.workspace.processes import Processes

ALONE = Processes(torch.device("cpu"))


def test_episode_filters_do_not_shift_the_steps(tmp_path):
    config = settings(write_dataset(tmp_path / "set.zarr"))
    OmegaConf.update(config, "task.dataset.exclude_episodes", ["episode_0000"], force_add=True)
    data = open_data(config, ALONE)
    steps = read_all_steps(config, torch.device("cpu"))
    assert len(steps["action"]) == data.dataset.episode_ends[-1]
    obs_rows, action_rows = window_rows(data.dataset)
    every = np.arange(len(data.dataset))
    expected = data.dataset.get_batch(every)
    assert torch.equal(steps["action"][action_rows], expected["action"])
    for key, value in expected["obs"].items():
        assert torch.equal(steps["obs"][key][obs_rows], value)
