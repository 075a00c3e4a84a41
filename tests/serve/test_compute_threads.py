"""diffusion_policy.serve.engine.compute_threads: as many as others leave free, updated, and logged."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from serve_factory import ServerThread, observation_message, parsed, settings

from diffusion_policy.cpu import CpuTimes, Threads
from diffusion_policy.run_log.session_log import read_lines
from diffusion_policy.serve.engine import PolicyEngine, compute_threads
from diffusion_policy.serve.engine.compute_threads import MEASUREMENT_S, OUTDATED_S, ComputeThreads
from diffusion_policy.serve.replay import _usable_threads, read_steps, replay
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.stages import Stages


@pytest.fixture(autouse=True)
def torch_s_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Machine:
    """The cores that others leave free, with a simulated clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.free, self.looks = 1000.0, 2, 0
        monkeypatch.setattr(compute_threads, "choose_threads", self.choose)
        monkeypatch.setattr(compute_threads.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(compute_threads.CpuTimes, "now", lambda: CpuTimes(self.now, 0.0, {}))

    def choose(self, asked: int | None = None, since: CpuTimes | None = None) -> Threads:
        assert since is not None
        assert since.wall <= self.now
        self.looks += 1
        return Threads(self.free, "test") if asked is None else Threads(asked, "as set")

    def judged(self, threads: ComputeThreads, after: float) -> int:
        self.now += after
        threads.choose_again()
        assert torch.get_num_threads() == threads.count
        return threads.count


def test_the_number_follows_what_others_leave_once_two_looks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    threads = ComputeThreads(None, CpuTimes(990.0, 0.0, {}))
    assert threads.count == torch.get_num_threads() == 2
    machine.free = 1
    assert machine.judged(threads, MEASUREMENT_S / 2) == 2, "too early to look"
    assert machine.judged(threads, MEASUREMENT_S) == 2, "one look"
    machine.free = 2
    assert machine.judged(threads, MEASUREMENT_S) == 2, "it was a moment"
    machine.free = 1
    assert machine.judged(threads, MEASUREMENT_S) == 2
    assert machine.judged(threads, MEASUREMENT_S) == 1
    machine.free = 2
    assert [machine.judged(threads, MEASUREMENT_S) for _ in range(2)] == [1, 2]


def test_a_look_of_long_ago_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    threads = ComputeThreads(None, CpuTimes(990.0, 0.0, {}))
    machine.free = 1
    assert [machine.judged(threads, OUTDATED_S + 1) for _ in range(3)] == [2, 2, 2]
    assert [machine.judged(threads, MEASUREMENT_S) for _ in range(2)] == [2, 1]


def test_what_was_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    threads = ComputeThreads(2, CpuTimes(990.0, 0.0, {}))
    machine.free = 1
    assert [machine.judged(threads, MEASUREMENT_S) for _ in range(3)] == [2, 2, 2]
    assert machine.looks == 1


def test_the_environment_is_obeyed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "diffusion_policy")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert ComputeThreads(None, CpuTimes.now()).count == 1
    assert "compute threads: 1 (OMP_NUM_THREADS=1)" in caplog.text


def test_a_checkpoint_is_opened_with_them_and_says_so(served_checkpoint: Path) -> None:
    engine = PolicyEngine.open(served_checkpoint, EngineSettings(steps=1, threads=1))
    assert engine.threads is not None
    assert engine.describe()["threads"] == 1
    assert engine.describe()["processor"].endswith(", 1 threads")
    assert engine.infer(parsed(), 0, None, Stages()).threads == 1


def test_a_log_knows_the_threads_of_each_step_and_a_replay_uses_them(
    served_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_policy.serve.replay.usable_cores", lambda: 2)
    worker = ThreadPoolExecutor(1)
    engine = worker.submit(PolicyEngine.open, served_checkpoint, EngineSettings(steps=2, threads=1)).result()
    loose = settings(tmp_path, "guard.quaternion_tolerance=0.9", "guard.on_workspace=clip", "engine.steps=2")
    with ServerThread(engine, loose, worker) as server, server.client() as client:
        assert client.ask(observation_message(0))["type"] == "action"
        worker.submit(torch.set_num_threads, 2).result()
        assert client.ask(observation_message(1))["type"] == "action"
    (run,) = tmp_path.glob("run_*")
    assert [line["threads"] for line in read_lines(run)[1]] == [1, 2]
    steps = read_steps(run)[1]
    assert [step.threads for step in steps] == [1, 2]
    used: list[int] = []
    infer = PolicyEngine.infer

    def watched(self: PolicyEngine, *arguments: Any) -> Any:
        used.append(torch.get_num_threads())
        return infer(self, *arguments)

    monkeypatch.setattr(PolicyEngine, "infer", watched)
    assert replay(run, served_checkpoint).largest < 1e-4
    assert used == [1, 2]


@pytest.mark.parametrize("logged", [0, -1, 10**9, "2", None, 1.5])
def test_a_hostile_number_of_threads_is_not_used(logged: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion_policy.serve.replay.usable_cores", lambda: 2)
    assert _usable_threads(logged) is None
    assert _usable_threads(2) == 2
