"""Both generations of the converter's command line."""

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from trajectory_factory import write_trajectory

from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.diagnose import conversion_verdict

Main = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def main(repository: Path) -> Main:
    return runpy.run_path(str(repository / "scripts" / "convert_cogact_to_zarr.py"))["main"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in (65, 66, 70):
        write_trajectory(tmp_path / "in", number, n_steps=4, size=(64, 36))
    return tmp_path / "in"


def test_first_generation(main: Main, tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.zarr"
    assert main(["--input_dir", str(source), "--output_zarr", str(output), "--target_resolution", "32", "18"]) == 0
    assert ReplayBuffer.open(output)["image"].shape == (12, 18, 32, 3)
    assert "3 of 3 episodes, 12 of 12 steps, 12 of 12 frames" in " ".join(capsys.readouterr().out.split())


def test_second_generation(main: Main, tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out.zarr"
    arguments = ["--input", str(source), "--output", str(output), "--resolution", "32", "18", "--start-episode", "66"]
    arguments += ["--max-episodes", "1", "--compressor", "jpeg2k", "--compression-level", "60", "--zarr-format", "3"]
    assert main(arguments) == 0
    assert ReplayBuffer.open(output).n_steps == 4


def test_errors_are_one_sentence(main: Main, tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "episode_0066" / "data.pkl").unlink()
    arguments = ["--input", str(source), "--output", str(tmp_path / "out.zarr")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "error:" in error
    assert "data.pkl: cannot be read" in error
    assert main([*arguments, "--on-error", "skip"]) == 0
    assert "left out" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_interrupted_while_the_checks_look(
    main: Main, tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dataset exists by then, and the message says so."""

    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion_verdict, "inspect_conversion", interrupted)
    output = tmp_path / "out.zarr"
    assert main(["--input", str(source), "--output", str(output), "--resolution", "32", "18"]) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"stopped by SIGINT: {output} is complete, but the checks had not finished; go on with: ")
    assert line.endswith(f"verify_converted_data.py --zarr-path {output}")
    assert ReplayBuffer.open(output).n_steps == 12
