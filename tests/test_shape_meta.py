"""Which shape_meta of a config counts, over every combination of the places where it may stand."""

import itertools
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from diffusion_policy.shape_meta import DATASET_PLACE, PLACES, find_step_spec, step_spec_of, trained_spec_of
from diffusion_policy.spec import SpecError, read_shape_meta

SUBSETS = [chosen for n in range(len(PLACES) + 1) for chosen in itertools.combinations(PLACES, n)]


def meta(width: int = 8, key: str = "robot_eef_pose") -> dict[str, Any]:
    return {"obs": {key: {"shape": [7], "type": "low_dim"}}, "action": {"shape": [width]}}


def config(entries: dict[str, Any]) -> DictConfig:
    cfg = OmegaConf.create({"policy": {"horizon": 8}, "task": {"dataset": {"seed": 1}}})
    for place, entry in entries.items():
        OmegaConf.update(cfg, place, entry, force_add=True)
    return cfg


@pytest.mark.parametrize("places", SUBSETS)
def test_whichever_is_there_counts(places: tuple[str, ...]) -> None:
    cfg = config({place: meta() for place in places})
    assert find_step_spec(cfg) == (read_shape_meta(meta()) if places else None)
    if not places:
        with pytest.raises(SpecError, match=r"no shape_meta; expected one of policy.shape_meta, shape_meta"):
            step_spec_of(cfg)


@pytest.mark.parametrize("other", [meta(7), meta(key="pose")], ids=["action", "observation"])
@pytest.mark.parametrize(("places", "odd"), [(places, odd) for places in SUBSETS if len(places) > 1 for odd in places])
def test_two_that_differ_are_refused_and_both_are_named(
    places: tuple[str, ...], odd: str, other: dict[str, Any]
) -> None:
    cfg = config({place: other if place == odd else meta() for place in places})
    with pytest.raises(SpecError, match="differ") as refused:
        find_step_spec(cfg)
    named = [place for place in PLACES if f" {place} " in f" {str(refused.value).split(' differ')[0]} "]
    assert odd in named
    assert len(named) == 2
    assert set(named) <= set(places)


@pytest.mark.parametrize("places", [places for places in SUBSETS if places])
def test_a_dataset_that_is_asked_for_something_else_stops_training_alone(places: tuple[str, ...]) -> None:
    cfg = config({**{place: meta(7) for place in places}, DATASET_PLACE: meta(8)})
    assert step_spec_of(cfg) == read_shape_meta(meta(7))
    with pytest.raises(SpecError, match=rf"task.dataset.shape_meta and {places[-1]} differ .actions .*must read what"):
        trained_spec_of(cfg)
    assert trained_spec_of(config({places[0]: meta(8), DATASET_PLACE: meta(8)})) == read_shape_meta(meta(8))


def test_names_and_the_width_that_stands_for_them_agree() -> None:
    named = meta()
    named["action"]["names"] = ["x", "y", "z", "qx", "qy", "qz", "qw", "gripper"]
    assert find_step_spec(config({"policy.shape_meta": named, "task.shape_meta": meta()})) == read_shape_meta(meta())


def test_references_are_followed_and_a_lost_one_is_named() -> None:
    cfg = config({"task.shape_meta": meta(), "shape_meta": "${task.shape_meta}", "policy.shape_meta": "${shape_meta}"})
    assert step_spec_of(cfg) == read_shape_meta(meta())
    with pytest.raises(SpecError, match=r"policy.shape_meta cannot be resolved"):
        find_step_spec(config({"policy.shape_meta": "${nowhere}"}))
