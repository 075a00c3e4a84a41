"""One run after another, as users make them: pose policy, growth to 8-D, fine-tuning; and what is refused."""

import json
import logging

import dill
import numpy as np
import pytest
import tiny_run
import torch
from gripper_scales import rewrite_gripper
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion_policy.adapt import AdaptError
from diffusion_policy.adapt.pose_to_gripper import grow_7d_to_8d
from diffusion_policy.adapt.settings_fit import SettingsError
from diffusion_policy.checkpoint import load_policy, read_checkpoint
from diffusion_policy.dataset.replay_buffer import DatasetError, ReplayBuffer
from diffusion_policy.evaluate.recorded_inference import open_recorded
from diffusion_policy.spec import SpecError
from diffusion_policy.workspace import TrainingError, evaluator
from diffusion_policy.workspace.metrics import read_metrics
from diffusion_policy.workspace.start import LATEST
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace_ddp import (
    TrainDiffusionTransformerHybridWorkspaceDDP,
)

CHECKPOINT_OF_7D = "checkpoints/latest.ckpt"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "set.zarr")


def workspace(dataset, folder, *overrides):
    return TrainDiffusionTransformerHybridWorkspace(tiny_run.settings(dataset, *overrides), folder)


@pytest.fixture(scope="module")
def pose_run(dataset, tmp_path_factory):
    """A 7-D policy, trained for an epoch."""
    folder = tmp_path_factory.mktemp("pose")
    workspace(dataset, folder, "task=cogact_robot_7d", "training.num_epochs=1", "checkpoint.topk.k=2").run()
    return folder


@pytest.fixture(scope="module")
def grown(pose_run, dataset, tmp_path_factory):
    """The same policy, grown to 8-D."""
    path = tmp_path_factory.mktemp("grown") / "cogact_7d_to_8d_init.ckpt"
    grow_7d_to_8d(pose_run / CHECKPOINT_OF_7D, path, dataset=dataset)
    return path


def test_a_run_from_scratch_leaves_metrics_checkpoints_and_curves(pose_run):
    first, *steps, last = read_metrics(pose_run / "logs.json.txt")
    assert first["global_step"] == first["epoch"] == 0
    assert first["train_loss_before_first_update"] > 0
    assert first["val_loss_before_first_update"] > 0
    assert first["start"] == "scratch"
    assert [line["global_step"] for line in (*steps, last)] == [1, 2, 3]
    assert {"train_loss", "epoch", "lr"} <= steps[0].keys()
    assert {
        "train_loss",
        "val_loss",
        "val_loss_model",
        "val_position_error_mm",
        "val_rotation_error_deg",
    } <= last.keys()
    assert not any("gripper" in key for key in last)
    name = f"epoch=0000-train_loss={last['train_loss']:.3f}.ckpt"
    assert sorted(path.name for path in (pose_run / "checkpoints").iterdir()) == ["best.ckpt", name, LATEST]
    assert list((pose_run / "tensorboard").glob("events.out.tfevents.*"))


def test_checkpoints_have_the_layout_that_other_readers_know(pose_run):
    with (pose_run / CHECKPOINT_OF_7D).open("rb") as file:
        payload = torch.load(file, pickle_module=dill, weights_only=False)
    assert payload["cfg"].policy.n_layer == 1
    assert list(payload["state_dicts"]) == ["model", "ema_model", "optimizer"]
    assert {key: dill.loads(value) for key, value in payload["pickles"].items()} == {
        "_output_dir": str(pose_run),
        "global_step": 3,
        "epoch": 0,
    }
    assert payload["provenance"]["action_semantics"]["names"] == ["x", "y", "z", "qx", "qy", "qz", "qw"]
    policy = load_policy(pose_run / CHECKPOINT_OF_7D)
    assert policy.action_dim == 7


