"""The door to the checks of recordings."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from trajectory_factory import write_trajectory

Main = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def main(repository: Path) -> Main:
    return runpy.run_path(str(repository / "scripts" / "inspect_cogact_data.py"))["main"]


def test_text_json_and_pictures(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        write_trajectory(tmp_path / "in", number, n_steps=30, size=(64, 36))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "in").rglob("*.*")}
    written = tmp_path / "found.json"
    assert main([str(tmp_path / "in"), "--output-dir", str(tmp_path / "out"), "--json", str(written)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 episodes, 60 steps; shortest 30, longest 30, mean 30 gripper events by episode: 2 2" in said
    assert "action.x" in said
    assert "No error was found: 2 warnings. The gravest: the gripper closes 2 times" in said
    found = json.loads(written.read_text())
    assert found["training_advisable"]
    assert found["details"]["episodes"][0]["events"] == [[10, "close"], [20, "open"]]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"sample_images.png", "action_trajectory.png", "workspace.png", "episode_timeline.png"}
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "in").rglob("*.*")}
    assert after == before


def test_status_says_whether_to_train(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_trajectory(tmp_path / "data" / "raw" / "trajectories", n_steps=30, size=(64, 36))
    (folder / "images" / "frame_0004.jpg").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    assert main([]) == 1
    assert "Do not train on it yet: 1 error" in capsys.readouterr().out
    assert (tmp_path / "sample_images.png").is_file()
    assert main(["nowhere", "--no-pictures"]) == 2
    assert "error: nowhere is not a directory" in capsys.readouterr().err
