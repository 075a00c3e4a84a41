"""Every schedule: held after its end, resumed to the bit, and a jump of the rate is reported with its numbers."""

import pytest
import tiny_run
import torch
from diffusers.optimization import SchedulerType
from omegaconf import OmegaConf

from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.metrics import read_metrics
from diffusion_policy.workspace.run_state import TrainingProgress
from diffusion_policy.workspace.schedule import (
    SCHEDULES,
    make_schedule,
    plain_schedule,
    resume_rates,
    total_updates,
)
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

WARM_UP = 4
RATE = 1e-3


def settings(name, **more):
    defaults = {"lr_scheduler": name, "lr_warmup_steps": WARM_UP, "num_epochs": 4, "gradient_accumulate_every": 1}
    return OmegaConf.create({**defaults, **more})


def start(name, n_updates, rate=RATE):
    """An optimizer of two groups, the second at half the rate, and its schedule."""
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": [p], "lr": rate / n} for n, p in enumerate(parameters, start=1)]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    return optimizer, make_schedule(optimizer, settings(name), n_updates)


def rates(optimizer, schedule, n):
    """Returns the rates of the next updates, for both groups."""
    found = []
    for _ in range(n):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


def resumed(name, at, before, after, rate=RATE, new_rate=RATE):
    """Resumes the state saved after update `at` of a run of `before` updates, in a run of `after` updates."""
    optimizer, schedule = start(name, before, rate)
    rates(optimizer, schedule, at)
    saved = optimizer.state_dict(), plain_schedule(schedule.state_dict())
    optimizer, schedule = start(name, after, new_rate)
    resume_rates(optimizer, schedule, *saved)
    return optimizer, schedule


def test_the_schedules_are_those_of_the_library():
    assert {*SCHEDULES, "piecewise_constant"} == {kind.value for kind in SchedulerType}


@pytest.mark.parametrize("name", ["piecewise_constant", "cosin"])
def test_what_cannot_be_asked_for_is_refused_with_what_can(name):
    with pytest.raises(TrainingError, match=f"training.lr_scheduler is '{name}'; expected one of .*cosine"):
        start(name, 20)


@pytest.mark.parametrize("name", SCHEDULES)
def test_after_its_end_a_rate_stays(name):
    found = [first for first, _ in rates(*start(name, 20), 60)]
    assert found[20:] == [found[20]] * 40
    after_warm_up = found[WARM_UP:]
    assert after_warm_up == sorted(after_warm_up, reverse=True)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("at", [0, 1, WARM_UP, 11, 19, 20])
def test_a_resumed_schedule_is_bit_equal_and_nothing_is_reported(name, at, caplog):
    straight = rates(*start(name, 20), 30)
    assert rates(*resumed(name, at, 20, 20), 30 - at) == straight[at:]
    assert caplog.text == ""


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("after", [5, 12, 15, 16])
def test_with_fewer_updates_a_rate_never_rises(name, after):
    """A larger batch or fewer epochs: the schedule may have ended before the update that the run continues with."""
    last = rates(*start(name, 40), 15)[-1][0]
    found = [first for first, _ in rates(*resumed(name, 15, 40, after), 50)]
    assert max(found) <= last
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if not name.startswith("constant")])
def test_a_jump_is_said_with_its_numbers(name, caplog):
    old = rates(*start(name, 40), 31)[30][0]
    new = rates(*resumed(name, 30, 40, 400), 1)[0][0]
    assert new > 1.1 * old
    assert f"jumps at update 30: from {old:.3g}, where the run was, to {new:.3g} by the present config" in caplog.text
    caplog.clear()
    resumed(name, 30, 40, 31)
    assert "jumps at update 30" in caplog.text


def test_another_learning_rate_is_used_and_reported(caplog):
    optimizer, schedule = resumed("constant", 3, 40, 40, new_rate=RATE / 10)
    assert rates(optimizer, schedule, 2) == [[RATE / 10, RATE / 20]] * 2
    assert "jumps at update 3: from 0.001, where the run was, to 0.0001" in caplog.text


def test_other_groups_are_refused():
    optimizer, schedule = start("cosine", 40)
    saved = optimizer.state_dict(), plain_schedule(schedule.state_dict())
    alone = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=RATE)
    with pytest.raises(TrainingError, match=r"groups are not those of the run .*; resume with its learning_rates"):
        resume_rates(alone, make_schedule(alone, settings("cosine"), 40), *saved)


@pytest.mark.parametrize(("n_batches", "accumulated"), [(10, 1), (10, 3), (7, 2)])
def test_the_number_of_updates_does_not_depend_on_where_a_run_was_stopped(n_batches, accumulated):
    an_epoch = -(-n_batches // accumulated)
    chosen = settings("cosine", gradient_accumulate_every=accumulated)
    for epoch in range(4):
        for made in range(an_epoch + 1):
            progress = TrainingProgress(epoch, min(made * accumulated, n_batches), epoch * an_epoch + made)
            assert total_updates(progress, n_batches, chosen) == 4 * an_epoch
    assert total_updates(TrainingProgress(4, 0, 4 * an_epoch), n_batches, chosen) == 4 * an_epoch


def test_a_run_that_continues_with_a_larger_batch_comes_down_at_its_own_end(tmp_path, caplog):
    """Updates 0 to 8 of 15 were made; then an epoch is one update instead of three."""
    dataset = tiny_run.write_dataset(tmp_path / "set.zarr")
    small = ("training.sample_every=0", "checkpoint.topk.k=0", "dataloader.batch_size=6")

    def run(*overrides):
        return TrainDiffusionTransformerHybridWorkspace(tiny_run.settings(dataset, *small, *overrides), tmp_path).run()

    class Stopped(TrainDiffusionTransformerHybridWorkspace):
        def _epoch(self):
            super()._epoch()
            if self.progress.epoch == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stopped(tiny_run.settings(dataset, *small, "training.num_epochs=5"), tmp_path).run()
    run("training.num_epochs=5", "dataloader.batch_size=32")
    made = [line["lr"] for line in read_metrics(tmp_path / "logs.json.txt") if "lr" in line]
    assert len(made) == 9 + 2
    assert made[2:] == sorted(made[2:], reverse=True)
    assert made[-1] < 0.1 * max(made)
    assert "the learning rate jumps at update 9: from " in caplog.text