def test_model_and_average_start_from_the_grown_weights_and_the_log_says_so(dataset, grown, tmp_path, caplog):
    run = workspace(dataset, tmp_path, f"pretrained.path={grown}", "training.num_epochs=0")
    with caplog.at_level(logging.INFO):
        run.run()
    source = read_checkpoint(grown)
    for part, policy in (("model", run.model), ("ema_model", run.ema_model)):
        for key, tensor in policy.state_dict().items():
            assert torch.equal(tensor, source.state_dicts[part][key]), (part, key)
    (line,) = read_metrics(tmp_path / "logs.json.txt")
    assert line["start"] == "pretrained"
    assert line["grown_tensors"] > 0
    assert line["fresh_tensors"] == 0
    total = len({tensor.data_ptr() for tensor in run.model.state_dict().values() if tensor.numel()})
    assert line["inherited_tensors"] + line["grown_tensors"] >= total
    sentence = f"inherited {line['inherited_tensors']} tensors ({line['inherited_parameters']} parameters), grown"
    assert sentence in caplog.text


def test_an_average_that_will_be_forgotten_is_reported(dataset, grown, tmp_path, caplog):
    overrides = (f"pretrained.path={grown}", "training.num_epochs=0")
    workspace(dataset, tmp_path / "same", *overrides).run()
    sentence = "pretrained.which=same: training starts from the live weights"
    assert sentence in caplog.text
    caplog.clear()
    workspace(dataset, tmp_path / "average", *overrides, "pretrained.which=ema_model").run()
    workspace(dataset, tmp_path / "without", *overrides, "training.use_ema=False").run()
    assert sentence not in caplog.text


def test_either_kind_of_weights_can_be_where_both_start(dataset, grown, tmp_path):
    run = workspace(
        dataset, tmp_path, f"pretrained.path={grown}", "pretrained.which=ema_model", "training.num_epochs=0"
    )
    run.run()
    expected = read_checkpoint(grown).state_dicts["ema_model"]
    for policy in (run.model, run.ema_model):
        assert all(torch.equal(tensor, expected[key]) for key, tensor in policy.state_dict().items())
    with pytest.raises(AdaptError, match=r"pretrained.which is 'best'; expected one of same, ema_model, model"):
        workspace(dataset, tmp_path, f"pretrained.path={grown}", "pretrained.which=best").run()


