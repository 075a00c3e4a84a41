"""Cores that a process may use, and compute threads by what other processes leave free."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffusion_policy import cpu as cores
from diffusion_policy.cpu import CpuTimes, choose_threads, usable_cores

TICK = os.sysconf("SC_CLK_TCK")
QUIET, BUSY = {"idle": 1.0}, {"user": 1.0}


class Machine:
    """/proc and the control groups of a machine with that many cores, and the load on each of them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.proc, self.groups = root / "proc", root / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.groups.mkdir()
        monkeypatch.setattr(cores, "PROC", self.proc)
        monkeypatch.setattr(cores, "CGROUPS", self.groups)
        # Replaced only in this module: threads left by other tests keep the real clock.
        monkeypatch.setattr(cores, "os", SimpleNamespace(**vars(os)))
        monkeypatch.setattr(cores, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic))
        for name in cores.EXPLICIT:
            monkeypatch.delenv(name, raising=False)
        self._monkeypatch = monkeypatch

    def allow(self, *numbers: int) -> None:
        self._monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(numbers), raising=False)

    def passes(self, *loads: dict[str, float], seconds: float = 1.0, own: float = 0.0) -> CpuTimes:
        """Returns times before; /proc/stat and the clock then show each core with its load."""
        fields = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
        rows = [[round(1000 + seconds * TICK * load.get(field, 0)) for field in fields] for load in loads]
        lines = ["cpu  1 1 1 1 1 1 1 1 0 0"]
        lines += [f"cpu{i} {' '.join(map(str, row))} 0 0" for i, row in enumerate(rows)]
        (self.proc / "stat").write_text("\n".join([*lines, "ctxt 1"]) + "\n")
        before = CpuTimes(10.0, 5.0, dict.fromkeys(range(len(loads)), self._at_first()))
        self._monkeypatch.setattr(cores.time, "monotonic", lambda: 10.0 + seconds)
        self._monkeypatch.setattr(cores.os, "times", lambda: (5.0 + own, 0.0, 0.0, 0.0, 0.0))
        return before

    @staticmethod
    def _at_first() -> tuple[float, float]:
        return 5 * 1000 / TICK, 3 * 1000 / TICK

    def group(self, path: str, **files: str) -> None:
        folder = self.groups / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(content + "\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("loads", "threads"),
    [
        ([QUIET, QUIET], 2),
        ([BUSY, QUIET], 1),
        ([BUSY, BUSY], 1),
        ([{"user": 0.2, "idle": 0.8}] * 2, 2),
        ([{"user": 0.4, "idle": 0.6}] * 2, 1),
        ([{"system": 0.5, "irq": 0.25, "softirq": 0.25}, QUIET], 1),
        ([{"steal": 1.0}, QUIET], 1),  # the hypervisor gave the core to another machine
        ([{"iowait": 1.0}] * 2, 2),
        ([{"nice": 1.0}] * 2, 2),  # yields to others
        ([BUSY] * 3 + [QUIET] * 5, 5),
        ([BUSY] * 8, 1),
        ([{"user": 0.5, "idle": 0.5}] * 8, 4),
    ],
)
def test_a_thread_for_each_core_that_others_leave(machine: Machine, loads: list[dict[str, float]], threads: int):
    machine.allow(*range(len(loads)))
    assert choose_threads(since=machine.passes(*loads)).count == threads


def test_own_work_is_not_others_work(machine: Machine):
    machine.allow(0, 1)
    assert choose_threads(since=machine.passes(BUSY, BUSY, seconds=4, own=8)).count == 2
    assert choose_threads(since=machine.passes(BUSY, BUSY, seconds=4, own=4)).count == 1


def test_a_niced_process_does_not_push_other_niced_ones_aside(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    machine.allow(0, 1)
    monkeypatch.setattr(cores.os, "nice", lambda increment: 10)
    assert choose_threads(since=machine.passes({"nice": 1.0}, {"nice": 1.0})).count == 1


def test_only_cores_of_this_process_count(machine: Machine):
    machine.allow(2, 3)
    assert choose_threads(since=machine.passes(BUSY, BUSY, QUIET, QUIET)).count == 2
    assert choose_threads(since=machine.passes(QUIET, QUIET, BUSY, BUSY)).count == 1
    assert choose_threads(since=machine.passes(QUIET, QUIET, BUSY, BUSY)).busy == 2


@pytest.mark.parametrize(
    ("lines", "files", "usable"),
    [
        ("0::/", {}, 8),
        ("0::/", {"": {"cpu__max": "max 100000"}}, 8),
        ("0::/", {"": {"cpu__max": "200000 100000"}}, 2),
        ("0::/pod/box", {"pod": {"cpu__max": "150000 100000"}, "pod/box": {"cpu__max": "max 100000"}}, 2),
        ("0::/pod/box", {"pod": {"cpu__max": "500000 100000"}, "pod/box": {"cpu__max": "50000 100000"}}, 1),
        ("4:memory:/\n2:cpu,cpuacct:/", {"cpu,cpuacct": {"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "1"}}, 8),
        (
            "2:cpu,cpuacct:/box",
            {"cpu,cpuacct/box": {"cpu__cfs_quota_us": "300000", "cpu__cfs_period_us": "100000"}},
            3,
        ),
        ("0::/", {"": {"cpu__max": "rubbish"}}, 8),
        ("0::/", {"": {"cpu__max": "9900000 100000"}}, 8),
    ],
)
def test_a_quota_of_the_control_group_counts(machine: Machine, lines: str, files: dict, usable: int):
    machine.allow(*range(8))
    (machine.proc / "self" / "cgroup").write_text(lines + "\n")
    for path, contents in files.items():
        machine.group(path, **contents)
    assert usable_cores() == usable
    assert choose_threads(since=machine.passes(*[QUIET] * 8)).count == usable


@pytest.mark.parametrize("name", cores.EXPLICIT)
@pytest.mark.parametrize(("value", "threads"), [("3", 3), ("4,2", 4), ("", 1), ("zero", 1), ("0", 1)])
def test_what_the_user_says_goes_first(machine, monkeypatch: pytest.MonkeyPatch, name: str, value: str, threads: int):
    machine.allow(0, 1)
    monkeypatch.setenv(name, value)
    assert choose_threads(since=machine.passes(BUSY, BUSY)).count == threads
    assert choose_threads(7, machine.passes(BUSY, BUSY)).count == 7


def test_the_load_average_takes_the_place_of_what_is_not_counted(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    machine.allow(0, 1, 2, 3)
    monkeypatch.setattr(cores.os, "getloadavg", lambda: (2.2, 9, 9))
    stopped = machine.passes({}, {}, {}, {})  # a sandbox that counts nothing
    assert choose_threads(since=stopped).count == 2
    (machine.proc / "stat").unlink()
    assert choose_threads(since=stopped).count == 2

    def none() -> tuple[float, float, float]:
        raise OSError

    monkeypatch.setattr(cores.os, "getloadavg", none)
    assert choose_threads(since=stopped).count == 4


def test_this_machine_under_processes_that_compute(monkeypatch: pytest.MonkeyPatch):
    """On this machine, as many busy processes as cores leave one thread."""
    for name in cores.EXPLICIT:
        monkeypatch.delenv(name, raising=False)
    if usable_cores() == 1 or not Path("/proc/stat").is_file():
        pytest.skip("one core, or a system that does not count")
    busy = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(2 * usable_cores())]
    try:
        assert choose_threads(since=CpuTimes.now()).count <= max(1, usable_cores() // 2)
    finally:
        for process in busy:
            process.kill()
            process.wait()
