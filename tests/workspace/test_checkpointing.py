"""Which checkpoints are kept, how they are written, and what a full disk does."""

import math
import resource
import threading

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.checkpointing import CheckpointFolder, Names, Payload, Ranking, snapshot

SETTINGS = {
    "topk": {
        "monitor_key": "train_loss",
        "mode": "min",
        "k": 2,
        "format_str": "epoch={epoch:04d}-{train_loss:.3f}.ckpt",
    },
    "best": [{"monitor_key": "f1", "mode": "max"}, {"monitor_key": "error", "mode": "min"}],
    "save_last_ckpt": True,
    "save_last_snapshot": False,
}


def folder(path, state=None, **changes):
    return CheckpointFolder(path, OmegaConf.create(SETTINGS | changes), state)


def payload(value=0.0):
    weights = torch.full((4,), value)
    return Payload(
        cfg=OmegaConf.create({"name": "x"}),
        state_dicts={"model": {"a": weights, "b": weights}},
        pickles={"_output_dir": None, "global_step": 1, "epoch": 0},
        run_state={"step": 1},
        provenance={},
    )


def save(checkpoints, epoch, loss, **metrics):
    names = checkpoints.name({"epoch": epoch, "train_loss": loss} | metrics)
    checkpoints.write(names, payload(float(epoch)))
    checkpoints.wait(last=True)
    return names


def listed(path):
    return sorted(file.name for file in path.iterdir())


def test_the_best_k_stay_and_the_worst_makes_room(tmp_path):
    checkpoints = folder(tmp_path)
    for epoch, loss in enumerate([0.5, 0.3, 0.4, 0.9]):
        save(checkpoints, epoch, loss)
    assert listed(tmp_path) == ["epoch=0001-0.300.ckpt", "epoch=0002-0.400.ckpt", "latest.ckpt"]
    assert read_checkpoint(tmp_path / "latest.ckpt").state_dicts["model"]["a"][0] == 3
    assert (tmp_path / "epoch=0002-0.400.ckpt").stat().st_ino != (tmp_path / "latest.ckpt").stat().st_ino
    checkpoints.close()


def test_one_file_is_written_however_many_names_it_has(tmp_path):
    names = save(folder(tmp_path), 0, 0.5, f1=0.5)
    assert names.keep == ("latest.ckpt", "epoch=0000-0.500.ckpt", "best.ckpt")
    assert len({(tmp_path / name).stat().st_ino for name in names.keep}) == 1
    tensors = read_checkpoint(tmp_path / "best.ckpt").state_dicts["model"]
    assert tensors["a"].data_ptr() == tensors["b"].data_ptr()


def test_best_is_told_by_the_first_key_and_then_by_the_next(tmp_path):
    checkpoints = folder(tmp_path)
    saved = [
        save(checkpoints, 0, 0.5, error=3.0),
        save(checkpoints, 1, 0.5, f1=0.2, error=9.0),
        save(checkpoints, 2, 0.5, error=1.0),
        save(checkpoints, 3, 0.5, f1=0.2, error=8.0),
        save(checkpoints, 4, 0.5, f1=math.nan, error=1.0),
        save(checkpoints, 5, 0.5),
    ]
    assert ["best.ckpt" in names.keep for names in saved] == [True, True, False, True, False, False]
    assert checkpoints.best_metrics == {"epoch": 3, "error": 8.0, "f1": 0.2, "train_loss": 0.5}


def test_a_resumed_run_remembers_what_was_best(tmp_path):
    first = folder(tmp_path)
    save(first, 0, 0.1, f1=0.9)
    save(first, 1, 0.2)
    (tmp_path / "epoch=0001-0.200.ckpt").unlink()
    second = folder(tmp_path, first.state())
    assert "best.ckpt" not in save(second, 2, 0.3, f1=0.8).keep
    assert listed(tmp_path) == ["best.ckpt", "epoch=0000-0.100.ckpt", "epoch=0002-0.300.ckpt", "latest.ckpt"]


def test_topk_takes_several_metrics_too(tmp_path):
    topk = SETTINGS["topk"] | {"monitor_key": ["f1", "error"], "mode": ["max", "min"], "k": 1}
    checkpoints = folder(tmp_path, topk=topk)
    save(checkpoints, 0, 0.5, f1=0.5, error=2.0)
    save(checkpoints, 1, 0.5, f1=0.5, error=1.0)
    assert "epoch=0001-0.500.ckpt" in listed(tmp_path)
    assert "epoch=0000-0.500.ckpt" not in listed(tmp_path)


