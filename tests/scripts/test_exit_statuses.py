"""Inspect, verify and doctor have the same exit status for the same data; a conversion ends with their verdict."""

import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trajectory_factory import recorded_arrays, write_trajectory

SIZE = (40, 36)
Main = Callable[[list[str]], int]
Change = Callable[[dict[str, Any]], None]


def slower(arrays: dict[str, Any]) -> None:
    """Recorded at 1.25 Hz."""
    arrays["timestamp"] = arrays["timestamp"][0] + 0.8 * np.arange(len(arrays["timestamp"]))


def elsewhere(arrays: dict[str, Any]) -> None:
    """Commands in another frame than the measurement."""
    arrays["action"][:, :3] += 0.5


def never_closing(arrays: dict[str, Any]) -> None:
    arrays["robot_gripper"][:] = arrays["action_gripper"][:] = 1


# Changes to the recordings, the exit status of all checks, and the beginning and continuation of the verdict.
KINDS: dict[str, tuple[int, Change | None, int, str, str]] = {
    "good": (22, None, 0, "Nothing was found that argues against training on it.", ""),
    "few": (3, None, 0, "No error was found: ", "the gripper closes 3 times"),
    "slow": (22, slower, 0, "No error was found: 1 warning. ", "it will move 8.0 times as fast as the demonstration"),
    "another frame": (22, elsewhere, 1, "Do not train on it yet: 1 error. ", "mm from the measured ones"),
    "never closing": (22, never_closing, 1, "Do not train on it yet: 1 error", "the gripper closes 0 times"),
}


@pytest.fixture(scope="module")
def scripts(repository: Path) -> dict[str, Main]:
    names = ("convert_cogact_to_zarr", "inspect_cogact_data", "verify_converted_data", "doctor")
    return {name: runpy.run_path(str(repository / "scripts" / f"{name}.py"))["main"] for name in names}


@pytest.mark.parametrize("kind", KINDS)
def test_the_checks_agree_and_the_conversion_says_so(
    kind: str, scripts: dict[str, Main], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    episodes, change, status, begins, says = KINDS[kind]
    recordings, dataset = tmp_path / "in", tmp_path / "out set.zarr"
    for number in range(episodes):
        arrays = recorded_arrays(12, number)
        if change is not None:
            change(arrays)
        write_trajectory(recordings, number, 12, SIZE, arrays=arrays)
    words = ["--input", str(recordings), "--output", str(dataset), "--resolution", *map(str, SIZE)]
    assert scripts["convert_cogact_to_zarr"](words) == 0, "a verdict is no refusal: the dataset is there"
    *_, verdict, shown = capsys.readouterr().out.rstrip().splitlines()
    assert verdict.startswith(begins)
    assert says in verdict
    _, verify, *again = shlex.split(shown.removeprefix("all checks, with every frame: "))
    assert Path(verify).name == "verify_converted_data.py"
    assert scripts["verify_converted_data"]([*again, "--no-pictures"]) == status
    assert capsys.readouterr().out.rstrip().endswith(" ".join(verdict.split()[-3:]))
    assert scripts["inspect_cogact_data"]([str(recordings), "--no-pictures"]) == status
    assert scripts["doctor"](["--dataset", str(dataset)]) == status


@pytest.mark.parametrize("name", ["inspect_cogact_data", "verify_converted_data", "doctor"])
def test_what_cannot_be_judged_is_refused_by_all(name: str, scripts: dict[str, Main], tmp_path: Path) -> None:
    words = {"inspect_cogact_data": [], "verify_converted_data": ["--zarr-path"], "doctor": ["--dataset"]}
    assert scripts[name]([*words[name], str(tmp_path / "nothing")]) == 2


@pytest.mark.filterwarnings("ignore:Object at action is not recognized")
def test_a_dataset_that_the_checks_cannot_read_is_reported(
    scripts: dict[str, Main], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resuming a finished conversion changes nothing, and succeeds as before; its verdict is on the present dataset."""
    write_trajectory(tmp_path / "in", 0, 12, SIZE)
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out.zarr"), "--resolution", "40", "36"]
    assert scripts["convert_cogact_to_zarr"](words) == 0
    (tmp_path / "out.zarr" / "data" / "action" / ".zarray").unlink()
    capsys.readouterr()
    assert scripts["convert_cogact_to_zarr"]([*words, "--resume"]) == 0
    *_, verdict, _ = capsys.readouterr().out.rstrip().splitlines()
    assert verdict.startswith("The checks cannot read it: ")
