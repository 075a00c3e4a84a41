"""Modules that have moved are found by their former names, as the same module."""

from __future__ import annotations

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


def test_a_former_name_says_where_its_module_is_now() -> None:
    program = "import warnings; warnings.simplefilter('error'); import diffusion_policy.cores"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "DeprecationWarning: diffusion_policy.cores has moved to diffusion_policy.cpu" in finished.stderr


@pytest.mark.parametrize(
    ("name", "present"), [("model.kernels._compiled", "model.cpu.kernels._compiled"), ("spec", None)]
)
def test_a_name_stands_for_what_lies_below_it(name: str, present: str | None) -> None:
    assert present_name(name) == present


def test_an_unknown_module_is_still_unknown() -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        __import__("diffusion_policy.nowhere")