def test_a_failed_write_keeps_the_previous_file_and_says_so(tmp_path, caplog):
    checkpoints = folder(tmp_path)
    save(checkpoints, 0, 0.5)
    full = Payload(**{**vars(payload()), "run_state": {"unsaveable": object()}})
    checkpoints.write(Names(("latest.ckpt",)), full)
    checkpoints.wait()
    assert "could not be saved, the previous one is kept" in caplog.text
    assert read_checkpoint(tmp_path / "latest.ckpt").pickles["global_step"] == 1
    checkpoints.write(Names(("latest.ckpt",)), full)
    with pytest.raises(TrainingError, match="could not be saved, the previous one is kept"):
        checkpoints.close()


def test_what_could_not_be_written_is_not_the_best(tmp_path):
    checkpoints = folder(tmp_path)
    save(checkpoints, 0, 0.5, f1=0.2)
    names = checkpoints.name({"epoch": 1, "train_loss": 0.4, "f1": 0.9})
    assert "best.ckpt" in names.keep
    checkpoints.write(names, Payload(**{**vars(payload()), "run_state": {"unsaveable": object()}}))
    names = checkpoints.name({"epoch": 2, "train_loss": 0.3, "f1": 0.5})
    assert checkpoints.state()["best"] is not None
    assert "best.ckpt" in names.keep  # better than what is on the disk
    checkpoints.write(names, payload(2.0))
    checkpoints.wait(last=True)
    assert checkpoints.best_metrics == {"epoch": 2, "f1": 0.5, "train_loss": 0.3}
    assert listed(tmp_path) == ["best.ckpt", "epoch=0000-0.500.ckpt", "epoch=0002-0.300.ckpt", "latest.ckpt"]
    save(checkpoints, 3, 0.2)
    assert listed(tmp_path) == ["best.ckpt", "epoch=0002-0.300.ckpt", "epoch=0003-0.200.ckpt", "latest.ckpt"]


def test_the_next_copy_waits_for_the_last_write(tmp_path, monkeypatch):
    checkpoints, released = folder(tmp_path), threading.Event()
    written = []
    monkeypatch.setattr(checkpoints, "_write", lambda names, _: (released.wait(60), written.append(names.keep)))
    checkpoints.write(Names(("first",)), payload())
    threading.Timer(0.2, released.set).start()
    checkpoints.wait()  # what a run does before it copies
    assert written == [("first",)]


def test_a_disk_that_is_full_keeps_the_previous_file_and_is_named(tmp_path, caplog):
    checkpoints = folder(tmp_path)
    save(checkpoints, 0, 0.5)
    large = Payload(**{**vars(payload()), "state_dicts": {"model": {"a": torch.ones(500_000)}}})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # half of the file fits
    try:
        checkpoints.write(Names(("latest.ckpt",)), large)
        checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "the checkpoint could not be saved, the previous one is kept" in caplog.text
    assert "File too large" in caplog.text  # where the disk is full: No space left on device
    assert listed(tmp_path) == ["epoch=0000-0.500.ckpt", "latest.ckpt"]
    assert len(read_checkpoint(tmp_path / "latest.ckpt").state_dicts["model"]["a"]) == 4
    save(checkpoints, 1, 0.4)


def test_a_pattern_for_what_was_not_measured_is_an_error(tmp_path):
    topk = SETTINGS["topk"] | {"format_str": "{test_score}.ckpt"}
    with pytest.raises(TrainingError, match=r"format_str asks for 'test_score'.*there are \['epoch', 'train_loss'\]"):
        save(folder(tmp_path, topk=topk), 0, 0.5)


@pytest.mark.parametrize(("keys", "modes"), [(["a", "b"], "min"), ("a", "least"), ([], [])])
def test_a_ranking_needs_as_many_modes_as_keys(keys, modes):
    with pytest.raises(TrainingError, match="expected as many modes as metrics, each min or max"):
        Ranking.read(keys, modes)


def test_a_snapshot_is_a_copy_that_shares_what_was_shared():
    weights = torch.arange(4.0)
    state = {"a": weights, "b": weights, "c": [weights[:2]], "n": 3, "empty": torch.empty(0)}
    copied = snapshot(state)
    weights.zero_()
    assert copied["a"].tolist() == [0, 1, 2, 3]
    assert copied["a"] is copied["b"]
    assert copied["c"][0].tolist() == [0, 1]
    assert copied["n"] == 3
