"""The doors from a checkpoint to logs, and to open-loop errors."""

import json
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from evaluation_factory import write_dataset, write_tiny_checkpoint

from diffusion_policy.run_log import read_log

Door = Callable[[Sequence[str]], int]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    return str(write_tiny_checkpoint(folder / "latest.ckpt")), str(write_dataset(folder / "set.zarr"))


def door(repository: Path, name: str) -> Door:
    return runpy.run_path(str(repository / "scripts" / name))["main"]


def test_logs_are_written(
    repository: Path, inputs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = door(repository, "run_offline_inference.py")
    assert main([*inputs, "--output", str(tmp_path), "--episodes", "0", "1", "--steps", "1", "--stride", "4"]) == 0
    assert sorted(read_log(path).meta["episode"] for path in tmp_path.glob("inference_log_*.json")) == [0, 1]
    assert "2 logs in" in capsys.readouterr().out


def test_bad_input_is_one_line(
    repository: Path, inputs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = door(repository, "run_offline_inference.py")
    assert main([*inputs, "--output", str(tmp_path), "--episodes", "some"]) == 2
    assert "error: --episodes some: expected held-out" in capsys.readouterr().err
    assert main([str(tmp_path / "absent.ckpt"), inputs[1], "--output", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err


def test_open_loop(
    repository: Path, inputs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = door(repository, "evaluate_open_loop.py")
    out = tmp_path / "errors.json"
    arguments = [*inputs, "--steps", "1", "--samples", "1", "--against", inputs[0], "--json", str(out)]
    assert main(arguments) == 1, "a policy with random weights beats nothing"
    shown = capsys.readouterr().out
    assert "does not beat" in shown
    assert "no difference can be claimed" in shown
    found = json.loads(out.read_text())
    assert len(found["reports"]) == 2
    assert found["comparison"]["position_mm"]["difference"] == 0.0
    assert main([*inputs, "--episodes", "9"]) == 2