@pytest.fixture(scope="module")
def fine_tuned(dataset, grown, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fine_tuned")
    overrides = (
        "experiment=finetune_8d",
        f"pretrained.path={grown}",
        "training.num_epochs=2",
        "training.checkpoint_every=1",
        "training.sample_every=1",
        "stages=new_first",
        "stages.0.steps=3",
        "learning_rates=by_ledger",
    )
    run = workspace(dataset, folder, *overrides)
    watched = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    summary = run.run()
    return folder, summary, run, watched


def test_fine_tuning_ends_with_gripper_scores_a_best_checkpoint_and_the_next_command(fine_tuned):
    folder, summary, _, _ = fine_tuned
    last = read_metrics(folder / "logs.json.txt")[-1]
    assert 0 <= last["val_gripper_f1"] <= 1
    assert last["val_gripper_events_recorded"] == 2
    assert {"val_gripper_frame_accuracy", "val_gripper_recall_low", "val_gripper_f1_model"} <= last.keys()
    assert summary.checkpoint == folder / "checkpoints" / "best.ckpt"
    assert "val_gripper_f1" in summary.figures
    assert summary.next_command.startswith("python scripts/run_offline_inference.py ")
    assert "finished after 2 epochs, 6 updates" in str(summary)


def test_the_ledger_travels_with_the_run(fine_tuned, grown):
    folder, _, _, _ = fine_tuned
    provenance = read_checkpoint(folder / "checkpoints" / LATEST).provenance
    assert provenance["start"]["origin"] == "pretrained"
    assert provenance["pretrained"]["name"] == grown.name
    assert provenance["adaptation"]["ledger"]["counts"]["model"]["grown"]["tensors"] > 0
    json.dumps(provenance)


def test_a_fine_tuned_run_resumes_with_its_groups(fine_tuned, dataset, grown, tmp_path):
    folder, _, _, _ = fine_tuned
    overrides = ("experiment=finetune_8d", "training.num_epochs=3", "learning_rates=by_ledger")
    summary = workspace(dataset, tmp_path, *overrides, f"training.resume='{folder}'").run()
    assert summary.updates == 9


def test_a_weighted_loss_that_differs_from_the_one_before_the_first_update_is_reported(dataset, tmp_path, caplog):
    sentence = "train_loss counts the gripper 2 times and steps near its changes 4 times"
    with caplog.at_level(logging.INFO):
        workspace(dataset, tmp_path / "plain", "training.num_epochs=0").run()
        assert sentence not in caplog.text
        summary = workspace(dataset, tmp_path / "weighted", "training.num_epochs=0", "loss=gripper_events").run()
    assert sentence in caplog.text
    assert summary.next_command is None
    assert "checkpoint: none was saved" in str(summary)


def test_a_run_whose_loss_falls_without_gripper_events_warns_and_draws_pictures(dataset, tmp_path, caplog, monkeypatch):
    run = workspace(dataset, tmp_path, "training.num_epochs=1", "training.sample_every=1")
    run.progress.first_epoch_loss = 1000.0  # as if it had started there
    monkeypatch.setattr(
        evaluator, "gripper_scores", lambda *_: {"val_gripper_events_recorded": 2, "val_gripper_events_found": 0}
    )
    run.run()
    assert "the training loss fell from 1000.0000 to " in caplog.text
    assert "none of 2 recorded gripper events is predicted yet" in caplog.text
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (picture,) = board.Tags()["images"]
    assert picture.startswith("episode_")
    assert {"train_loss", "val_loss", "val_position_error_mm_step_8", "lr"} <= set(board.Tags()["scalars"])


def test_debug_is_two_short_epochs_with_everything_on(dataset, tmp_path):
    summary = workspace(
        dataset, tmp_path, "training.debug=True", "training.num_epochs=50", "dataloader.batch_size=2"
    ).run()
    assert (summary.epochs, summary.updates) == (2, 6)
    last = read_metrics(tmp_path / "logs.json.txt")[-1]
    assert {"val_loss", "val_gripper_f1"} <= last.keys()


def test_data_outside_the_inherited_range_is_named(pose_run, grown, tmp_path, caplog):
    shifted = tiny_run.write_dataset(tmp_path / "shifted.zarr")
    buffer = ReplayBuffer.open(shifted, mode="r+")
    for key in ("action", "robot_eef_pose"):
        values = np.asarray(buffer[key][:])
        values[:, 2] += 0.5
        buffer[key][:] = values
    overrides = (f"pretrained.path={grown}", "pretrained.which=ema_model", "training.num_epochs=0")
    run = workspace(shifted, tmp_path / "run", *overrides)
    run.run()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text.split(" is ")[0] for text in warnings] == [
        "data outside the inherited range: action.z",
        "data outside the inherited range: robot_eef_pose.z",
    ]
    inherited = read_checkpoint(grown).state_dicts["ema_model"]["normalizer.params_dict.action.scale"]
    assert torch.equal(run.model.normalizer["action"].params_dict["scale"], inherited)
    caplog.clear()
    refitted = workspace(shifted, tmp_path / "refit", *overrides, "normalizer=refit")
    refitted.run()
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    for policy in (refitted.model, refitted.ema_model):
        assert policy.normalizer["action"].params_dict["input_stats"]["max"][2] == pytest.approx(0.7)


