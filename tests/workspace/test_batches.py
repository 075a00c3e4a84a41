"""Which windows make up which update."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from diffusion_policy.workspace import TrainingError
from diffusion_policy.workspace.batches import (
    MOST_CATEGORIES,
    CachedBatches,
    EpochOrder,
    LoaderBatches,
    derived_seed,
    process_share,
)

CPU = torch.device("cpu")


class Numbers:
    """Window i holds the number i."""

    def __len__(self):
        return 11

    def get_batch(self, indices):
        numbers = torch.tensor(indices, dtype=torch.float32)[:, None, None]
        return {"obs": {"state": numbers}, "action": numbers}


def settings(workers=0):
    return OmegaConf.create({"num_workers": workers, "pin_memory": False, "persistent_workers": True})


def order(**changes):
    return EpochOrder(**{"n_windows": 11, "batch_size": 4, "seed": 7, "shuffle": True} | changes)


def flat(batches):
    return [index for batch in batches for index in batch]


def seen(batches, epoch, first=0):
    return [batch.data["action"].flatten().int().tolist() for batch in batches.epoch(epoch, first)]


def test_every_window_comes_once_an_epoch_and_in_another_order_each_time():
    assert [len(batch) for batch in order().batches(0)] == [4, 4, 3]
    first, second = (flat(order().batches(epoch)) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(11))
    assert first != second != list(range(11))
    assert flat(order(shuffle=False).batches(3)) == list(range(11))


def test_the_order_depends_on_seed_and_epoch_alone():
    torch.manual_seed(1)
    before = order().batches(5)
    torch.manual_seed(2)
    assert order().batches(5) == before
    assert order(seed=8).batches(5) != before


def test_weights_say_how_often_windows_are_drawn():
    weights = np.asarray([0.9 / 4] * 4 + [0.1 / 7] * 7)
    drawn = order(weights=weights, batch_size=11)
    counts = np.bincount(flat(batch for epoch in range(200) for batch in drawn.batches(epoch)), minlength=11)
    assert counts.sum() == 2200
    assert counts[:4].sum() / 2200 == pytest.approx(0.9, abs=0.03)  # five standard deviations
    assert drawn.batches(3) == order(weights=weights, batch_size=11).batches(3) != drawn.batches(4)
    with pytest.raises(TrainingError, match="windows with weights are drawn at random"):
        order(weights=weights, shuffle=False)


def test_more_windows_than_torch_draws_from_are_drawn_by_their_weights(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RuntimeError, match="number of categories"):
        torch.multinomial(torch.ones(1).expand(MOST_CATEGORIES + 1), 1, replacement=True)
    weights = np.asarray([0.0, 0.6, 0.3, 0.0, 0.1, *[0.0] * 6])
    generator = torch.Generator().manual_seed(derived_seed(7, 1, 0))
    expected = torch.multinomial(torch.from_numpy(weights), 11, replacement=True, generator=generator).tolist()
    monkeypatch.setattr("diffusion_policy.workspace.batches.MOST_CATEGORIES", 11)
    assert flat(order(weights=weights).batches(0)) == expected, "as before, so that runs go on"
    monkeypatch.setattr("diffusion_policy.workspace.batches.MOST_CATEGORIES", 10)
    drawn = order(weights=weights)
    counts = np.bincount(flat(batch for epoch in range(300) for batch in drawn.batches(epoch)), minlength=11)
    np.testing.assert_allclose(counts / counts.sum(), weights, atol=0.045)  # five standard deviations
    assert counts[weights == 0].sum() == 0
    assert drawn.batches(3) == order(weights=weights).batches(3) != drawn.batches(4)
    monkeypatch.setattr(torch, "rand", lambda count, **_: torch.ones(count, dtype=torch.float64))  # as if rounded up
    assert set(flat(drawn.batches(0))) == {4}, "the last window with a weight"


def test_max_batches_cuts_an_epoch_short():
    assert len(order(max_batches=2)) == len(order(max_batches=2).batches(0)) == 2
    assert len(order(max_batches=20)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_the_order_from_any_position_and_draws_no_random_number(workers):
    batches = LoaderBatches(Numbers(), settings(workers), order(), CPU)
    state = torch.get_rng_state()
    assert seen(batches, 0) == order().batches(0)
    assert seen(batches, 1, first=2) == order().batches(1)[2:]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("weights", [None, np.asarray([0.9 / 4] * 4 + [0.1 / 7] * 7)], ids=["alike", "weights"])
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_processes_share_each_batch_between_them(world_size, weights):
    drawn = order(weights=weights)
    kinds = [LoaderBatches(Numbers(), settings(), drawn, CPU, rank, world_size) for rank in range(world_size)]
    alone = [sorted(batch.indices) for batch in LoaderBatches(Numbers(), settings(), drawn, CPU).epoch(0)]
    assert [sorted(batch.indices) for batch in kinds[-1].epoch(0)] == alone
    for parts in zip(*(list(batches.epoch(0)) for batches in kinds), strict=True):
        held = [parts[0].indices[i] for part in parts for i in part.share]
        assert sorted(held) == sorted(parts[0].indices)
        assert sum(part.weight for part in parts) == pytest.approx(1)
        for part in parts:
            expected = [part.indices[i] for i in part.share] or [part.indices[0]]
            assert part.data["action"].flatten().int().tolist() == expected
            assert part.is_filler == (part.weight == 0)


def test_cached_batches_are_those_of_the_loader():
    rows = torch.arange(11)[:, None]
    steps = {"obs": {"state": torch.arange(11.0)[:, None]}, "action": torch.arange(11.0)[:, None]}
    for rank in (0, 1):
        cached = CachedBatches(steps, rows, rows, order(), CPU, rank, 2)
        loaded = LoaderBatches(Numbers(), settings(), order(), CPU, rank, 2)
        assert seen(cached, 4, 1) == seen(loaded, 4, 1)
        first, second = next(cached.epoch(0)), next(loaded.epoch(0))
        assert torch.equal(first.data["obs"]["state"], second.data["obs"]["state"])


def test_derived_seeds_are_independent():
    assert len({derived_seed(42, stream, i) for stream in range(4) for i in range(50)}) == 200
    assert list(process_share(5, 1, 2)) == [1, 3]


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(TrainingError, match="no window to train on"):
        order(n_windows=0)
    with pytest.raises(TrainingError, match="batch_size is 0"):
        order(batch_size=0)
