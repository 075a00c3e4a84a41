"""The command for open-loop errors: what it prints, in which color, and its exit status."""

import json
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from evaluation_factory import write_dataset, write_tiny_checkpoint

from diffusion_policy.dataset.replay_buffer import ReplayBuffer

Main = Callable[[Sequence[str]], int]
QUICK = ("--steps", "1", "--samples", "1")


@pytest.fixture
def main(repository: Path) -> Main:
    return runpy.run_path(str(repository / "scripts" / "evaluate_open_loop.py"))["main"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A policy with random weights, and a dataset whose measured gripper is the command, as from some recorders."""
    folder = tmp_path_factory.mktemp("open_loop")
    path = write_dataset(folder / "set.zarr")
    buffer = ReplayBuffer.open(path, mode="r+")
    buffer["robot_gripper_state"][:] = np.asarray(buffer["action"][:])[:, 7:]
    return str(write_tiny_checkpoint(folder / "tiny.ckpt")), str(path)


def test_what_is_not_beaten_is_red(
    files: tuple[str, str], main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main([*files, *QUICK]) == 1, "a policy that was never trained beats nothing"
    assert "\x1b[31mdoes not beat 'copy the measured gripper' in wrong at transitions" in capsys.readouterr().out


def test_two_checkpoints_are_compared_by_episode(
    files: tuple[str, str], tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(write_tiny_checkpoint(tmp_path / "other.ckpt", seed=1))
    out = tmp_path / "errors.json"
    assert main([*files, *QUICK, "--against", other, "--episodes", "0", "1", "--json", str(out)]) == 1
    result = json.loads(out.read_text())
    assert [report["checkpoint"] for report in result["reports"]] == [other, files[0]]
    assert result["comparison"]["position_mm"]["episodes"] == 2
    assert f"{files[0]}minus{other},pairedbyepisode" in "".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--episodes", "99"], "no episodes [99]; it has 0 to 3"),
        (["--episodes", "some"], "expected held-out, all, or episode numbers"),
        (["--samples", "0"], "samples is 0; expected 1 or more"),
    ],
)
def test_bad_input_is_refused(
    files: tuple[str, str], main: Main, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main([*files, *arguments]) == 2
    assert says in capsys.readouterr().err
