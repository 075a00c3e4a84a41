"""The command for the checks of recordings."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from lerobot_factory import LeRobotSet, decode, encode, poses
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
    output = " ".join(capsys.readouterr().out.split())
    assert "2 episodes, 60 steps; shortest 30, longest 30, mean 30 gripper events by episode: 2 2" in output
    assert "action.x" in output
    assert "No error was found: 2 warnings. The gravest: the gripper closes 2 times" in output
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
    assert "error: nowhere: does not exist" in capsys.readouterr().err


def test_lerobot_datasets_are_inspected_like_folders(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: lerobot)")
    cameras = {"observation.images.front": (64, 48), "observation.images.wrist": (40, 30)}
    source = LeRobotSet(lengths=(30, 20), cameras=cameras, version="v2.1").write(tmp_path / "set")
    written = tmp_path / "found.json"
    assert main([str(source), "--output-dir", str(tmp_path / "out"), "--json", str(written)]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"sample_images.png", "workspace.png"}
    found = json.loads(written.read_text())["details"]
    assert [episode["steps"] for episode in found["episodes"]] == [30, 20]
    assert [(camera["name"], camera["shown"]) for camera in found["cameras"]] == [("front", 50), ("wrist", 50)]
    video = source / "videos/chunk-000/observation.images.wrist/episode_000001.mp4"
    encode(video, decode(video)[:12], 10, 12)
    assert main([str(source), "--no-pictures", "--json", str(written)]) == 1
    cameras_found = {camera["name"]: camera for camera in json.loads(written.read_text())["details"]["cameras"]}
    assert cameras_found["front"]["undecodable"] == []
    assert [step for step, _ in cameras_found["wrist"]["undecodable"]] == list(range(42, 50)), "the others are seen"
    assert "no frame at 1.2" in cameras_found["wrist"]["undecodable"][0][1]
    capsys.readouterr()


def test_a_mapping_is_asked_for_and_taken(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: lerobot)")
    percent = (100 * poses(20)[:, [7] * 6]).astype("float32")
    motors = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
    joints = LeRobotSet(lengths=(20,), state=percent, action=percent, names=[f"{motor}.pos" for motor in motors])
    source = joints.write(tmp_path / "set")
    assert main([str(source), "--no-pictures"]) == 2
    assert "--mapping" in capsys.readouterr().err
    assert main([str(source), "--no-pictures", "--mapping", "joints_gripper_percent"]) in (0, 1)
    assert "1 episode, 20 steps" in " ".join(capsys.readouterr().out.split())
