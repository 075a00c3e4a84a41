"""The log of metrics: its lines, what a resumed run makes of it, and where else numbers go."""

import json
import math

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.metrics import MetricsLog, read_metrics, truncate_log


def test_each_line_is_one_json_object_of_plain_numbers(tmp_path):
    with MetricsLog(tmp_path, 0, None) as log:
        log.write({"global_step": 1, "train_loss": torch.tensor(0.5), "lr": 1e-4})
        log.write({"global_step": 2, "train_loss": math.nan})
    lines = (tmp_path / "logs.json.txt").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"global_step": 1, "train_loss": 0.5, "lr": 1e-4},
        {"global_step": 2, "train_loss": None},
    ]


def test_a_resumed_run_takes_out_what_it_is_about_to_do_again(tmp_path):
    path = tmp_path / "logs.json.txt"
    path.write_text("".join(json.dumps({"global_step": step}) + "\n" for step in range(5)) + '{"global_st')
    assert [line["global_step"] for line in read_metrics(path)] == [0, 1, 2, 3, 4]
    with MetricsLog(tmp_path, 3, None) as log:
        log.write({"global_step": 4, "again": True})
    assert [line["global_step"] for line in read_metrics(path)] == [0, 1, 2, 3, 4]
    truncate_log(tmp_path / "absent", 0)


def test_weights_and_biases_is_loaded_only_if_asked_for(tmp_path):
    options = {"mode": "disabled", "project": "p", "name": "n", "resume": True, "tags": [], "id": None, "group": None}
    with MetricsLog(tmp_path, 0, OmegaConf.create(options)):
        assert list((tmp_path / "tensorboard").iterdir())
    with pytest.raises(TrainingError, match=r"logging\.mode=offline needs the package wandb.*logging\.mode=disabled"):
        MetricsLog(tmp_path, 0, OmegaConf.create(options | {"mode": "offline"}))
