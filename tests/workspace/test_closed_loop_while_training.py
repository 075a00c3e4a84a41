"""Closed loop while a policy trains: success chooses best.ckpt in any simulator, and training is the same."""

import json

import pytest
import tiny_run
import torch
from omegaconf import OmegaConf

from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.errors import WorkspaceError
from diffusion_policy.workspace.checkpointing import CheckpointFolder
from diffusion_policy.workspace.metrics import read_metrics
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

TABLETOP = [
    "env_runner@task.env_runner=tabletop", "task.env_runner.n_episodes=2", "+task.env_runner.max_steps=12",
    "task.env_runner.camera_size=[64,36]", "training.rollout_every=2",
]  # fmt: skip
SIMULATOR = [
    "env_runner@task.env_runner=simulator", "task.env_runner.n_scenes=2", "task.env_runner.max_steps=12",
    "task.env_runner.simulator.env.referee=kinematic", "task.env_runner.simulator.env.image_size=[64,36]",
    "training.rollout_every=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_run.write_dataset(tmp_path_factory.mktemp("closed_loop") / "set.zarr")


def train(dataset, folder, *overrides):
    TrainDiffusionTransformerHybridWorkspace(tiny_run.settings(dataset, *overrides), folder).run()
    return folder


@pytest.mark.parametrize(
    ("runner", "epochs"), [pytest.param(TABLETOP, [0, 2, 3], marks=pytest.mark.exhaustive), (SIMULATOR, [0, 1, 2, 3])]
)
def test_success_is_measured_when_it_is_due_and_ranks_first(dataset, tmp_path, runner, epochs):
    folder = train(dataset, tmp_path / "run", *runner, "training.num_epochs=4", "training.val_every=1")
    lines = read_metrics(folder / "logs.json.txt")
    measured = [line["epoch"] for line in lines if "test_success" in line]
    assert measured == epochs
    assert all(line["test_scenes"] == 2 for line in lines if "test_success" in line)
    best = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert best.run_state["ranking"]["best_metrics"]["test_success"] == 0.0
    assert best.pickles["epoch"] in epochs, "an epoch without a closed loop does not beat one with it"


def test_rollouts_leave_no_trace_in_training(dataset, tmp_path):
    folders = [train(dataset, tmp_path / "with", *TABLETOP), train(dataset, tmp_path / "without")]
    first, second = (read_checkpoint(run / "checkpoints" / "latest.ckpt").state_dict("model") for run in folders)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_wrong_settings_are_refused_before_the_first_update(dataset, tmp_path):
    for words, message in (
        (["task.env_runner.referee=umpire"], "no referee 'umpire'"),
        (["task.env_runner.task=juggle"], "no task 'juggle'"),
    ):
        with pytest.raises(WorkspaceError, match=message):
            train(dataset, tmp_path / "run", *TABLETOP, *words)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_best_that_was_chosen_by_fewer_metrics_is_not_compared(tmp_path, caplog):
    settings = {
        "topk": {"k": 0, "monitor_key": "train_loss", "mode": "min", "format_str": "{epoch}.ckpt"},
        "best": [{"monitor_key": "test_success", "mode": "max"}, {"monitor_key": "val_loss", "mode": "min"}],
        "save_last_ckpt": True,
        "save_last_snapshot": False,
    }
    state = {"kept": {}, "best": [[True, 0.5]], "best_metrics": {"val_loss": 0.5}, "best_global_step": None}
    (tmp_path / "best.ckpt").write_bytes(b"")
    found = CheckpointFolder(tmp_path, OmegaConf.create(settings), json.loads(json.dumps(state)), 3, {})
    assert found.state()["best"] is None
    found.close()
