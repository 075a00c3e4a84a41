"""Episodes once held out stay held out, in a resumed run and in one that starts from another checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch

from diffusion_policy.checkpoint import read_checkpoint
from diffusion_policy.dataset.joined_datasets import JoinedDatasets
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.dataset.split import Split, split_of
from diffusion_policy.evaluate.episode_choice import choose_episodes
from diffusion_policy.workspace.data import open_data
from diffusion_policy.workspace.episode_roles import History, history_of
from diffusion_policy.workspace.metrics import read_metrics
from diffusion_policy.workspace.processes import Processes
from diffusion_policy.workspace.start import open_start
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
)

ALONE = Processes(torch.device("cpu"))
SEEDS = tuple(range(8))
RUN = ("training.num_epochs=1", "training.max_train_steps=1", "checkpoint.topk.k=0", "task.dataset.val_ratio=0.25")


def write(path: Path, seeds: tuple[int, ...]) -> Path:
    """A dataset of episodes identified by their seed."""
    tiny_run.write_dataset(path, ())
    buffer = ReplayBuffer.open(path, mode="r+")
    for seed in seeds:
        buffer.append(tiny_run.episode(12, seed))
    return path


def opened(dataset: Path | list[Path], history: History | None, *overrides: str):
    paths = dataset if isinstance(dataset, list) else [dataset]
    cfg = tiny_run.settings(paths[0], *RUN, f"task.dataset_path=[{','.join(map(str, paths))}]", *overrides)
    return open_data(cfg, ALONE, history)


def parts(data, seeds: tuple[int, ...]) -> tuple[set[int], set[int]]:
    """Returns the seeds of training and of held-out episodes."""
    masks = data.dataset.train_episodes, data.dataset.validation_episodes
    train, held_out = ({seeds[number] for number in np.flatnonzero(mask)} for mask in masks)
    return train, held_out


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The data of a training, and its split as stored in a checkpoint."""
    data = opened(write(tmp_path_factory.mktemp("first") / "set.zarr", SEEDS), None)
    return parts(data, SEEDS), split_of({"split": data.split.to_plain()}, "first.ckpt")


def history(split: Split | None, origin: str = "own checkpoint") -> History:
    return History(origin, Path("first.ckpt"), split)  # type: ignore[arg-type]


CHANGES: dict[str, tuple[int, ...]] = {
    "as it was": SEEDS,
    "appended to": (*SEEDS, 20, 21, 22, 23),
    "overwritten": (20, *SEEDS[1:], 21),
    "in another order": SEEDS[::-1],
    "a subset": SEEDS[2:],
    "one more": (*SEEDS, 20),
}


@pytest.mark.parametrize("origin", ["own checkpoint", "pretrained"])
@pytest.mark.parametrize("change", CHANGES)
def test_episodes_keep_their_part(first, tmp_path, change, origin):
    (trained, held_out), split = first
    seeds = CHANGES[change]
    data = opened(write(tmp_path / "set.zarr", seeds), history(split, origin))
    now_trained, now_held_out = parts(data, seeds)
    assert held_out & set(seeds) <= now_held_out
    assert not now_held_out & trained
    assert not now_trained & held_out
    new = set(seeds) - set(SEEDS)
    assert len(now_held_out & new) == (len(new) > 1) * max(1, round(len(new) / 4))
    assert now_trained | now_held_out == set(seeds)
    again = split_of({"split": data.split.to_plain()}, "second.ckpt")
    statuses = dict(zip(seeds, again.statuses([data.identities]), strict=True))
    assert {seed for seed, status in statuses.items() if status == "held out"} == now_held_out
    assert len(data.train.order) > 0


def test_joined_datasets_keep_the_parts_of_each(first, tmp_path):
    (_, held_out), split = first
    both = [write(tmp_path / "new.zarr", (20, 21, 22, 23)), write(tmp_path / "old.zarr", SEEDS)]
    _, now = parts(opened(both, history(split)), (20, 21, 22, 23, *SEEDS))
    assert held_out == now & set(SEEDS)
    assert len(now - set(SEEDS)) == 1


@pytest.mark.parametrize(
    "filters", [("task.dataset.max_train_episodes=3",), ("+task.dataset.exclude_episodes=[episode_0001]",)]
)
def test_what_was_left_out_is_not_new(tmp_path, filters):
    dataset = write(tmp_path / "set.zarr", SEEDS)
    before = opened(dataset, None, *filters)
    after = opened(dataset, history(before.split), *filters)
    assert parts(after, SEEDS) == parts(before, SEEDS)
    assert before.split == after.split
    unused = {SEEDS[number] for number in range(8)} - set.union(*parts(before, SEEDS))
    statuses = before.split.statuses([before.identities])
    assert {seed for seed, status in zip(SEEDS, statuses, strict=True) if status == "unseen"} == unused != set()