REFUSALS = {
    "missing dataset": (["task.dataset_path=/absent.zarr"], DatasetError, "no zarr dataset there"),
    "missing checkpoint": (
        ["pretrained.path=/absent.ckpt"],
        TrainingError,
        "pretrained.path=/absent.ckpt: no such file",
    ),
    "resume from nothing": (["training.resume=/absent"], TrainingError, "training.resume=/absent: no checkpoint there"),
    "too short": (["horizon=60", "n_action_steps=8"], DatasetError, "no window of 60 steps"),
    "no such device": (["training.device=cuda:7"], TrainingError, "training.device=cuda:7"),
    "no such kind": (["training.device=gpu"], TrainingError, "no such kind of device"),
    "normalizer": (["normalizer=keep"], TrainingError, "expected inherit or refit"),
    "snapshot": (["checkpoint.save_last_snapshot=True"], TrainingError, "latest.ckpt holds the complete run"),
    "schedule": (["training.lr_scheduler=cosinus"], TrainingError, "training.lr_scheduler"),
    "precision": (["training.precision=fp16"], TrainingError, "expected one of auto, bf16, float32"),
    "cache": (["training.cache=disk"], TrainingError, "expected one of none, memory, device"),
    "wandb mode": (["logging.mode=on"], TrainingError, "expected disabled, offline or online"),
    "weights without gripper": (
        ["task=cogact_robot_7d", "loss=gripper_events"],
        TrainingError,
        "loss weights the gripper, but actions are",
    ),
    "dropout": (["observation_dropout.gripper=2"], TrainingError, "expected a share from 0 to 1"),
    "dropout key": (
        ["observation_dropout.gripper=0.5", "observation_dropout.key=grip"],
        SpecError,
        "no observation key",
    ),
    "dataset reads other actions": (
        ["task.dataset.shape_meta={obs: {robot_eef_pose: {shape: [7], type: low_dim}}, action: {shape: [7]}}"],
        SpecError,
        r"task.dataset.shape_meta and task.shape_meta differ",
    ),
    "dataset weights": (
        ["+task.dataset.weights=[1.0]", "dataloader.shuffle=False"],
        TrainingError,
        "windows with weights are drawn at random; set dataloader.shuffle=True",
    ),
    "loss weights of an inpainted sample": (
        ["loss=gripper_events", "obs_as_cond=False", "policy.n_obs_steps=2"],
        TrainingError,
        "loss weights need a policy that denoises only actions",
    ),
    "dataset option": (["+task.dataset.val_rato=0.1"], TrainingError, "task.dataset cannot be built"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_start_is_refused_with_one_sentence(name, dataset, tmp_path):
    overrides, error, message = REFUSALS[name]
    with pytest.raises(error, match=message) as caught:
        workspace(dataset, tmp_path, *overrides).run()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()


def test_a_pose_policy_is_not_taken_for_one_with_a_gripper(dataset, pose_run, tmp_path):
    with pytest.raises(AdaptError, match=r"predicts 7 numbers.*the task has 8.*finetune_from_7d_to_8d.py"):
        workspace(dataset, tmp_path, f"pretrained.path={pose_run / CHECKPOINT_OF_7D}").run()


def test_a_rotation_vector_policy_is_refused_by_its_statistics(dataset, grown, tmp_path):
    checkpoint = read_checkpoint(grown)
    run = workspace(dataset, tmp_path, "training.num_epochs=0")
    stats = checkpoint.state_dicts["model"]
    entry = "normalizer.params_dict.action.input_stats"
    low, high = [0.3, -0.2, 0.0, -3.1, -1.0, -1.0, 0.03], [0.5, 0.2, 0.4, 3.1, 1.0, 1.0, 0.08]
    stats[f"{entry}.min"], stats[f"{entry}.max"] = torch.tensor(low), torch.tensor(high)
    from diffusion_policy.workspace.start import check_actions

    with pytest.raises(AdaptError, match="rotation vector and gripper width"):
        check_actions(checkpoint, run.model.spec)


def test_semantics_of_dataset_and_checkpoint_are_compared(grown, tmp_path):
    other = tiny_run.write_dataset(tmp_path / "other.zarr")
    group = ReplayBuffer.open(other, mode="r+").root
    from diffusion_policy.spec import action_semantics

    group.attrs["action_semantics"] = {**action_semantics(), "quaternion_order": "wxyz"}
    with pytest.raises(SpecError, match="quaternion_order"):
        workspace(other, tmp_path / "run", f"pretrained.path={grown}").run()


def test_a_gap_in_the_weights_is_an_error_unless_coverage_allows_it(dataset, grown, tmp_path):
    with pytest.raises(AdaptError, match=r"policy.n_layer 1 \(here 2\)\nadd to the command: policy.n_layer=1$"):
        workspace(dataset, tmp_path, f"pretrained.path={grown}", "policy.n_layer=2").run()
    run = workspace(
        dataset, tmp_path, f"pretrained.path={grown}", "policy.n_layer=2", "pretrained.min_coverage=0.9",
        "training.num_epochs=0",
    )  # fmt: skip
    run.run()
    (line,) = read_metrics(tmp_path / "logs.json.txt")
    assert line["fresh_tensors"] == 20 - 2  # of one decoder layer


@pytest.mark.parametrize("override", ["policy.n_head=4", "policy.noise_scheduler.prediction_type=sample"])
def test_another_function_of_the_same_tensors_is_refused_at_the_start_and_when_resumed(
    dataset, grown, pose_run, tmp_path, override
):
    name = override.partition("=")[0]
    mend = {"policy.n_head": "2", "policy.noise_scheduler.prediction_type": "epsilon"}[name]
    asked = rf"{name} {mend} \(here .*\nadd to the command: {name}={mend}\nor, .*'pretrained\.accept=\[{name}\]'$"
    with pytest.raises(SettingsError, match=asked):
        workspace(dataset, tmp_path / "new", f"pretrained.path={grown}", override).run()
    own = pose_run / CHECKPOINT_OF_7D
    with pytest.raises(SettingsError, match=asked):
        workspace(dataset, tmp_path / "on", "task=cogact_robot_7d", f"training.resume={own}", override).run()
    run = workspace(
        dataset, tmp_path / "meant", f"pretrained.path={grown}", override, f"pretrained.accept=[{name}]",
        "training.num_epochs=0",
    )  # fmt: skip
    run.run()
    (line,) = read_metrics(tmp_path / "meant" / "logs.json.txt")
    assert line["start"] == "pretrained"


def test_the_old_name_of_the_workspace_is_the_same_class():
    assert TrainDiffusionTransformerHybridWorkspaceDDP is TrainDiffusionTransformerHybridWorkspace


def test_a_checkpoint_of_the_predecessor_cannot_be_resumed(dataset, grown, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / CHECKPOINT_OF_7D).symlink_to(grown)
    with pytest.raises(TrainingError, match=r"was not written by this program.*pretrained\.path="):
        workspace(dataset, tmp_path).run()


def test_a_foreign_gripper_is_refused_before_anything_is_written(tmp_path):
    path = rewrite_gripper(tiny_run.write_dataset(tmp_path / "set.zarr"), "signed_closed1")
    with pytest.raises(SpecError, match=r"task\.dataset\.gripper_scale=signed_closed1"):
        workspace(path, tmp_path / "run", "training.num_epochs=1").run()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_declared_scale_is_trained_on_as_0_to_1_and_remembered(tmp_path):
    path = rewrite_gripper(tiny_run.write_dataset(tmp_path / "set.zarr"), "signed_closed1", "meters:0.08")
    scale = "signed_closed1/meters:0.08"
    workspace(path, tmp_path / "run", "training.num_epochs=1", f"task.dataset.gripper_scale={scale}").run()
    written = tmp_path / "run" / "checkpoints" / LATEST
    provenance = read_checkpoint(written).provenance
    assert provenance["gripper_scale"] == [scale]
    assert provenance["action_semantics"]["gripper"] == {"open": 1.0, "closed": 0.0}, "the policy's own"
    recorded, _ = open_recorded(written, path)
    assert set(recorded.buffer.rows("action")[:, 7]) == {0.0, 1.0}, "evaluation knows what training was told"
    assert "val_gripper_f1" in read_metrics(tmp_path / "run" / "logs.json.txt")[-1]
