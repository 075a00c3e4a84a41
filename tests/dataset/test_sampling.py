"""Shares of datasets and tasks: what is drawn, what is reported, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dataset_factory
import numpy as np
import pytest

from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.dataset.errors import DatasetError
from diffusion_policy.dataset.sampling import Share
from diffusion_policy.run_folder import LOG_NAME, SAMPLING_NAME, RunFolderError
from diffusion_policy.run_folder.reading import open_run


def opened(path: Any, weights: Any, **options: Any) -> CogActImageDataset:
    return CogActImageDataset(dataset_factory.SHAPE_META, path, horizon=4, weights=weights, **options)


@pytest.fixture(name="told", scope="module")
def dataset_with_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of 8 and 12 steps with the tasks "push" and "pull it; push"."""
    path = dataset_factory.write(tmp_path_factory.mktemp("told") / "set.zarr", "raw, format 2")
    return dataset_factory.tell(path, {"tasks": ["push"]}, {"tasks": ["pull it", "push"]})


@pytest.mark.parametrize(
    ("weights", "parts"),
    [({"push": 1, "pull it; push": 3}, [0.25, 0.75]), ({"others": 9, "push": 1}, [0.1, 0.9]), ({"others": 2}, None)],
    ids=["named", "others", "others alone"],
)
def test_each_task_has_its_part(told: Path, weights: dict[str, float], parts: list[float] | None) -> None:
    dataset = opened(told, weights)
    drawn = dataset.sample_weights
    assert drawn is not None
    windows = [5, 9]
    found = np.add.reduceat(drawn, [0, windows[0]])
    np.testing.assert_allclose(found, [5 / 14, 9 / 14] if parts is None else parts)
    shares = dataset.shares(draws=28)
    assert [share.name for share in shares] == list(weights)
    assert sum(share.share for share in shares) == pytest.approx(1)
    assert sum(share.repeats * share.windows for share in shares) == pytest.approx(28), "all draws are accounted for"


def test_shares_of_datasets_are_reported_with_and_without_weights(told: Path) -> None:
    paths = [str(told), str(told)]
    even, odd = opened(paths, None).shares(28), opened(paths, [1, 3]).shares(28)
    assert [(share.windows, share.weight, share.share, share.repeats) for share in even] == [(14, None, 0.5, 1)] * 2
    assert [share.weight for share in odd] == [1, 3]
    np.testing.assert_allclose([(share.share, share.repeats) for share in odd], [(0.25, 0.5), (0.75, 1.5)])
    assert str(odd[1]) == f"dataset {told}: 14 windows, weight 3, 75.0% of the samples, each 1.50 times per epoch"


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1.0], r"weights are \[1.0\]; expected 2 numbers, one for each dataset"),
        ([1.0, -1.0], "expected finite numbers, none negative"),
        ([1.0, float("nan")], "expected finite numbers"),
        ([1.0, float("inf")], "expected finite numbers"),
        ([1.0, 10**400], "expected finite numbers"),
        ([0, 0.0], "not all zero"),
        (["1", "2"], "expected finite numbers"),
        ([True, True], "expected finite numbers"),
        (3, "weights are 3; expected 2 numbers"),
        ("12", "weights are '12'; expected 2 numbers"),
        ({}, "not all zero"),
        ({"push": float("nan"), "others": 1}, "expected finite numbers"),
        ({"push": 0, "others": 0}, "not all zero"),
        (
            {"shove": 1, "others": 1},
            r"no episode has the task 'shove'; there are 'push' \(2 episodes\), 'pull it; push'",
        ),
        ({"push": 1}, "2 episodes with the task 'pull it; push' have no weight; .* others: 1"),
    ],
    ids=str,
)
def test_bad_weights_are_refused(told: Path, weights: Any, says: str) -> None:
    with pytest.raises(DatasetError, match=says) as refused:
        opened([str(told)] * 2, weights)
    assert "task.dataset.weights" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_tasks_that_nobody_recorded_have_no_weight(tmp_path: Path) -> None:
    path = dataset_factory.write(tmp_path / "set.zarr", "raw, format 2")
    with pytest.raises(DatasetError, match="the datasets hold no tasks"):
        opened(path, {"push": 1})


def test_a_part_without_windows_is_an_error(told: Path) -> None:
    dataset = opened(told, {"push": 1, "others": 0}, exclude_episodes=["episode_0000"])
    with pytest.raises(DatasetError, match=r"no task with a weight above 0 has a window to train on; .* push: 1"):
        _ = dataset.sample_weights


def test_a_torn_file_of_shares_is_refused(tmp_path: Path) -> None:
    (tmp_path / LOG_NAME).touch()
    assert open_run(tmp_path).sampling == ()
    share = asdict(Share("task", "push", 1.0, 3, 0.5, 2.0))
    for torn in ("[", "{}[", json.dumps([{"by": "task"}]), json.dumps([{**share, "share": "a"}])):
        (tmp_path / SAMPLING_NAME).write_text(torn)
        with pytest.raises(RunFolderError, match=r"sampling\.json: not as training writes it"):
            open_run(tmp_path)
