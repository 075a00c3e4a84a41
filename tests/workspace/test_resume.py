"""Law 6: a run killed at any instant and resumed equals one never stopped, to the bit."""

import multiprocessing
import signal
from pathlib import Path

import pytest
import tiny_run
from killed_run import run_until_killed
from same_runs import assert_same, assert_same_runs

from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.metrics import read_metrics
from diffusion_policy.workspace.start import LATEST
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

EPOCHS = 4
# 17 windows in batches of 4, two batches an update: 5 batches and 3 updates an epoch, the last of a single window.
SETTINGS = (
    f"training.num_epochs={EPOCHS}",
    "training.gradient_accumulate_every=2",
    "training.sample_every=0",
    "training.checkpoint_every=2",  # after epochs 1, 3 and 4
    "training.val_every=2",
    "dataloader.batch_size=4",
    "checkpoint.topk.k=1",
    "experiment=color_jitter",
    "observation_dropout=gripper",
    "loss=gripper_events",
    "training.threads=1",  # more would hang in a copy of a process that has had threads
)
UPDATES_PER_EPOCH = 3
HALF = EPOCHS // 2 * UPDATES_PER_EPOCH
WORKERS = ("dataloader.num_workers=2", "val_dataloader.num_workers=1")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "set.zarr")


def run(dataset: Path, folder: Path, *overrides: str):
    return TrainDiffusionTransformerHybridWorkspace(tiny_run.settings(dataset, *SETTINGS, *overrides), folder).run()


@pytest.fixture(scope="module")
def straight(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    run(dataset, folder)
    return folder


def killed(dataset: Path, folder: Path, when: str, *overrides: str) -> None:
    """In its own process: a copy of this one, with everything already loaded."""
    cfg = tiny_run.settings(dataset, *SETTINGS, *overrides)
    process = multiprocessing.get_context("fork").Process(target=run_until_killed, args=(cfg, folder, when))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


def assert_equal_runs(folder: Path, straight: Path) -> None:
    ours = assert_same_runs(folder, straight)
    assert ours.pickles["global_step"] == EPOCHS * UPDATES_PER_EPOCH
    assert ours.pickles["epoch"] == EPOCHS - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "overrides"),
    [
        pytest.param(f"update:{HALF + 2}", WORKERS, id="middle of an epoch, with workers"),
        pytest.param(f"write:{HALF}", (), id="middle of a checkpoint"),
        pytest.param(
            f"update:{HALF + 2}",
            ("training.checkpoint_every_steps=5", "training.cache=memory"),
            id="middle of an epoch, from a checkpoint in the middle of one",
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_a_killed_run_continues_as_if_nothing_had_happened(when, overrides, dataset, straight, tmp_path):
    killed(dataset, tmp_path, when, *overrides)
    before = read_checkpoint(tmp_path / "checkpoints" / LATEST)
    assert 0 < before.pickles["global_step"] < int(when.split(":")[1]) + 1
    run(dataset, tmp_path, *overrides)
    assert_equal_runs(tmp_path, straight)


@pytest.mark.slow
def test_the_fast_mode_of_this_machine_is_as_exact(dataset, straight, tmp_path):
    fast, short = tmp_path / "straight", ("training.precision=auto", "training.num_epochs=2")
    run(dataset, fast, *short)
    killed(dataset, tmp_path / "killed", f"update:{UPDATES_PER_EPOCH + 2}", *short)
    run(dataset, tmp_path / "killed", *short)
    ours, theirs = (read_checkpoint(path / "checkpoints" / LATEST) for path in (tmp_path / "killed", fast))
    assert_same(ours.state_dicts, theirs.state_dicts)
    assert_same(ours.run_state, theirs.run_state)
    first = [read_metrics(path / "logs.json.txt")[1]["train_loss"] for path in (fast, straight)]
    assert first[0] == pytest.approx(first[1], rel=0.02)


@pytest.mark.slow
def test_a_stopped_run_says_how_to_continue_and_equals_one_never_stopped(dataset, straight, tmp_path):
    class Stopped(TrainDiffusionTransformerHybridWorkspace):
        def _write_line(self, line):
            super()._write_line(line)
            if line["global_step"] == UPDATES_PER_EPOCH + 1:
                signal.raise_signal(signal.SIGINT)

    summary = Stopped(tiny_run.settings(dataset, *SETTINGS), tmp_path).run()
    assert summary.interrupted == signal.SIGINT
    assert "training.resume=True" in summary.next_command
    assert str(tmp_path) in summary.next_command
    state = read_checkpoint(tmp_path / "checkpoints" / LATEST).run_state
    assert state["progress"]["epoch"] == 1
    assert state["progress"]["global_step"] == UPDATES_PER_EPOCH + 1
    with pytest.raises(TrainingError, match=r"middle of an epoch whose batches are different now .batch_size: 4 -> 8"):
        run(dataset, tmp_path, "dataloader.batch_size=8")
    run(dataset, tmp_path)
    assert_equal_runs(tmp_path, straight)


def test_a_finished_run_has_nothing_left_to_do(dataset, straight):
    before = (straight / "logs.json.txt").read_text()
    summary = run(dataset, straight)
    assert summary.updates == EPOCHS * UPDATES_PER_EPOCH
    assert (straight / "logs.json.txt").read_text() == before
