"""The command for the checks of a converted dataset."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from dataset_factory import write
from trajectory_factory import write_trajectory

from diffusion_policy.convert import ConversionSettings, convert
from diffusion_policy.dataset.replay_buffer import ReplayBuffer

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


def test_a_bit_that_flipped_is_found_in_an_episode_and_an_array(
    main: Main, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--zarr-path", str(dataset), "--no-pictures", "--json", str(tmp_path / "found.json")]
    assert main(arguments) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "all frames and numbers of 2 episodes are what the conversion wrote (SHA-256)" in out
    frames = ReplayBuffer.open(dataset, mode="r+")["image"]
    frames[40, 3, 5, 0] ^= 1
    assert main(arguments) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "it is not what its conversion wrote: data/image of episode_0001 is not what was written" in out
    content = json.loads((tmp_path / "found.json").read_text())["summary"]["content"]
    (fault,) = content["faults"]
    assert (fault["episode"], fault["array"], fault["rows"]) == ("episode_0001", "data/image", [30, 60])
    assert fault["what"] == "is not what was written"
    assert (content["n_episodes"], content["compared"], content["n_frames"]) == (2, 2, 60)


def test_a_dataset_without_hashes_is_not_called_verified(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "set.zarr", "of another writer")
    main(["--zarr-path", str(path), "--no-pictures"])
    out = " ".join(capsys.readouterr().out.split())
    assert "not verified: it carries no hashes of what was written" in out
    assert "are what the conversion wrote" not in out


def test_a_checkpoint_is_held_against_it(
    main: Main, dataset: Path, reference_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--zarr-path", str(dataset), "--checkpoint", str(reference_checkpoint), "--no-pictures"]) == 1
    assert "the checkpoint predicts 7 numbers" in " ".join(capsys.readouterr().out.split())