def test_a_duplicate_recording_is_reported(first, tmp_path, caplog):
    """Of the two episodes held out in the first dataset, one is trained on in the second."""
    (_, held_out), _ = first
    copies = tuple(held_out)
    data = opened([write(tmp_path / "a.zarr", SEEDS), write(tmp_path / "b.zarr", copies)], None)
    assert "1 of 3 held-out episodes are trained on, too" in caplog.text
    (copied,) = parts(data, (*SEEDS, *copies))[0] & held_out
    statuses = zip((*SEEDS, *copies), data.split.statuses([data.identities]), strict=True)
    assert {status for seed, status in statuses if seed == copied} == {"trained"}


def test_nothing_left_to_hold_out_is_reported(first, tmp_path, caplog):
    (trained, _), split = first
    seeds = tuple(sorted(trained))
    data = opened(write(tmp_path / "set.zarr", seeds), history(split, "pretrained"))
    assert "had been trained on all of these episodes" in caplog.text
    assert len(parts(data, seeds)[1]) > 0
    assert set(data.split.statuses([data.identities])) == {"trained"}, "errors on them are not held-out errors"


def test_training_on_what_was_held_out_is_reported(first, tmp_path, caplog):
    _, split = first
    data = opened(write(tmp_path / "set.zarr", SEEDS), history(split), "task.dataset.val_ratio=0")
    assert "2 episodes that first.ckpt held out are trained on from now on" in caplog.text
    assert set(data.split.statuses([data.identities])) == {"trained"}
    assert data.split.held_out == ()


def test_another_share_is_drawn_among_new_episodes_only(first, tmp_path, caplog):
    (_, held_out), split = first
    data = opened(write(tmp_path / "set.zarr", SEEDS), history(split), "task.dataset.val_ratio=0.6")
    assert parts(data, SEEDS)[1] == held_out
    assert "task.dataset.val_ratio=0.6 draws only among new ones" in caplog.text


def test_a_checkpoint_without_a_split_leaves_it_open(tmp_path):
    dataset = write(tmp_path / "set.zarr", SEEDS)
    for origin in ("own checkpoint", "pretrained"):
        data = opened(dataset, history(None, origin))
        assert not data.split.earlier_known
    assert opened(dataset, None).split.earlier_known


def test_a_run_resumed_on_an_appended_dataset_and_fine_tuned(tmp_path):
    """The whole path: train, append, resume, start another run from it, then evaluate."""
    dataset, folder = write(tmp_path / "set.zarr", SEEDS[:6]), tmp_path / "run"
    settings = tiny_run.settings(dataset, *RUN, "training.sample_every=0")
    TrainDiffusionTransformerHybridWorkspace(settings, folder).run()
    latest = folder / "checkpoints" / "latest.ckpt"
    before = split_of(read_checkpoint(latest).provenance, "latest.ckpt")
    line = read_metrics(folder / "logs.json.txt")[0]
    assert (line["episodes_trained"], line["episodes_held_out"]) == (len(before.trained), len(before.held_out))
    buffer = ReplayBuffer.open(dataset, mode="r+")
    for seed in (20, 21, 22, 23):
        buffer.append(tiny_run.episode(12, seed))
    settings.training.num_epochs = 2
    assert history_of(open_start(settings, folder)).split == before
    TrainDiffusionTransformerHybridWorkspace(settings, folder).run()
    after = split_of(read_checkpoint(latest).provenance, "latest.ckpt")
    assert set(before.held_out) < set(after.held_out)
    assert set(before.trained) < set(after.trained)
    fine = tiny_run.settings(dataset, *RUN, f"pretrained.path={latest}", "training.sample_every=0")
    TrainDiffusionTransformerHybridWorkspace(fine, tmp_path / "fine").run()
    tuned = read_checkpoint(tmp_path / "fine" / "checkpoints" / "latest.ckpt")
    split = split_of(tuned.provenance, "latest.ckpt")
    assert set(split.held_out) == set(after.held_out)
    assert set(split.earlier) == set(after.trained)
    choice = choose_episodes(JoinedDatasets(dataset), tuned)
    assert set(choice.statuses) == {"held out"}
    assert len(choice.numbers) == len(after.held_out)
