"""The log of metrics: its lines, how a resumed run treats it, and where else numbers go."""

import json
import math
import os

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from diffusion_policy.workspace import TrainingError, metrics
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


WANDB = {"mode": "disabled", "project": "p", "name": "n", "resume": True, "tags": ["t"], "id": None, "group": None}


def test_weights_and_biases_is_loaded_only_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with MetricsLog(tmp_path, 0, OmegaConf.create(WANDB)):
        assert list((tmp_path / "tensorboard").iterdir())
    with pytest.raises(TrainingError, match=r"logging\.mode=offline needs the package wandb.*logging\.mode=disabled"):
        MetricsLog(tmp_path, 0, OmegaConf.create(WANDB | {"mode": "offline"}))


def test_weights_and_biases_offline_needs_no_account(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="pip install wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    config = OmegaConf.create({"training": {"seed": 3}})
    with MetricsLog(tmp_path, 0, OmegaConf.create(WANDB | {"mode": "offline"}), config) as log:
        log.write({"train_loss": 0.5, "global_step": 1, "epoch": 0})
        log.image("episode_0", np.zeros((8, 8, 3), dtype=np.uint8), 1)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (record,) = run.glob("*.wandb")
    assert b"train_loss" in record.read_bytes()
    assert list((run / "files" / "media" / "images").glob("episode_0_1_*.png"))
