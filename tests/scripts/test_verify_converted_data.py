"""The door to the checks of a converted dataset."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from trajectory_factory import write_trajectory

from diffusion_policy.convert import ConversionSettings, convert

Main = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def main(repository: Path) -> Main:
    return runpy.run_path(str(repository / "scripts" / "verify_converted_data.py"))["main"]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for number in range(2):
        write_trajectory(tmp_path / "in", number, n_steps=30, size=(64, 36))
    convert(ConversionSettings(tmp_path / "in", tmp_path / "out.zarr", resolution=(32, 18), workers=1))
    return tmp_path / "out.zarr"


def test_text_json_and_pictures(main: Main, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "found.json"
    arguments = ["--zarr-path", str(dataset), "--output-dir", str(tmp_path / "pictures"), "--json", str(written)]
    assert main(arguments) == 0
    assert "No error was found: " in capsys.readouterr().out
    assert json.loads(written.read_text())["summary"]["image_size"] == [32, 18]
    assert (tmp_path / "pictures" / "action_trajectory.png").is_file()


def test_status_says_whether_to_train(
    main: Main, dataset: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (dataset / "data" / "image" / "3.0.0.0").write_bytes(b"?")
    assert main(["--zarr-path", str(dataset), "--no-pictures"]) == 1
    assert "data/image/3.0.0.0 has 1 bytes" in " ".join(capsys.readouterr().out.split())
    assert main(["--zarr-path", str(tmp_path / "none.zarr")]) == 2
    assert "error:" in capsys.readouterr().err


def test_a_checkpoint_is_held_against_it(
    main: Main, dataset: Path, reference_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--zarr-path", str(dataset), "--checkpoint", str(reference_checkpoint), "--no-pictures"]) == 1
    assert "the checkpoint predicts 7 numbers" in " ".join(capsys.readouterr().out.split())
