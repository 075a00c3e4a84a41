"""Every trouble of a config and of a run, planted."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from report_factory import CONFIG, DATASET, POSE_SPEC, metrics, only, troubled, write_run

from diffusion_policy.diagnose.training_evidence import config_of_run, look_at_config
from diffusion_policy.diagnose.training_findings import config_findings, run_findings
from diffusion_policy.resolvers import InterpolationError
from diffusion_policy.run_folder import RunFolderError
from diffusion_policy.run_folder.reading import open_run
from diffusion_policy.training_config import ConfigError, compose_training

CONFIGS: list[tuple[str, str, dict[str, Any], str]] = [
    ("paths", "error", {"dataset_exists": False}, "no dataset at set.zarr"),
    ("paths", "error", {"pretrained_exists": False}, "no checkpoint at grown.ckpt"),
    ("config-action", "warning", {"spec": POSE_SPEC}, "predicts 7 numbers"),
    ("start", "note", {"pretrained": None}, "trains from scratch"),
    ("start", "warning", {"load_weights": False}, "grown.ckpt is ignored"),
    ("learning-rate", "error", {"learning_rate": 0.1}, "outside 1e-06 to 0.001"),
    ("learning-rate", "error", {"learning_rate": 0.0}, "is 0, outside"),
    ("warm-up", "warning", {"warm_up": 10_000}, "10000 of about 12600 updates: the learning rate is hardly reached"),
    ("few-updates", "warning", {"epochs": 2, "warm_up": 10}, "about 126 updates in all"),
    ("held-out", "warning", {"val_ratio": 0.0}, "no episode is held out"),
    ("device", "error", {"device_exists": False}, "no CUDA device"),
]

LOST = [line for line in metrics() if "val_gripper_f1" not in line]


def spoiled(**changes: Any) -> list[dict[str, Any]]:
    """Lines of a good run, with the last one changed."""
    lines = metrics()
    lines[-1] |= changes
    return lines


RUNS: list[tuple[str, str, list[dict[str, Any]], str, str]] = [
    ("not-finite", "error", spoiled(train_loss=None), "", "1 of 20 training losses are not finite"),
    ("not-finite", "error", metrics()[:1], "", "not one update was logged"),
    ("start", "error", metrics(start="scratch"), "pretrained:\n  path: grown.ckpt\n", "from scratch, although"),
    ("start", "warning", metrics(fresh_parameters=5000), "", "are newly initialized"),
    ("loss-before-first-update", "warning", metrics(train_loss_before_first_update=1.1), "", "know nothing"),
    ("warm-up", "warning", [{**line, "lr": 1e-6} for line in metrics()], "", "only reached 1e-06 of 0.0001"),
    ("few-updates", "warning", metrics(updates=100), "", "only 100 updates"),
    ("loss-does-not-fall", "error", metrics(last_loss=0.41), "", "the loss does not fall"),
    (
        "loss-does-not-fall",
        "warning",
        [{**line, "train_loss": 0.01 * i} for i, line in enumerate(metrics())],
        "",
        "rises",
    ),
    ("ema-weights", "warning", spoiled(val_loss=0.3, val_loss_model=0.03), "", "the EMA does not follow"),
    ("overfitting", "note", spoiled(val_loss=0.09, val_loss_model=0.09), "", "rises from 0.03 at update"),
    ("held-out", "warning", LOST, "", "nothing was validated"),
    ("sight", "note", spoiled(val_image_features=7), "", "only 7 of 64"),
    ("sight", "error", spoiled(val_image_features=0), "", "sees nothing"),
    (
        "gripper-verdict",
        "error",
        spoiled(val_gripper_f1=0.0, val_gripper_events_found=0),
        "",
        "event is predicted: 0 of 20",
    ),
    ("gripper-verdict", "warning", spoiled(val_gripper_f1=0.3, val_gripper_events_found=6), "", "F1 0.30"),
]


def test_a_sound_config_has_no_trouble() -> None:
    assert {finding.severity for finding in config_findings(CONFIG, DATASET)} == {"ok"}


@pytest.mark.parametrize(("code", "severity", "changes", "says"), CONFIGS, ids=[f"{c[0]}-{c[3][:20]}" for c in CONFIGS])
def test_trouble_in_a_config_is_found(code: str, severity: str, changes: dict[str, Any], says: str) -> None:
    found = config_findings(replace(CONFIG, **changes), DATASET)
    finding = only(found, code)
    assert finding.severity == severity
    assert re.search(says, finding.evidence)
    assert set(troubled(found)) <= {code}


@pytest.mark.parametrize(("epochs", "n_steps", "enough"), [(2, 2000, 200), (200, 10, 500), (400, 10, 500)])
def test_few_updates_are_cured_by_as_many_epochs_as_it_takes(epochs: int, n_steps: int, enough: int) -> None:
    """Never fewer than there were."""
    few, dataset = replace(CONFIG, epochs=epochs, warm_up=10), replace(DATASET, lengths=(n_steps,))
    finding = only(config_findings(few, dataset), "few-updates")
    assert finding.command is not None
    assert finding.command.endswith(f"training.num_epochs={enough}")
    assert only(config_findings(replace(few, epochs=enough), dataset), "few-updates").severity == "ok"


def test_a_config_beside_a_narrower_dataset() -> None:
    finding = only(config_findings(CONFIG, replace(DATASET, action_names=POSE_SPEC.action_names)), "config-action")
    assert "size mismatch" in finding.evidence
    assert finding.command == "python train.py task=cogact_robot_7d"


@pytest.mark.parametrize(
    ("inherited", "change"), [(1000, "learning_rates.obs_encoder=0.1"), (0, "++policy.encoder_activation=none")]
)
def test_a_blind_policy_gets_the_remedy_that_its_start_allows(tmp_path: Path, inherited: int, change: str) -> None:
    lines = spoiled(val_image_features=0)
    lines[0]["inherited_parameters"] = inherited
    (found,) = [f for f in run_findings(open_run(write_run(tmp_path / "run", lines, ""))) if f.code == "sight"]
    assert found.command is not None
    assert change in found.command


def test_a_sound_run_has_no_trouble(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run"))
    assert {finding.severity for finding in run_findings(run)} == {"ok"}
    assert len(run_findings(run)) == 12


@pytest.mark.parametrize(
    ("code", "severity", "lines", "config", "says"), RUNS, ids=[f"{r[0]}-{r[4][:20]}" for r in RUNS]
)
def test_trouble_in_a_run_is_found(
    tmp_path: Path, code: str, severity: str, lines: list[dict[str, Any]], config: str, says: str
) -> None:
    found = [f for f in run_findings(open_run(write_run(tmp_path / "run", lines, config))) if f.code == code]
    assert [finding.severity for finding in found] == [severity]
    assert re.search(says, found[0].evidence)


def test_a_run_without_checkpoint(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "run", checkpoint=False))
    assert only(run_findings(run), "checkpoints").severity == "error"
    assert run.deployable is None


def test_a_run_brings_all_its_datasets(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    named = [tmp_path / "a.zarr", tmp_path / "gone.zarr", tmp_path / "b.zarr"]
    for path in (named[0], named[2]):
        path.mkdir()
    config = folder / ".hydra" / "config.yaml"
    cfg = OmegaConf.load(config)
    OmegaConf.update(cfg, "task.dataset.zarr_path", [str(path) for path in named])
    OmegaConf.save(cfg, config)
    assert open_run(folder).datasets == (named[0], named[2])


def test_a_run_folder_is_read(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path / "some run"))
    assert run.updates == 1000
    assert run.curve("val_gripper_f1") == [(550, 0.9), (1000, 0.9)]
    assert run.last("val_loss") == 0.03
    assert run.last("absent") is None
    assert run.flat_config()["task.dataset.val_ratio"] == 0.1
    assert run.datasets == ()
    evidence = config_of_run(run)
    assert evidence is not None
    assert evidence.updates(None) is None
    assert evidence.updates(6400) == 10_000


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    with (path / "logs.json.txt").open("a") as file:
        file.write('{"train_lo')
    assert len(open_run(path).metrics) == 21


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run;"):
        open_run(tmp_path)
    broken = write_run(tmp_path / "broken")
    (broken / "logs.json.txt").write_text("{]\n")
    with pytest.raises(RunFolderError, match="line 1 is not JSON"):
        open_run(broken)
    (broken / "logs.json.txt").write_text(json.dumps([1]) + "\n")
    with pytest.raises(RunFolderError, match="line 1 holds a list"):
        open_run(broken)
    asking = write_run(tmp_path / "asking", config="leak: ${oc.env:HOME}\n")
    with pytest.raises(InterpolationError, match=r"oc\.env"):
        open_run(asking)
    (asking / ".hydra" / "config.yaml").write_text("- 1\n")
    with pytest.raises(RunFolderError, match="expected a config"):
        open_run(asking)
    (asking / ".hydra" / "config.yaml").write_text("a: [\n")
    with pytest.raises(RunFolderError, match="cannot be read as a config"):
        open_run(asking)


def test_the_shipped_config_is_composed() -> None:
    config = compose_training("train_cogact_robot", ["training.device=cpu"])
    evidence = look_at_config(config, "train_cogact_robot")
    assert evidence.spec is not None
    assert evidence.spec.action_dim == 8
    assert evidence.learning_rate == 1e-4
    assert evidence.device_exists
    with pytest.raises(ConfigError, match="--config-name=nothing: no such config; there are train_cogact_robot"):
        compose_training("nothing")
    with pytest.raises(ConfigError, match="no_such_key"):
        compose_training("train_cogact_robot", ["no_such_key=1"])
