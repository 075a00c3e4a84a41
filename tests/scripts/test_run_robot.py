"""The control loop from the command line: a custom arm, a recording and the simulator, and both logs joined."""

import json
import re
import runpy
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from evaluation_factory import write_tiny_checkpoint
from serve_factory import DescribedEngine, ServerThread, jpeg, settings
from trajectory_factory import write_trajectory

from diffusion_policy.serve import client
from diffusion_policy.serve.client import STRATEGIES, DelayedRequester, VirtualClock, read_arm_log, running
from diffusion_policy.serve.client.arm_log import ArmLogContent
from diffusion_policy.serve.client.control_loop import HoldReason
from diffusion_policy.serve.client.loop_figures import LoopFigures
from diffusion_policy.serve.client.observation_buffer import DoubtCode

Main = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def scripts(repository: Path) -> dict[str, Main]:
    names = ("run_robot", "join_logs")
    return {name: runpy.run_path(str(repository / "scripts" / f"{name}.py"))["main"] for name in names}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DescribedEngine:
    return DescribedEngine(str(write_tiny_checkpoint(tmp_path_factory.mktemp("run_robot") / "latest.ckpt")))


@pytest.fixture
def served(engine: DescribedEngine, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server that leaves the arm where it is, and its folder of logs.

    Each test has its own: a server serves one robot, and may not have noticed yet that the last one is gone.
    """
    with ServerThread(engine, settings(tmp_path / "runs", "max_age_s=3600")) as server:  # its clock is the machine's
        yield f"127.0.0.1:{server.ports['line']}", tmp_path / "runs"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    """The loop's: time passes while the loop sleeps, and an answer takes 50 ms of it, however busy the machine is."""
    passing = VirtualClock(start=1000.0)
    monkeypatch.setattr(client, "RealClock", lambda: passing)
    monkeypatch.setattr(
        running, "ThreadRequester", lambda ask, interrupt: DelayedRequester(ask, passing, lambda request: 0.05)
    )
    return passing


def run(scripts: dict[str, Main], served: tuple[str, Path], folder: Path, *words: str) -> dict[str, Any]:
    """Runs a loop, and returns what --json wrote, with the log's first line."""
    out = folder / "out.json"
    assert scripts["run_robot"]([*words, "--server", served[0], "--log", str(folder / "arm"), "--json", str(out)]) == 0
    document = json.loads(out.read_text())
    return {**document, "start": read_arm_log(document["log"]).start}


def test_the_simulator_is_an_arm(
    scripts: dict[str, Main], served: tuple[str, Path], clock: VirtualClock, tmp_path: Path, repository: Path
) -> None:
    tabletop = (repository / "config" / "simulator" / "tabletop.yaml").read_text()
    small = tabletop.replace("image_size: [320, 180]", "image_size: [64, 36]\n  max_steps: 15")
    (tmp_path / "small.yaml").write_text(small.replace("referee: physics", "referee: kinematic"))
    found = run(scripts, served, tmp_path, "--simulator", str(tmp_path / "small.yaml"))
    assert (found["moves"], found["holds"], found["missed"]) == (15, {"waiting": 1}, 0)
    assert found["seconds"] == pytest.approx(1.6)
    assert found["succeeded"] is False
    assert (found["start"]["strategy"], found["start"]["control_hz"]) == ("skip", 10.0)
    assert found["start"]["checkpoint"].endswith("latest.ckpt")


def test_a_recording_is_replayed_and_both_logs_are_joined(
    scripts: dict[str, Main],
    served: tuple[str, Path],
    clock: VirtualClock,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    episode = write_trajectory(tmp_path / "raw", 0, 12, (64, 36))
    words = ["--replay", str(episode), "--strategy", "wait", "--n-action-steps", "3"]
    found = run(scripts, served, tmp_path, *words)
    assert (found["moves"], found["holds"], found["missed"]) == (42, {"waiting": 13}, 0)
    printed = capsys.readouterr().out
    assert "request to answer" in printed
    compared = found["against_recorded"]
    assert 0 < compared["commands"] <= found["moves"]
    mean, largest = compared["position_mm"]
    assert 0 < mean <= largest < 500
    assert f"  position                mean {mean:.1f} mm, largest {largest:.1f} mm" in printed
    assert f"  gripper                 {compared['gripper_agreement']:.1%} agree" in printed
    runs = [str(path) for path in served[1].iterdir()]
    out = tmp_path / "joined.json"
    deadline = time.monotonic() + 10
    while (
        scripts["join_logs"]([found["log"], *runs, "--json", str(out)]) != 0
    ):  # the server writes its log after answering
        assert time.monotonic() < deadline
        time.sleep(0.1)
    joined = json.loads(out.read_text())
    assert joined["run"]["moves"] == found["moves"]
    executed = [one for one in joined["requests"] if one["outcome"] == "moved"]
    assert executed
    assert all(one["server"] == "action" and one["inference_ms"] >= 0 for one in executed)
    assert all(one["delay_ms"] > 0 and one["age_ms"] is not None for one in executed)
    assert "of inference" in capsys.readouterr().out
    other = write_trajectory(tmp_path / "other", 1, 3, (64, 36))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "meta.json").write_text("{}")
    (tmp_path / "empty" / "steps.jsonl").write_text("")
    for run_folder in (tmp_path / "empty", other):
        assert scripts["join_logs"]([found["log"], str(run_folder)]) == 2


class FakeLab:
    """Drivers whose calls are recorded."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.calls: list[str] = []
        self.position = np.array([0.5, 0.0, 0.3])

    def robot(self) -> Any:
        return SimpleNamespace(
            pose=lambda: (self.position, np.array([1.0, 0.0, 0.0, 0.0])),
            follow=lambda position, quaternion: self.calls.append("follow"),
            finish=lambda: self.calls.append("finish"),
        )

    def gripper(self) -> Any:
        def grasp() -> None:
            time.sleep(0.05)
            self.calls.append("grasp")

        return SimpleNamespace(width=lambda: 0.08, open=lambda: self.calls.append("open"), grasp=grasp)

    def camera(self, key: str) -> Any:
        assert key == "image"
        return SimpleNamespace(latest=lambda: (jpeg(int(self.clock.now() * 10) % 50, (64, 36)), self.clock.now()))


@pytest.mark.parametrize("dry", [False, True])
def test_the_example_s_arm_is_moved_and_in_a_dry_run_is_not(
    dry: bool,
    scripts: dict[str, Main],
    served: tuple[str, Path],
    clock: VirtualClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = FakeLab(clock)
    monkeypatch.setattr("examples.franka_pose_interface.time", SimpleNamespace(monotonic=clock.now))
    monkeypatch.setitem(sys.modules, "my_lab", lab)  # type: ignore[arg-type]
    words = ["--arm", "examples.franka_pose_interface:make_arm", "--seconds", "1.5", "--gripper-blocking", "0.5"]
    found = run(scripts, served, tmp_path, *words, *(["--dry-run"] if dry else []))
    assert found["start"]["dry_run"] is dry
    assert found["start"]["control_hz"] == 50.0
    assert found["moves"] > 5
    assert lab.calls == [] if dry else lab.calls[-1] == "finish" and lab.calls.count("follow") > 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--replay nowhere --server 127.0.0.1:1", "unreachable: 127.0.0.1:1"),
        ("--replay nowhere --server here", "expected HOST:PORT"),
        ("--arm no_such_module:make_arm --server {}", "No module named 'no_such_module'; expected MODULE:FUNCTION"),
        ("--arm json:nothing --server {}", "expected MODULE:FUNCTION"),
        ("--arm examples.franka_pose_interface:PolicyForm.of --server {}", "expected MODULE:FUNCTION"),
        ("--replay nowhere --server {}", "nowhere"),
        ("--replay {episode} --server {} --strategy hurry", "expected wait, skip, ensemble"),
        ("--replay {episode} --server {} --n-action-steps 99", "of a chunk"),
        ("--replay {episode} --server {} --camera-max-age left=1", "camera_max_ages_s names"),
        ("--replay {episode} --server {} --camera-max-age soon", "expected seconds, or CAMERA=SECONDS"),
        ("--replay {episode} --server {} --hz 0", "control_hz is 0"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(
    words: str,
    message: str,
    scripts: dict[str, Main],
    served: tuple[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    episode = write_trajectory(tmp_path / "raw", 0, 3, (64, 36)) if "{episode}" in words else None
    given = shlex.split(words.format(served[0], episode=episode))
    assert scripts["run_robot"]([*given, "--log", str(tmp_path / "arm")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("arm/*"))


def test_of_failed_requests_the_last_reason_is_shown() -> None:
    said = ["refused: step too far", "refused: quaternion norm", "late: no answer within 1.0 s"]
    lines = [
        {"event": "error", "request_id": str(i), "time": 1.0, "code": text.partition(":")[0], "message": text}
        for i, text in enumerate(said)
    ]
    shown = LoopFigures.of(ArmLogContent({"clock_start": 0.0}, lines)).rows()
    assert [value for name, value in shown if name == "  the last one reported"] == [said[2], said[1]]


def test_an_arm_without_its_methods_is_refused(
    scripts: dict[str, Main],
    served: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "half", SimpleNamespace(make=lambda form: SimpleNamespace(move=print)))  # type: ignore[arg-type]
    assert scripts["run_robot"](["--arm", "half:make", "--server", served[0]]) == 2
    assert "has no observe, hold, stop" in capsys.readouterr().err


PAGE = "docs/on_the_arm.md"


def test_the_page_shows_the_example_and_names_what_there_is(repository: Path) -> None:
    page = (repository / PAGE).read_text()
    example = (repository / "tests" / "examples" / "franka_pose_interface.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    assert all(textwrap.indent(block.rstrip(), "    ") in example for block in blocks)
    assert set(re.findall(r"^\| `(\w+)` \|", page.split("## When it holds")[1].split("\n## ")[0], re.MULTILINE)) == {
        *get_args(DoubtCode),
        *get_args(get_args(HoldReason)[1]),
    }
    strategies = page.split("## Between two chunks")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", strategies, re.MULTILINE) == list(STRATEGIES)
