"""The command for the doctor: the guide's three troubles, from files to the cause and the next command."""

import json
import runpy
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_factory import write_dataset, write_tiny_checkpoint
from log_factory import write_log
from omegaconf import DictConfig
from report_factory import metrics, write_run

from diffusion_policy.adapt.settings_fit import SettingsError
from diffusion_policy.adapt.starting_point import plan_pretrained
from diffusion_policy.checkpoint import read_checkpoint, write_checkpoint
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.diagnose import doctor, training_evidence
from diffusion_policy.training_config import compose_arguments, compose_training
from diffusion_policy.workspace.run_settings import run_settings
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

Main = Callable[[Sequence[str]], int]


@pytest.fixture
def main(repository: Path) -> Main:
    return runpy.run_path(str(repository / "scripts" / "doctor.py"))["main"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "set.zarr")


def codes(path: Path, group: str) -> list[str]:
    found = json.loads(path.read_text())["groups"][group]
    return [finding["code"] for finding in found if finding["severity"] in ("warning", "error")]


def cause(path: Path) -> str:
    return str(json.loads(path.read_text())["cause"]["code"])


def test_size_mismatch(tmp_path: Path, dataset: Path, main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    pose = write_tiny_checkpoint(tmp_path / "pose.ckpt", width=7)
    out = tmp_path / "out.json"
    assert main(["--dataset", str(dataset), "--checkpoint", str(pose), "--json", str(out)]) == 1
    assert cause(out) == "checkpoint-fits-dataset"
    output = capsys.readouterr().out
    assert "The cause: size mismatch: the checkpoint predicts 7 numbers" in " ".join(output.split())
    assert f"next: python scripts/finetune_from_7d_to_8d.py --old_ckpt {pose}" in output


def test_every_dataset_is_looked_at(tmp_path: Path, dataset: Path, main: Main) -> None:
    """The trouble is in the second dataset, and both grippers are counted."""
    still = write_dataset(tmp_path / "still.zarr")
    gripper = ReplayBuffer.open(still, mode="r+")["action"]
    gripper[:, 7] = 1.0
    out = tmp_path / "out.json"
    assert main(["--dataset", str(dataset), str(still), "--json", str(out)]) == 1
    report = json.loads(out.read_text())
    assert report["cause"]["about"] == str(still)
    assert [finding["code"] for finding in report["groups"]["dataset"]].count("closings") == 2
    assert report["next_command"].endswith(f"--dataset {dataset} {still}")


def test_a_projection_that_was_not_adapted(tmp_path: Path, main: Main) -> None:
    """What the predecessor's adapter wrote: the config has eight numbers, the tensors are unchanged."""
    pose = read_checkpoint(write_tiny_checkpoint(tmp_path / "pose.ckpt", width=7))
    pose.cfg.policy.shape_meta.action.shape = [8]
    path = tmp_path / "unchanged.ckpt"
    write_checkpoint(path, cfg=pose.cfg, state_dicts=pose.state_dicts, pickles=pose.pickles)
    assert main(["--checkpoint", str(path), "--json", str(tmp_path / "out.json")]) == 1
    assert cause(tmp_path / "out.json") == "projection"


def test_an_average_that_was_not_loaded(tmp_path: Path, main: Main) -> None:
    whole = read_checkpoint(write_tiny_checkpoint(tmp_path / "whole.ckpt"))
    torch.manual_seed(1)
    model = whole.state_dicts["model"]
    fresh = {k: torch.randn_like(t) if t.dim() > 1 and t.is_floating_point() else t for k, t in model.items()}
    path = tmp_path / "half.ckpt"
    states = {"model": model, "ema_model": fresh}
    write_checkpoint(path, cfg=whole.cfg, state_dicts=states, pickles=whole.pickles)
    assert main(["--checkpoint", str(path), "--json", str(tmp_path / "out.json")]) == 1
    assert codes(tmp_path / "out.json", "checkpoint") == ["ema-weights"]


def test_loss_does_not_fall(tmp_path: Path, main: Main) -> None:
    lines = [{**line, "lr": 0.0} for line in metrics(last_loss=0.41)]
    run = write_run(tmp_path / "run", lines, checkpoint=False)
    (run / "checkpoints" / "epoch=0001.ckpt").write_bytes(b"")
    out = tmp_path / "out.json"
    assert main(["--run", str(run), "--json", str(out)]) == 1
    assert {"warm-up", "loss-does-not-fall"} <= set(codes(out, "run"))
    (run / "checkpoints" / "latest.ckpt").write_bytes(b"not a checkpoint")
    assert main(["--run", str(run), "--json", str(out)]) == 1
    assert codes(out, "checkpoint") == ["checkpoint-opens"]


def test_gripper_always_open_from_labels_that_can_be_copied(tmp_path: Path, main: Main) -> None:
    path = write_dataset(tmp_path / "copied.zarr")
    buffer = ReplayBuffer.open(path, mode="r+")
    buffer["robot_gripper_state"][:] = np.asarray(buffer["action"][:])[:, 7:]
    log = write_log(tmp_path / "log.json", [0.99] * 30)
    out = tmp_path / "out.json"
    assert main(["--dataset", str(path), "--log", str(log), "--json", str(out)]) == 1
    assert "copycat-labels" in codes(out, "dataset")
    assert codes(out, "log") == ["gripper-verdict"]
    diagnosis = json.loads(out.read_text())["diagnosis"]
    assert diagnosis.endswith("it is probably why the gripper is not commanded to close and open")


def test_a_config_is_examined_before_it_is_run(
    tmp_path: Path, dataset: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    overrides = [f"task.dataset_path={dataset}", "training.device=cpu", "optimizer.learning_rate=1"]
    assert main(["--dataset", str(dataset), "--json", str(out), "--config", "train_cogact_robot", *overrides]) == 1
    assert "learning-rate" in codes(out, "config")
    assert main(["--config", "train_cogact_robot", "no_such_key=1"]) == 2
    assert "error: no_such_key=1: no such setting" in capsys.readouterr().err


def test_a_checkpoint_beside_a_config(tmp_path: Path, main: Main) -> None:
    pose = write_tiny_checkpoint(tmp_path / "pose.ckpt", width=7)
    out = tmp_path / "out.json"
    config = ["--config", "train_cogact_robot", "training.device=cpu", f"task.dataset_path={tmp_path}"]
    assert main(["--checkpoint", str(pose), "--json", str(out), *config]) == 1
    assert "checkpoint-fits-config" in codes(out, "config")


def test_doctor_refuses_what_training_refuses_in_its_words(
    tmp_path: Path, dataset: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both by --checkpoint and by pretrained.path; the final command fits."""
    grown = write_tiny_checkpoint(tmp_path / "grown.ckpt", width=8)
    out = tmp_path / "out.json"
    config = ["train_cogact_robot", "training.device=cpu", f"task.dataset_path={dataset}"]

    def finding(*words: str) -> dict[str, str]:
        main(["--json", str(out), *words])
        found = json.loads(out.read_text())["groups"]["config"]
        (one,) = (entry for entry in found if entry["code"] == "checkpoint-fits-config")
        return dict(one)

    with pytest.raises(SettingsError) as refused:
        plan_pretrained(grown, run_settings(compose_training(config[0], config[1:])))
    given = finding("--checkpoint", str(grown), "--config", *config)
    named = finding("--config", *config, f"pretrained.path={grown}")
    assert given["evidence"] == named["evidence"] == refused.value.found
    assert given["remedy"] == named["remedy"] == refused.value.remedy
    assert given["command"].split("train.py ")[1] == named["command"].split("train.py ")[1]
    words = shlex.split(named["command"])
    assert words[-len(refused.value.overrides) :] == list(refused.value.overrides)
    assert finding("--config", *config, f"pretrained.path={grown}", *refused.value.overrides)["severity"] == "ok"
    pose = write_tiny_checkpoint(tmp_path / "pose.ckpt", width=7)
    grow = finding("--config", *config, f"pretrained.path={pose}")
    assert "finetune_from_7d_to_8d" in grow["command"]
    small = finding("--config", *config, f"pretrained.path={grown}", "task=cogact_robot_7d")
    assert small["command"].endswith("task=cogact_robot_8d")
    capsys.readouterr()


def test_doctor_composes_what_training_composes(
    tmp_path: Path, dataset: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Including keys of older configs, and what they lack."""
    seen: list[DictConfig] = []
    monkeypatch.setattr(doctor, "look_at_config", lambda config, *_, **__: seen.append(config) or look(config, "c"))
    look = training_evidence.look_at_config
    words = [f"task.dataset_path={dataset}", "training.debug=true", "training.device=cpu",
             "+task.dataset.obs_dropout={robot_eef_pose: 0.1}"]  # fmt: skip
    main(["--config", "train_cogact_robot", *words])
    workspace = TrainDiffusionTransformerHybridWorkspace(compose_arguments(words), tmp_path)
    assert seen == [workspace.cfg]
    assert seen[0].training.num_epochs == 2
    assert seen[0].observation_dropout.low_dim == {"robot_eef_pose": 0.1}


def test_this_machine_alone_is_fine(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "no trouble found." in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--dataset", "--checkpoint", "--run", "--log"])
def test_what_is_not_there_is_bad_input(
    option: str, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([option, str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
