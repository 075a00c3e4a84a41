"""VPT: the formulas against published manifests, what a file's tensors show, and the stripped prefix."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from adapt_factory import vpt_config_of

from diffusion_policy.families import recognize, vpt
from diffusion_policy.families.family import ConstructionError, Shape

AUX = [f"aux_value_head.{name}" for name in vpt.VALUE_HEAD]


@pytest.fixture(scope="session")
def tiny(shared_data: Path) -> dict[str, Shape]:
    state = torch.load(shared_data / "vpt" / "tiny.weights", weights_only=True)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def config_of(kwargs: dict[str, Any], *, aux: bool = False) -> dict[str, Any]:
    return {**vpt.released(2), "policy_kwargs": kwargs, "aux_value_head": aux}


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_released_sizes_equal_their_manifests_in_order(shared_data: Path, scale: int):
    manifest = json.loads((shared_data / "vpt" / f"manifest_{scale}x.json").read_text())
    config = vpt.released(scale)
    assert config["policy_kwargs"] == manifest["policy_kwargs"]
    ours = vpt.shapes(config)
    assert [(name, list(shape)) for name, shape in ours.items()] == [
        (name, entry["shape"]) for name, entry in manifest["tensors"].items()
    ]
    with_aux = vpt.shapes(config | {"aux_value_head": True})
    assert Counter(name.partition(".")[0] for name in with_aux) == manifest["counts_by_prefix_file"]
    assert (len(ours), len(with_aux)) == (134, 139)


def test_tiny_weights_equal_the_formulas_from_their_kwargs(shared_data: Path, tiny: dict[str, Shape]):
    kwargs = json.loads((shared_data / "vpt" / "kwargs.json").read_text())["policy_kwargs"]
    assert vpt.shapes(config_of(kwargs, aux=True)) == tiny


def test_all_settings_that_determine_shapes_are_read_off_the_tensors(tiny: dict[str, Shape]):
    assert vpt.settings_from(tiny) == {
        "hidsize": 64, "impala_width": 1, "n_recurrence_layers": 2, "attention_heads": 4, "window": 8,
        "pointwise_ratio": 4, "camera choices": 121, "buttons choices": 8641, "aux_value_head": True,
    }  # fmt: skip


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_shapes_survive_the_way_through_settings(scale: int):
    shapes = vpt.shapes(vpt.released(scale))
    assert vpt.shapes(vpt_config_of(shapes)) == shapes


@pytest.mark.parametrize(
    ("prefix", "habit"), [("", "own names"), ("module.policy.", "STEVE-1"), ("mine_policy.", "MineStudio")]
)
def test_a_file_is_recognized_under_its_prefix(tiny: dict[str, Shape], prefix: str, habit: str):
    found = recognize({prefix + name: shape for name, shape in tiny.items()})
    assert found is not None
    assert (found.family.name, found.prefix, found.stripped) == ("vpt", prefix, "")
    assert found.settings["hidsize"] == 64
    assert habit in found.sentence


def test_the_stripped_file_is_recognized_and_its_cause_named():
    shapes = vpt.shapes(vpt.released(2) | {"aux_value_head": True})
    stripped = {name.replace("net.", ""): shape for name, shape in shapes.items()}
    target = vpt.shapes(vpt.released(2))
    assert len(target.keys() - stripped.keys()) == 125
    assert len(stripped.keys() - target.keys()) == 130
    found = recognize(stripped)
    assert found is not None
    assert found.stripped == "net."
    assert found.settings["hidsize"] == 2048
    assert "`net.` is missing from the front of its names: it was stripped" in found.sentence
    assert "load into the net module" in found.sentence


def test_a_width_that_cannot_be_cut_into_heads_does_not_construct():
    kwargs = vpt.released(2)["policy_kwargs"] | {"attention_heads": 7}
    with pytest.raises(ConstructionError, match="hidsize 2048 cannot be split into 7 attention heads"):
        vpt.shapes(config_of(kwargs))


def test_other_names_are_of_no_known_family():
    assert recognize({"layers.0.weight": (3, 3)}) is None
