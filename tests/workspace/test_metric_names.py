"""Checkpoints are ranked by what a run measures, and a name that no run measures is refused before it starts."""

import logging

import pytest
import tiny_run

from diffusion_policy.spec import POSE, POSE_GRIPPER
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.metric_names import ALWAYS, check_metric_names, known_names
from diffusion_policy.workspace.metrics import read_metrics
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

FINE_TUNE = "experiment=finetune_8d"


def check(*overrides, names=POSE_GRIPPER, held_out=True):
    check_metric_names(tiny_run.settings("unread.zarr", *overrides), names, held_out=held_out)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["checkpoint.topk.monitor_key=val_griper_f1"],
            r"topk.monitor_key: no metric is called val_griper_f1; did you mean val_gripper_f1\?",
        ),
        (
            ["checkpoint.best.0.monitor_key=success"],
            r"checkpoint.best: no metric is called success; did you mean test_success\?",
        ),
        (
            ["checkpoint.best.0.monitor_key=zzz"],
            "checkpoint.best: no metric is called zzz; there are .*val_loss",
        ),
    ],
)
def test_an_unknown_metric_is_refused(overrides, message):
    with pytest.raises(TrainingError, match=message):
        check(*overrides)


@pytest.mark.parametrize("name", ["val_gripper_recall", "val_rotation_error_deg_model", "val_position_error_mm_step_8"])
def test_checkpoints_can_be_chosen_by_any_metric(name, caplog):
    check(f"checkpoint.topk.monitor_key={name}")
    assert not caplog.records


def test_rollouts_name_what_they_measure():
    tabletop = "task.env_runner._target_=diffusion_policy.env_runner.tabletop_runner.TabletopRunner"
    check(tabletop, "checkpoint.topk.monitor_key=tabletop_success")


@pytest.mark.parametrize(
    ("overrides", "case", "why"),
    [
        ([FINE_TUNE], {"held_out": False}, "no episode is held out"),
        ([FINE_TUNE, "training.sample_every=0", "training.val_every=0"], {}, "training.sample_every is 0"),
        (["checkpoint.topk.monitor_key=val_gripper_f1"], {"names": POSE}, "the task has no gripper"),
        (
            ["checkpoint.topk.monitor_key=val_loss_model", "training.use_ema=False"], {}, "training.use_ema is false",
        ),
    ],
)  # fmt: skip
def test_a_ranking_by_something_unmeasured_is_reported(overrides, case, why, caplog):
    with caplog.at_level(logging.WARNING):
        check(*overrides, **case)
    assert f"which this run does not measure ({why})" in caplog.text


def test_the_names_are_those_that_runs_write(tmp_path):
    dataset = tiny_run.write_dataset(tmp_path / "set.zarr")
    settings = tiny_run.settings(dataset, "training.num_epochs=1", "training.sample_every=1")
    TrainDiffusionTransformerHybridWorkspace(settings, tmp_path / "run").run()
    last = read_metrics(tmp_path / "run" / "logs.json.txt")[-1]
    assert set(last) <= set(known_names(settings.n_action_steps))
    assert set(ALWAYS) <= set(last)
    settings.checkpoint.topk.monitor_key = "val_los"
    with pytest.raises(TrainingError, match="did you mean val_loss"):
        TrainDiffusionTransformerHybridWorkspace(settings, tmp_path / "refused").run()
