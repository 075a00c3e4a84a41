"""What this machine offers (versions, GPU, memory, disk), and findings about it."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from diffusion_policy.commands import command, pip_install, rebuild
from diffusion_policy.cpu import usable_cores
from diffusion_policy.diagnose.disk_need import DiskNeed
from diffusion_policy.diagnose.findings import Finding, ok, run_checks
from diffusion_policy.model.cpu import kernels

DISTRIBUTION = "diffusion-policy"
# Default without a run or config: eight checkpoints of the users' model (weights, average, optimizer).
DISK_NEEDED = 8 * 323_000_000
# For loader workers and the model together.
MEMORY_NEEDED = 4 * 2**30
GPU_NEEDED = 6 * 2**30


@dataclass(frozen=True)
class Environment:
    """A machine.

    Attributes:
        python: Python's version.
        versions: versions of the packages that this project needs; None for one that is not installed.
        unmet: requirements that are not met, as written in the package's metadata.
        cores: number of cores that this process may use.
        memory: bytes free for programs; None if the system does not report them.
        disk: free bytes where outputs go.
        gpus: name and free bytes of each.
        cuda_build: the CUDA that torch was built for; None for a build without.
        no_kernels: why the compiled kernels cannot be used; None if they can.
        disk_need: disk space that the checkpoints of the given run take; None without a run.
    """

    python: str
    versions: dict[str, str | None]
    unmet: tuple[str, ...]
    cores: int
    memory: int | None
    disk: int
    gpus: tuple[tuple[str, int], ...] = ()
    cuda_build: str | None = None
    no_kernels: str | None = None
    disk_need: DiskNeed | None = None


def look_at_environment(outputs: Path = Path(), need: DiskNeed | None = None) -> Environment:
    """Examines this machine; `outputs` is where runs will be written, and `need` the space that one takes there."""
    wanted = [Requirement(text) for text in requires(DISTRIBUTION) or []]
    needed = [requirement for requirement in wanted if requirement.marker is None or requirement.marker.evaluate()]
    versions = {requirement.name: _version(requirement.name) for requirement in needed}
    pairs = ((requirement, versions[requirement.name]) for requirement in needed)
    existing = next(folder for folder in (outputs.resolve(), *outputs.resolve().parents) if folder.is_dir())
    return Environment(
        python=platform.python_version(),
        versions=versions,
        unmet=tuple(str(r) for r, has in pairs if has is None or not r.specifier.contains(has, prereleases=True)),
        cores=usable_cores(),
        memory=_free_memory(),
        disk=shutil.disk_usage(existing).free,
        gpus=tuple(
            (torch.cuda.get_device_name(i), torch.cuda.mem_get_info(i)[0]) for i in range(torch.cuda.device_count())
        ),
        cuda_build=torch.version.cuda,
        no_kernels=kernels.why_unavailable(),
        disk_need=need,
    )


def environment_findings(environment: Environment) -> list[Finding]:
    """Whether training and serving can work here."""
    return run_checks((packages, gpu, compiled_kernels, memory, disk), environment)


def packages(environment: Environment) -> Finding:
    """Versions."""
    if environment.unmet:
        evidence = f"not met: {', '.join(environment.unmet)}"
        return Finding("packages", "error", evidence, "install what the project needs", pip_install(*environment.unmet))
    shown = ("torch", "numpy", "zarr", "diffusers")
    listed = ", ".join(f"{name} {environment.versions[name]}" for name in shown if environment.versions.get(name))
    return ok("packages", f"Python {environment.python}, {listed}; every requirement is met")


def gpu(environment: Environment) -> Finding:
    """Whether there is a GPU with free memory."""
    if not environment.gpus:
        why = "torch was built without CUDA" if environment.cuda_build is None else "torch finds no CUDA device"
        evidence = f"no GPU ({why}), {environment.cores} CPU cores: fine-tuning that takes hours on a GPU takes days"
        return Finding(
            "gpu", "note", evidence, "fine for tests and small data; otherwise train on a machine with a GPU"
        )
    listed = ", ".join(f"{name} with {free / 2**30:.0f} GiB free" for name, free in environment.gpus)
    if max(free for _, free in environment.gpus) < GPU_NEEDED:
        evidence = f"{listed}: less than {GPU_NEEDED >> 30} GiB"
        return Finding(
            "gpu", "warning", evidence, "end the process that uses it (nvidia-smi), or lower dataloader.batch_size"
        )
    return ok("gpu", f"{listed}, {environment.cores} CPU cores")


def compiled_kernels(environment: Environment) -> Finding:
    """Whether the compiled kernels can be used, which a CPU needs for its full speed."""
    if environment.no_kernels is None:
        return ok("kernels", "the compiled kernels can be used: a CPU trains and serves about twice as fast with them")
    evidence = f"no compiled kernels ({environment.no_kernels}): a CPU trains and serves about half as fast"
    if environment.no_kernels == kernels.NO_AVX2:
        return Finding("kernels", "note", evidence, "use a machine whose CPU has it, or a GPU")
    remedy = "with a C++ compiler (apt install g++), install the package again"
    return Finding("kernels", "note", evidence, remedy, rebuild())


def memory(environment: Environment) -> Finding | None:
    """Free memory."""
    if environment.memory is None:
        return None
    text = f"{environment.memory / 2**30:.1f} GiB of memory are free"
    if environment.memory < MEMORY_NEEDED:
        remedy = "use fewer loader workers, and training.cache=none"
        return Finding(
            "memory", "warning", text, remedy, command("train", "dataloader.num_workers=2", "training.cache=none")
        )
    return ok("memory", text)


def disk(environment: Environment) -> Finding:
    """Whether the free disk space suffices for a run's checkpoints."""
    need = environment.disk_need
    text = f"{environment.disk / 2**30:.1f} GiB of disk are free"
    if need is not None:
        text = f"{text}; {need.describe()}"
    if environment.disk < (DISK_NEEDED if need is None else need.needed):
        remedy = "free some, or lower checkpoint.topk.k: a run keeps several checkpoints"
        return Finding("disk", "error", text, remedy, command("train", "checkpoint.topk.k=1"))
    return ok("disk", text)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _free_memory() -> int | None:
    """Returns the memory that the kernel reports as available without swapping."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    for line in meminfo.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
