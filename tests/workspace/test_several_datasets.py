"""A run on a list of datasets: from the first measurement to the checkpoint, with weights and without."""

import json

import numpy as np
import pytest
import tiny_run

from diffusion_policy.dataset.joined_datasets import JoinedDatasets
from diffusion_policy.dataset.replay_buffer import DatasetError, ReplayBuffer
from diffusion_policy.report.sections import training_section
from diffusion_policy.run_folder.reading import open_run
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)


@pytest.mark.parametrize(
    ("weights", "shares"),
    [((), [(None, 17 / 28), (None, 11 / 28)]), (("+task.dataset.weights=[3,1]",), [(3, 0.75), (1, 0.25)])],
    ids=["alike", "weights"],
)
def test_a_run_on_two_datasets(tmp_path, weights, shares, caplog):
    monday = tiny_run.write_dataset(tmp_path / "monday.zarr")
    tuesday = tiny_run.write_dataset(tmp_path / "tuesday.zarr", lengths=(15, 12, 13))
    cfg = tiny_run.settings(monday, f"task.dataset_path=[{monday},{tuesday}]", *weights)
    caplog.set_level("INFO")
    workspace = TrainDiffusionTransformerHybridWorkspace(cfg, tmp_path / "run")
    workspace.run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "logs.json.txt").read_text().splitlines()]
    assert np.isfinite(lines[0]["train_loss_before_first_update"])
    assert any("val_position_error_mm" in line for line in lines)
    assert (tmp_path / "run" / "checkpoints" / "latest.ckpt").is_file()
    run = open_run(tmp_path / "run")
    assert [(share.weight, pytest.approx(share.share)) for share in run.sampling] == shares
    for share in run.sampling:
        assert str(share) in caplog.messages
        assert f"<td>{share.share:.1%}</td><td>{share.repeats:.2f}</td>" in training_section(run).body


def test_several_datasets_are_one(tmp_path):
    monday = tiny_run.write_dataset(tmp_path / "monday.zarr")
    tuesday = tiny_run.write_dataset(tmp_path / "tuesday.zarr", lengths=(15, 12))
    joined = JoinedDatasets([monday, tuesday])
    assert joined.episode_ends.tolist() == [13, 25, 39, 51, 66, 78]
    assert (joined.n_episodes, joined.n_steps) == (6, 78)
    expected = np.concatenate([ReplayBuffer.open(path)["action"][:] for path in (monday, tuesday)])
    np.testing.assert_array_equal(joined.rows("action"), expected)
    group = ReplayBuffer.open(tuesday, mode="r+")["action"]
    group.attrs["names"] = ["gripper", *joined.names("action")[:7]]
    np.testing.assert_array_equal(JoinedDatasets([monday, tuesday]).rows("action")[51:, 0], expected[51:, 1])
    group.attrs["names"] = [*joined.names("action")[:7], "suction"]
    with pytest.raises(DatasetError, match=r"tuesday.zarr: data/action has dimensions .* it lacks \['gripper'\]"):
        JoinedDatasets([monday, tuesday]).rows("action")
    with pytest.raises(DatasetError, match="zarr_path is empty"):
        JoinedDatasets([])
