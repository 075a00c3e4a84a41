"""Which shape_meta of a config counts, for every combination of the keys that may hold it."""

import itertools
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from diffusion_policy.shape_meta import DATASET_KEY, KEYS, find_step_spec, step_spec_of, trained_spec_of
from diffusion_policy.spec import SpecError, read_shape_meta

SUBSETS = [chosen for n in range(len(KEYS) + 1) for chosen in itertools.combinations(KEYS, n)]


def meta(width: int = 8, key: str = "robot_eef_pose") -> dict[str, Any]:
    return {"obs": {key: {"shape": [7], "type": "low_dim"}}, "action": {"shape": [width]}}


def config(entries: dict[str, Any]) -> DictConfig:
    cfg = OmegaConf.create({"policy": {"horizon": 8}, "task": {"dataset": {"seed": 1}}})
    for key, entry in entries.items():
        OmegaConf.update(cfg, key, entry, force_add=True)
    return cfg


@pytest.mark.parametrize("keys", SUBSETS)
def test_whichever_is_there_counts(keys: tuple[str, ...]) -> None:
    cfg = config({key: meta() for key in keys})
    assert find_step_spec(cfg) == (read_shape_meta(meta()) if keys else None)
    if not keys:
        with pytest.raises(SpecError, match=r"no shape_meta; expected one of policy.shape_meta, shape_meta"):
            step_spec_of(cfg)


@pytest.mark.parametrize("other", [meta(7), meta(key="pose")], ids=["action", "observation"])
@pytest.mark.parametrize(("keys", "odd"), [(keys, odd) for keys in SUBSETS if len(keys) > 1 for odd in keys])
def test_two_that_differ_are_refused_and_both_are_named(keys: tuple[str, ...], odd: str, other: dict[str, Any]) -> None:
    cfg = config({key: other if key == odd else meta() for key in keys})
    with pytest.raises(SpecError, match="differ") as refused:
        find_step_spec(cfg)
    named = [key for key in KEYS if f" {key} " in f" {str(refused.value).split(' differ')[0]} "]
    assert odd in named
    assert len(named) == 2
    assert set(named) <= set(keys)


@pytest.mark.parametrize("keys", [keys for keys in SUBSETS if keys])
def test_a_dataset_that_is_asked_for_something_else_stops_training_alone(keys: tuple[str, ...]) -> None:
    cfg = config({**{key: meta(7) for key in keys}, DATASET_KEY: meta(8)})
    assert step_spec_of(cfg) == read_shape_meta(meta(7))
    with pytest.raises(SpecError, match=rf"task.dataset.shape_meta and {keys[-1]} differ .actions .*must read what"):
        trained_spec_of(cfg)
    assert trained_spec_of(config({keys[0]: meta(8), DATASET_KEY: meta(8)})) == read_shape_meta(meta(8))


def test_names_and_the_width_that_implies_them_agree() -> None:
    named = meta()
    named["action"]["names"] = ["x", "y", "z", "qx", "qy", "qz", "qw", "gripper"]
    assert find_step_spec(config({"policy.shape_meta": named, "task.shape_meta": meta()})) == read_shape_meta(meta())


def test_references_are_followed_and_a_lost_one_is_named() -> None:
    cfg = config({"task.shape_meta": meta(), "shape_meta": "${task.shape_meta}", "policy.shape_meta": "${shape_meta}"})
    assert step_spec_of(cfg) == read_shape_meta(meta())
    with pytest.raises(SpecError, match=r"policy.shape_meta cannot be resolved"):
        find_step_spec(config({"policy.shape_meta": "${nowhere}"}))
