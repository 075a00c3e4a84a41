"""Which checkpoints are kept, how they are written, and what a full disk does."""

import math
import resource
import threading

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.checkpointing import CheckpointFolder, CheckpointNames, Payload, Ranking, snapshot

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


MEASURED_WITH = {"scheduler": "ddim", "steps": 8, "tolerance_s": 1.0}


def folder(path, state=None, resumed_at=None, measured_with=MEASURED_WITH, **changes):
    return CheckpointFolder(path, OmegaConf.create(SETTINGS | changes), state, resumed_at, measured_with)


def payload(value=0.0, global_step=1, ranking=None):
    weights = torch.full((4,), value)
    return Payload(
        cfg=OmegaConf.create({"name": "x"}),
        state_dicts={"model": {"a": weights, "b": weights}},
        pickles={"_output_dir": None, "global_step": global_step, "epoch": 0},
        run_state={"step": 1, "ranking": ranking or {}},
        provenance={},
    )


def save(checkpoints, epoch, loss, *, due=True, global_step=None, **metrics):
    step = {} if global_step is None else {"global_step": global_step}
    names = checkpoints.name({"epoch": epoch, "train_loss": loss} | step | metrics, due=due)
    checkpoints.write(names, payload(float(epoch), **step, ranking=checkpoints.state()))
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


def test_best_is_determined_by_the_first_key_and_then_by_the_next(tmp_path):
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


@pytest.mark.parametrize("joints", ["val_joint_error_rad", "val_joint_error_deg", "val_joint_error"])
def test_without_a_pose_the_joints_decide_in_their_unit(tmp_path, joints):
    best = [{"monitor_key": "val_position_error_mm", "mode": "min"}, {"monitor_key": "val_loss", "mode": "min"}]
    checkpoints = folder(tmp_path, best=best)
    saved = [save(checkpoints, i, 0.5, **{joints: error, "val_loss": i}) for i, error in enumerate((0.3, 0.1, 0.2))]
    assert ["best.ckpt" in names.keep for names in saved] == [True, True, False]
    assert checkpoints.best_metrics[joints] == 0.1
    with_pose = [save(checkpoints, 3 + i, 0.5, val_position_error_mm=0.05 + i, **{joints: 9.0}) for i in range(2)]
    assert ["best.ckpt" in names.keep for names in with_pose] == [True, False], "where there is a pose, it decides"


def test_every_measurement_can_become_the_best(tmp_path):
    """Also between two checkpoints; nothing is written for one that is not the best."""
    checkpoints = folder(tmp_path)
    measured = [None, 0.3, 0.2, 0.5, None, math.nan, 0.5]
    saved = [
        save(checkpoints, epoch, 0.5, due=epoch == 0, global_step=10 * epoch, **({} if f1 is None else {"f1": f1}))
        for epoch, f1 in enumerate(measured)
    ]
    assert [names.keep for names in saved[1:]] == [
        ("latest.ckpt", "best.ckpt"), (), ("latest.ckpt", "best.ckpt"), (), (), (),
    ]  # fmt: skip
    assert read_checkpoint(tmp_path / "best.ckpt").state_dicts["model"]["a"][0] == 3
    assert (tmp_path / "best.ckpt").stat().st_ino == (tmp_path / "latest.ckpt").stat().st_ino
    assert checkpoints.state()["best_global_step"] == 30
    assert checkpoints.state()["best_measured_with"] == MEASURED_WITH


@pytest.mark.parametrize("key", ["f1", "train_loss"])
def test_what_was_not_measured_is_not_among_the_best(tmp_path, key):
    checkpoints = folder(tmp_path, topk=SETTINGS["topk"] | {"monitor_key": key})
    assert save(checkpoints, 0, math.nan).keep == ("latest.ckpt",)
    assert listed(tmp_path) == ["latest.ckpt"]
    assert checkpoints.best_metrics == {}


def test_a_kill_between_the_names_of_one_file_is_made_good(tmp_path):
    checkpoints = folder(tmp_path)
    save(checkpoints, 1, 0.5, global_step=10, f1=0.2)
    old = (tmp_path / "best.ckpt").read_bytes()
    save(checkpoints, 2, 0.5, global_step=20, f1=0.6)
    (tmp_path / "best.ckpt").unlink()
    (tmp_path / "best.ckpt").write_bytes(old)  # as after a kill before latest.ckpt had its second name
    state = read_checkpoint(tmp_path / "latest.ckpt").run_state["ranking"]
    again = folder(tmp_path, state, resumed_at=20)
    assert read_checkpoint(tmp_path / "best.ckpt").pickles["global_step"] == 20
    assert again.state() == checkpoints.state()


def test_a_run_that_goes_back_does_not_lose_a_better_checkpoint(tmp_path):
    checkpoints = folder(tmp_path)
    save(checkpoints, 1, 0.5, global_step=10, f1=0.2)
    early = checkpoints.state()
    save(checkpoints, 2, 0.5, global_step=20, f1=0.9)
    again = folder(tmp_path, early, resumed_at=10)
    assert again.best_metrics["f1"] == 0.9
    assert "best.ckpt" not in save(again, 3, 0.5, global_step=30, f1=0.5).keep


@pytest.mark.parametrize("content", [None, b"torn"], ids=["removed", "damaged"])
def test_without_a_best_checkpoint_the_next_measurement_is_the_best(tmp_path, content, caplog):
    checkpoints = folder(tmp_path)
    save(checkpoints, 1, 0.5, global_step=10, f1=0.9)
    save(checkpoints, 2, 0.4, global_step=20)
    (tmp_path / "best.ckpt").unlink()
    if content is not None:
        (tmp_path / "best.ckpt").write_bytes(content)
    again = folder(tmp_path, checkpoints.state(), resumed_at=20)
    assert "best.ckpt" in caplog.text
    assert "best.ckpt" in save(again, 3, 0.5, global_step=30, f1=0.1).keep


@pytest.mark.parametrize("before", [MEASURED_WITH | {"steps": 10}, {}], ids=["another sampler", "not said"])
def test_figures_of_another_measure_are_not_compared(tmp_path, before, caplog):
    first = folder(tmp_path, measured_with=before)
    save(first, 1, 0.5, global_step=10, f1=0.9)
    again = folder(tmp_path, first.state(), resumed_at=10)
    assert "chosen by figures that were measured differently" in caplog.text
    assert ("(steps: 10 -> 8)" if before else "(by a program that does not record how)") in caplog.text
    assert (tmp_path / "best_until_update_10.ckpt").is_file(), "what was best is kept"
    assert "best.ckpt" in save(again, 2, 0.5, global_step=20, f1=0.4).keep


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
    checkpoints.write(CheckpointNames(("latest.ckpt",)), full)
    checkpoints.wait()
    assert "could not be saved, the previous one is kept" in caplog.text
    assert read_checkpoint(tmp_path / "latest.ckpt").pickles["global_step"] == 1
    checkpoints.write(CheckpointNames(("latest.ckpt",)), full)
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
    checkpoints.write(CheckpointNames(("first",)), payload())
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
        checkpoints.write(CheckpointNames(("latest.ckpt",)), large)
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
    with pytest.raises(TrainingError, match=r"format_str uses 'test_score'.*there are \['epoch', 'train_loss'\]"):
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
