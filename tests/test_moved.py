"""Former names of modules, classes and functions resolve to the present ones, with a warning."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_policy.moved import MOVED, present_name

PAIRS = [(f"diffusion_policy.{old}", f"diffusion_policy.{new}") for old, new in MOVED.items()]


def assert_one_module(former: str, present: str, *, former_first: bool) -> None:
    names = (former, present) if former_first else (present, former)
    first, second = (importlib.import_module(name) for name in names)
    assert first is second, names
    assert first.__spec__ is not None
    assert first.__name__ == first.__spec__.name == present


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_former_name_gives_the_present_module() -> None:
    for former, present in PAIRS:
        assert_one_module(former, present, former_first=False)


def test_a_former_name_that_comes_first_gives_the_present_module() -> None:
    """In a process that has imported nothing yet."""
    program = (
        f"import sys, warnings; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"
        "from test_moved import PAIRS, assert_one_module\n"
        "for former, present in PAIRS: assert_one_module(former, present, former_first=True)"
    )
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
