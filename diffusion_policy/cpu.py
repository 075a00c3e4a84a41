"""CPU cores: how many this process may use, and how many of them are not used by other processes."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
SHORTEST_LOOK_S = 0.4  # shortest measurement: the kernel counts in ticks of 10 ms
MEASURED_ENOUGH = 0.5  # share of the measured time that the kernel must have counted for its numbers to be used
EXPLICIT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def usable_cores() -> int:
    """Returns the number of cores that this process may run on; all cores where the system does not report it (macOS).

    Counts the affinity mask (taskset, Slurm) and the quota of a control group (containers), rounded up.
    """
    cores = len(_allowed()) or os.cpu_count() or 1
    quota = _quota(PROC, CGROUPS)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


@dataclass(frozen=True)
class Threads:
    """A number of compute threads.

    Attributes:
        count: threads, at least 1.
        reason: the source of the number, for the log.
        busy: load of other processes on this process's cores, in cores; None: not measured.
    """

    count: int
    reason: str
    busy: float | None = None


@dataclass(frozen=True)
class CpuTimes:
    """Processor times at one moment: take them early with `now`, and pass them to `choose_threads` later.

    Attributes:
        wall: seconds on the monotonic clock.
        own: processor seconds of this process and of its children that have ended.
        cores: maps processor number to (busy, idle) seconds since boot; empty if that is not known.
    """

    wall: float
    own: float
    cores: dict[int, tuple[float, float]]

    @classmethod
    def now(cls) -> CpuTimes:
        """Returns the current times."""
        times = os.times()
        return cls(time.monotonic(), sum(times[:4]), _core_times(PROC / "stat"))


def choose_threads(asked: int | None = None, since: CpuTimes | None = None) -> Threads:
    """Chooses as many compute threads as there are cores that other processes do not use.

    The threads of one matrix product wait for each other: one that shares its core delays all of them, and on two busy
    cores two threads are slower than one. So only cores that are mostly idle count. No setting is changed; pass `count`
    to `torch.set_num_threads` before the first product.

    In order of precedence: `asked`; OMP_NUM_THREADS or MKL_NUM_THREADS, which torchrun, Slurm and users set; the cores
    of this process (affinity, quota of its control group) minus the load of other processes since `since`. Where the
    system does not count that (macOS), the load average of the last minute is used. Time of niced processes counts as
    idle, since they yield to others, unless this process is niced itself.

    Args:
        asked: a number that is set; None: choose.
        since: start of the measurement; one shorter than `SHORTEST_LOOK_S` is completed by sleeping. None: start now.
    """
    if asked is not None:
        return Threads(asked, "as set")
    for name in EXPLICIT:
        if (given := _leading_number(os.environ.get(name, ""))) is not None:
            return Threads(given, f"{name}={os.environ[name]}")
    cores = usable_cores()
    if cores == 1:
        return Threads(1, "one core")
    busy = _others(since or CpuTimes.now())
    if busy is None:
        return Threads(cores, f"all {cores} cores; the load of other processes is not known")
    count = max(1, min(cores, math.floor(len(_allowed() or range(cores)) - busy + 0.5)))
    return Threads(count, f"{cores} cores, of which other processes use {busy:.1f}", busy)


def _others(since: CpuTimes) -> float | None:
    """Returns the load of other processes on this process's cores since then, in cores; None if it is not known."""
    time.sleep(max(0.0, SHORTEST_LOOK_S - (time.monotonic() - since.wall)))
    now = CpuTimes.now()
    allowed = _allowed()
    pairs = [(since.cores[i], now.cores[i]) for i in now.cores if i in since.cores and i in allowed]
    busy = sum(after[0] - before[0] for before, after in pairs)
    counted = busy + sum(after[1] - before[1] for before, after in pairs)
    elapsed = now.wall - since.wall
    if not pairs or counted < MEASURED_ENOUGH * elapsed * len(pairs):
        return _others_on_average()
    return max(0.0, (busy - (now.own - since.own)) / elapsed)


def _others_on_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _core_times(stat: Path) -> dict[int, tuple[float, float]]:
    """Reads (busy, idle) seconds of each processor from /proc/stat (proc_stat(5))."""
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return {}
    tick = os.sysconf("SC_CLK_TCK")
    niced = os.nice(0) > 0
    times: dict[int, tuple[float, float]] = {}
    for line in lines:
        name, *fields = line.split()
        if not name.startswith("cpu") or not name[3:].isdigit() or len(fields) < 8:
            continue
        # user and nice include the time of guests
        user, nice, system, idle, waiting, interrupts, soft, stolen = (int(field) / tick for field in fields[:8])
        busy = user + system + interrupts + soft + stolen
        times[int(name[3:])] = (busy + nice, idle + waiting) if niced else (busy, idle + waiting + nice)
    return times


def _allowed() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _quota(proc: Path, cgroups: Path) -> float | None:
    """Returns the smallest CPU quota of this process's control groups, in cores; None without a limit."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return None
    limits: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / controllers if controllers else cgroups
        # Inside a container the folder of the group itself is often mounted as the root.
        for folder in {root, *(root / part for part in _ancestors(path))}:
            limit = _limit(folder)
            if limit is not None:
                limits.append(limit)
    return min(limits, default=None)


def _ancestors(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _limit(folder: Path) -> float | None:
    """Reads the quota of one control group, version 2 (cpu.max) or 1 (cpu.cfs_quota_us)."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None  # "max" or -1
    return int(quota) / int(period)


def _leading_number(value: str) -> int | None:
    """Returns the first number of OMP_NUM_THREADS, which may list one for each nesting level."""
    first = value.split(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else None


def processor_name() -> str:
    """The CPU's name: sums are bit-identical only on the same kind."""
    with contextlib.suppress(OSError):  # not on every system
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
