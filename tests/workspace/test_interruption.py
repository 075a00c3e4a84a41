"""The first signal ends a run properly and is answered; the second takes effect at once; workers ignore both."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time

import pytest
import tiny_run
import torch
from same_runs import assert_same_runs

from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.run_folder import LATEST
from diffusion_policy.workspace import TrainingError, interruption
from diffusion_policy.workspace.data import open_data
from diffusion_policy.workspace.interruption import StopRequest
from diffusion_policy.workspace.processes import Processes
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)


@pytest.fixture
def handlers():
    """Restores the previous signal handlers."""
    before = {number: signal.getsignal(number) for number in interruption.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_run.write_dataset(tmp_path_factory.mktemp("data") / "set.zarr")


def test_the_first_signal_is_remembered_and_answered_and_the_second_ends_at_once(capfd):
    with StopRequest() as stop:
        assert stop.signal is None
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        assert "SIGINT: the update or validation under way is finished" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("second", interruption.SIGNALS)
def test_what_comes_within_moments_is_the_same_request(handlers, monkeypatch, capfd, first, second):
    """`timeout` signals a process and then its group; systemd may send two kinds."""
    heard = []
    for number in interruption.SIGNALS:
        signal.signal(number, lambda number, _: heard.append(number))
    with StopRequest() as stop:
        signal.raise_signal(first)
        signal.raise_signal(second)
        assert (stop.signal, heard) == (first, [])
        later = time.monotonic() + interruption.SAME_REQUEST_S
        monkeypatch.setattr(time, "monotonic", lambda: later)
        signal.raise_signal(second)
        assert heard == [second]
    assert capfd.readouterr().err.count("finished, then a checkpoint is saved") == (first == signal.SIGTERM)


def test_torchrun_passes_a_signal_on_that_the_run_has_heard(handlers, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT


def test_a_run_that_was_started_to_outlive_its_terminal_does(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.signal is None


def test_all_processes_agree(handlers):
    class Several(Processes):
        def gather(self, value):
            return [None, value, signal.SIGTERM]

    with StopRequest() as stop:
        assert not stop.ask(Processes(torch.device("cpu")))
        assert stop.ask(Several(torch.device("cpu")))
        assert (stop.signal, stop.agreed) == (None, signal.SIGTERM)


def test_only_the_process_that_talks_to_the_user_answers(capfd):
    with StopRequest(reports=False):
        signal.raise_signal(signal.SIGTERM)
    with StopRequest():
        child = os.fork()
        if child == 0:  # like a process that does not yet ignore the signal
            signal.raise_signal(signal.SIGINT)
            os._exit(0)
        os.waitpid(child, 0)
    assert capfd.readouterr().err == ""


def children():
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=True
    )
    return {int(pid) for pid in listed.stdout.split()}


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_loader_workers_read_on_whatever_they_are_sent_and_end_with_their_parent(dataset, number):
    workers = ("dataloader.num_workers=2", "dataloader.batch_size=2")
    data = open_data(tiny_run.settings(dataset, *workers), Processes(torch.device("cpu")))
    before = children()
    batches = data.train.epoch(0)
    read = [next(batches)]
    started = children() - before
    assert started
    subprocess.run(["kill", f"-{number.value}", *map(str, started)], check=False)  # from another process, like scancel
    read += list(batches)
    assert [batch.number for batch in read] == list(range(len(data.train.order)))
    begun = time.monotonic()
    data.close()
    assert time.monotonic() - begun < 4  # torch terminates what does not end within five seconds
    assert not (children() & started)


def test_loader_workers_end_when_their_parent_terminates_them(dataset):
    data = open_data(tiny_run.settings(dataset, "dataloader.num_workers=1"), Processes(torch.device("cpu")))
    next(data.train.epoch(0))
    (worker,) = data.train._loader._iterator._workers
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


class BrokenWorkspace(TrainDiffusionTransformerHybridWorkspace):
    """Fails when the first update is logged."""

    def _count(self, metrics):
        raise TrainingError("broken")


@pytest.mark.parametrize("kind", [TrainDiffusionTransformerHybridWorkspace, BrokenWorkspace])
def test_loader_workers_end_with_the_run(dataset, tmp_path, kind):
    """Otherwise each would delay whatever this process does next by five seconds."""
    short = ("training.num_epochs=1", "training.max_train_steps=1", "training.sample_every=0")
    workers = ("dataloader.num_workers=1", "val_dataloader.num_workers=1")
    before = set(multiprocessing.active_children())
    run = kind(tiny_run.settings(dataset, *short, *workers), tmp_path)
    with pytest.raises(TrainingError, match="broken") if kind is BrokenWorkspace else contextlib.nullcontext():
        run.run()
    assert set(multiprocessing.active_children()) <= before


# 17 windows in batches of 4, two batches an update: 3 updates an epoch.
SETTINGS = (
    "training.gradient_accumulate_every=2",
    "training.sample_every=0",
    "training.checkpoint_every=50",
    "dataloader.batch_size=4",
    "checkpoint.topk.k=0",
)


@pytest.fixture(scope="module")
def straight(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    TrainDiffusionTransformerHybridWorkspace(tiny_run.settings(dataset, *SETTINGS), folder).run()
    return folder


class StoppedWorkspace(TrainDiffusionTransformerHybridWorkspace):
    """Gets a request to stop during update `at`, or during validation after epoch 0."""

    at = None

    def _make_updates(self, initialization):
        super()._make_updates(initialization)
        make = self._updates.make

        def make_and_stop(*arguments):
            outcome = make(*arguments)
            if outcome.global_step == self.at:
                signal.raise_signal(signal.SIGTERM)
            return outcome

        self._updates.make = make_and_stop

    def _prepare(self, *arguments):
        super()._prepare(*arguments)
        measure = self._evaluator.after_epoch

        def measure_and_stop(*arguments):
            found = measure(*arguments)
            if self.at is None and self.progress.epoch == 0:
                signal.raise_signal(signal.SIGTERM)
            return found

        self._evaluator.after_epoch = measure_and_stop


@pytest.mark.parametrize(
    "at",
    [3, None, *(pytest.param(at, marks=pytest.mark.exhaustive) for at in (1, 2, 5, 6))],
    ids=lambda at: f"update {at}" if at else "validation",
)
def test_a_run_that_is_stopped_anywhere_continues_as_if_it_had_not(dataset, straight, tmp_path, at):
    """Including the last update of an epoch, whose validation the resumed run then makes."""
    stopped = StoppedWorkspace(tiny_run.settings(dataset, *SETTINGS), tmp_path)
    stopped.at = at
    summary = stopped.run()
    assert summary.interrupted == signal.SIGTERM
    assert read_checkpoint(tmp_path / "checkpoints" / LATEST).pickles["global_step"] == (at or 3)
    TrainDiffusionTransformerHybridWorkspace(tiny_run.settings(dataset, *SETTINGS), tmp_path).run()
    assert_same_runs(tmp_path, straight)
