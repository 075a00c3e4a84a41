"""Former names of modules, classes and functions resolve to the present ones, with a warning."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from diffusion_policy.moved import MOVED, present_name


@pytest.mark.parametrize("order", ["former first", "present first"])
def test_a_former_name_gives_the_present_module(order: str) -> None:
    pairs = [(f"diffusion_policy.{old}", f"diffusion_policy.{new}") for old, new in MOVED.items()]
    program = f"""
import importlib, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
for former, present in {pairs!r}:
    names = (former, present) if {order == "former first"} else (present, former)
    modules = [importlib.import_module(name) for name in names]
    assert modules[0] is modules[1], names
    assert modules[0].__name__ == present and modules[0].__spec__.name == present, modules[0].__spec__
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_a_former_name_states_where_its_module_is_now() -> None:
    program = "import warnings; warnings.simplefilter('error'); import diffusion_policy.cores"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "DeprecationWarning: diffusion_policy.cores has moved to diffusion_policy.cpu" in finished.stderr


@pytest.mark.parametrize(
    ("name", "present"), [("model.kernels._compiled", "model.cpu.kernels._compiled"), ("spec", None)]
)
def test_a_name_covers_everything_below_it(name: str, present: str | None) -> None:
    assert present_name(name) == present


def test_an_unknown_module_is_still_unknown() -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        __import__("diffusion_policy.nowhere")


@pytest.mark.parametrize(
    ("module", "former", "present"),
    [
        ("command_line", "Answer", "CommandResult"),
        ("errors", "PlaceError", "PathError"),
        ("paths", "place", "as_path"),
        ("storage", "whole_file", "atomic_file"),
        ("dataset.episode_metadata", "Told", "EpisodeMetadata"),
        ("policy.robot_action", "robot_answer", "predict_robot_action"),
    ],
)
def test_a_renamed_class_or_function_is_found_by_its_former_name(module: str, former: str, present: str) -> None:
    loaded = importlib.import_module(f"diffusion_policy.{module}")
    with pytest.warns(DeprecationWarning, match=f"{former} is now {present}"):
        found = getattr(loaded, former)
    assert found is getattr(loaded, present)
    with pytest.raises(AttributeError, match="has no attribute"):
        getattr(loaded, former.lower() + "s")
