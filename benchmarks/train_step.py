"""How fast training is, compared with a plain float32 loop written to the reference's description.

    python benchmarks/train_step.py [--quick] [--compile] [--batch N] [--rounds N] [--json OUT]
    python benchmarks/train_step.py --saving      # what a checkpoint costs a running training
    python benchmarks/train_step.py --learning    # the fast mode learns what float32 learns: three seeds, demo task
    python benchmarks/train_step.py --busy [N]    # by number of compute threads, alone and next to N busy processes

The users' model (18.9 million parameters, two 162x288 crops per window) on a generated dataset of 320x180 frames, batch
16 on a CPU and 128 on a GPU. The fast mode is training.precision=auto: bf16 where the device multiplies it, else (on a
CPU) float32 with the compiled kernels. All variants run in this process and take turns, one update each per round, so
that a busy machine slows all of them; the baseline's turns use the C library's own memory thresholds. Rates
are those of the median update, given with the fastest update and the CPU time of the median one, which a busy
machine disturbs less (measure CPU time with OMP_NUM_THREADS=1, since waiting threads spin). The machine's load is in
the title. Parts are timed in further updates, with a device synchronization at each boundary. Memory is what weights,
average, optimizer and gradients take, and the most that an update adds to it.

With --busy one model in the fast mode makes its updates in turn with as many threads as a run would choose at that
moment, with all cores and with one; first on the machine as it is, then next to N processes that compute all the time
(default: one per core). Seconds are those of the median update; the table shows the cores that others used.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from dataset import write_dataset  # type: ignore[import-not-found]
from demo_learning import compare_learning  # type: ignore[import-not-found]
from hydra import compose, initialize_config_dir
from latency import busy_processes  # type: ignore[import-not-found]
from omegaconf import DictConfig
from plain_training import PlainSamples, PlainTraining  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table

from diffusion_policy.checkpoint import build_policy
from diffusion_policy.command_line import positive_number, whole_number
from diffusion_policy.cpu import choose_threads, usable_cores
from diffusion_policy.host_memory import MMAP_THRESHOLD, TRIM_THRESHOLD, keep_freed_memory, set_malloc
from diffusion_policy.resolvers import register_resolvers
from diffusion_policy.serve.engine import processor_name
from diffusion_policy.workspace.checkpointing import CheckpointNames
from diffusion_policy.workspace.processes import Processes
from diffusion_policy.workspace.start import LATEST
from diffusion_policy.workspace.train_diffusion_transformer_hybrid_workspace import (
    TrainDiffusionTransformerHybridWorkspace,
    grouped,
)
from diffusion_policy.workspace.updates import autocast_dtype

CONFIG = str(Path(__file__).resolve().parents[1] / "config")
PARTS = ("data", "encoder", "denoiser", "backward", "optimiser", "EMA", "logging")
RECIPE_WINDOWS = 18_000  # windows of the fine-tune that the goals are stated for


class Trainer(Protocol):
    """Something that makes one update after another."""

    def step(self) -> float:
        """One update."""

    def part_owners(self) -> list[tuple[Any, str, str]]:
        """Returns (object, name of its method, part) for what is timed."""

    def tensors(self) -> list[torch.Tensor]:
        """Returns the tensors that it keeps between updates."""


class Plain(PlainTraining):
    """The baseline."""

    def step(self) -> float:
        with freed_memory_given_back():
            return super().step()

    def part_owners(self) -> list[tuple[Any, str, str]]:
        names = ("data", "encode", "denoise", "backward", "optimise", "average", "log")
        return [(self, name, part) for name, part in zip(names, PARTS, strict=True)]

    def tensors(self) -> list[torch.Tensor]:
        return kept(self.policy, self.average_policy, self.optimizer)


class Ours:
    """The workspace's own loop, stopped after each update."""

    def __init__(self, cfg: DictConfig, folder: Path, stack: ExitStack):
        self.run = TrainDiffusionTransformerHybridWorkspace(cfg, folder)
        self.run._prepare(Processes(torch.device(cfg.training.device)), stack)
        self._groups = self._endless()

    def _endless(self) -> Iterator[Any]:
        epoch = 0
        while True:
            for group in grouped(self.run._data.train.epoch(epoch), 1):
                if len(group[0].indices) == self.run.cfg.dataloader.batch_size:
                    yield epoch, group
            epoch += 1

    def data(self) -> Any:
        return next(self._groups)

    def step(self) -> float:
        epoch, group = self.data()
        progress = self.run.progress
        result = self.run._updates.make(group, epoch, progress.global_step)
        progress.global_step = result.global_step
        self.log(result)
        return float(result.loss)

    def log(self, result: Any) -> None:
        for metrics in self.run._monitor.add(result):
            self.run._write_line(self.run._count(metrics))

    def part_owners(self) -> list[tuple[Any, str, str]]:
        updates = self.run._updates
        return [
            (self, "data", "data"),
            (self.run.model.obs_encoder, "forward", "encoder"),
            (self.run.model.model, "forward", "denoiser"),
            (torch.Tensor, "backward", "backward"),
            (updates.optimizer, "step", "optimiser"),
            (updates.ema, "step", "EMA"),
            (self, "log", "logging"),
        ]

    def tensors(self) -> list[torch.Tensor]:
        assert self.run.ema_model is not None
        return kept(self.run.model, self.run.ema_model, self.run._updates.optimizer)


def kept(model: torch.nn.Module, average: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Returns weights, average, gradients (one for each weight that learns) and moments."""
    moments = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    gradients = [p for p in model.parameters() if p.requires_grad]
    return [*model.parameters(), *average.parameters(), *gradients, *moments]


def settings(dataset: Path, batch: int, device: str, *overrides: str) -> DictConfig:
    register_resolvers()
    cache = "device" if device != "cpu" else "memory"
    with initialize_config_dir(CONFIG, version_base="1.2"):
        return compose(
            "train_cogact_robot",
            overrides=[
                f"task.dataset_path={dataset}", f"training.device={device}", f"training.cache={cache}",
                f"dataloader.batch_size={batch}", "checkpoint.topk.k=0", "training.rollout_every=0", *overrides,
            ],
        )  # fmt: skip


def finish(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def timed_parts(trainer: Trainer, device: torch.device) -> Iterator[dict[str, float]]:
    """Yields seconds by part, measured while the context lasts."""
    seconds: dict[str, float] = defaultdict(float)

    def timed(method: Callable[..., Any], part: str) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            finish(device)
            start = time.perf_counter()
            result = method(*arguments, **options)
            finish(device)
            seconds[part] += time.perf_counter() - start
            return result

        return wrapper

    replaced = []
    for owner, name, part in trainer.part_owners():
        own = name in vars(owner)
        replaced.append((owner, name, own, getattr(owner, name)))
        setattr(owner, name, timed(getattr(owner, name), part))
    try:
        yield seconds
    finally:
        for owner, name, own, method in replaced:
            if own:
                setattr(owner, name, method)
            else:
                delattr(owner, name)


class PeakMemory:
    """The peak memory added while it is entered, in bytes: the GPU's, otherwise this process's."""

    def __init__(self, device: torch.device):
        self._device, self.added = device, 0

    def __enter__(self) -> PeakMemory:
        self._before = self._peak = self._now()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            return self
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated()
        else:
            self._done.set()
            self._thread.join()
        self.added = self._peak - self._before

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self._peak = max(self._peak, self._now())

    def _now(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated()
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024


@contextmanager
def freed_memory_given_back() -> Iterator[None]:
    """Sets the thresholds that glibc adopts by itself when blocks as large as ours are freed."""
    set_malloc(MMAP_THRESHOLD, 32 << 20)
    set_malloc(TRIM_THRESHOLD, 64 << 20)
    yield
    keep_freed_memory()


def measure(trainers: dict[str, Trainer], batch: int, rounds: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Returns rate, parts and memory of each trainer, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    cpu: dict[str, list[float]] = {name: [] for name in trainers}
    added: dict[str, int] = {}
    for name, trainer in trainers.items():  # warm up: compilation, autotuning, optimizer state
        trainer.step()
        if device.type == "cpu":
            ctypes.CDLL(None).malloc_trim(0)  # freed memory counts again when it is used
        with PeakMemory(device) as memory:
            trainer.step()
            finish(device)
        added[name] = memory.added
    for _ in range(rounds):
        for name, trainer in trainers.items():
            start, used = time.perf_counter(), time.process_time()
            trainer.step()
            finish(device)
            seconds[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - used)
    rows = {}
    for name, trainer in trainers.items():
        with timed_parts(trainer, device) as parts:
            for _ in range(max(2, rounds // 3)):
                trainer.step()
        whole = sum(parts.values())
        state = sum(tensor.numel() * tensor.element_size() for tensor in trainer.tensors())
        rows[name] = {
            "samples_per_s": batch / statistics.median(seconds[name]),
            "fastest_samples_per_s": batch / min(seconds[name]),
            "cpu_s": statistics.median(cpu[name]),
            "seconds": seconds[name],
            "share": {part: parts[part] / whole for part in PARTS},
            "state_gb": state / 1e9,
            "added_gb": added[name] / 1e9,
        }
    return rows


def compare_speed(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    batch = arguments.batch or (128 if device.type == "cuda" else 4 if arguments.quick else 16)
    rounds = arguments.rounds or (2 if arguments.quick else 7)
    path = folder / "bench.zarr"
    write_dataset(path, max(300, 4 * batch))
    with ExitStack() as stack:
        cfg = settings(path, batch, str(device), "training.precision=float32")
        ours = Ours(cfg, folder / "float32", stack)
        workers = min(12, os.cpu_count() or 1) if device.type == "cuda" else 0
        data = ours.run._data
        plain = Plain(
            build_policy(cfg).to(device), PlainSamples(path, data.dataset), data.normalizer, batch, workers,
            folder / "plain.log",
        )  # fmt: skip
        trainers: dict[str, Trainer] = {"plain float32": plain, "ours, float32": ours}
        mode = fast_mode(device)
        trainers[f"ours, {mode}"] = Ours(settings(path, batch, str(device)), folder / "fast", stack)
        if arguments.compile:
            compiled = settings(path, batch, str(device), "training.compile=True")
            trainers[f"ours, {'bf16' if mode == 'bf16' else 'float32'}, compiled"] = Ours(
                compiled, folder / "compiled", stack
            )
        load = os.getloadavg()[0]
        rows = measure(trainers, batch, rounds, device)
    return {"rows": rows, "batch": batch, "device": device_name(device), "load": [load, os.getloadavg()[0]]}


def fast_mode(device: torch.device) -> str:
    """Returns what training.precision=auto means on this device."""
    if autocast_dtype("auto", device) is not None:
        return "bf16"
    return "float32, compiled kernels" if device.type == "cpu" else "float32"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor_name()}, {torch.get_num_threads()} threads"


def measure_saving(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures the seconds that one checkpoint takes from training, and the memory it needs."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    batch = arguments.batch or (128 if device.type == "cuda" else 4 if arguments.quick else 16)
    write_dataset(folder / "bench.zarr", max(300, 4 * batch))
    with ExitStack() as stack:
        trainer = Ours(settings(folder / "bench.zarr", batch, str(device)), folder / "run", stack)
        checkpoints = trainer.run._checkpoints

        def update() -> float:
            start = time.perf_counter()
            trainer.step()
            finish(device)
            return time.perf_counter() - start

        update()
        alone, copying, beside, memory = [update() for _ in range(5)], [], [], []
        for _ in range(arguments.rounds or (1 if arguments.quick else 3)):
            with PeakMemory(device if device.type == "cpu" else torch.device("cpu")) as peak:
                start = time.perf_counter()
                trainer.run._save(CheckpointNames((LATEST,)))
                copying.append(time.perf_counter() - start)
                while checkpoints._pending is not None and not checkpoints._pending.done():
                    beside.append(update())
                checkpoints.wait(last=True)
            memory.append(peak.added)
            alone.append(update())
    normal, size = statistics.median(alone), (folder / "run" / "checkpoints" / LATEST).stat().st_size
    extra = sum(max(0.0, seconds - normal) for seconds in beside) / len(copying)
    updates = -(-RECIPE_WINDOWS // batch)
    stall = statistics.median(copying) + extra
    return {
        "device": device_name(device), "load": os.getloadavg()[0], "batch": batch, "file_mb": size / 1e6,
        "update_s": normal, "copy_s": statistics.median(copying), "slower_updates_s": extra,
        "share_of_an_epoch": stall / (updates * normal), "updates_of_an_epoch": updates,
        "memory_added_mb": statistics.median(memory) / 1e6,
    }  # fmt: skip


def measure_busy(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures seconds per update by number of compute threads, on the machine as it is and next to busy processes."""
    batch, rounds = arguments.batch or (4 if arguments.quick else 16), arguments.rounds or (2 if arguments.quick else 5)
    write_dataset(folder / "bench.zarr", max(300, 4 * batch))
    n_busy, mode = arguments.busy or usable_cores(), fast_mode(torch.device("cpu"))
    found: dict[str, Any] = {"processor": processor_name(), "cores": usable_cores(), "batch": batch, "mode": mode}
    with ExitStack() as stack:
        trainer = Ours(settings(folder / "bench.zarr", batch, "cpu"), folder / "run", stack)
        trainer.step()
        for count in (0, n_busy):
            with busy_processes(count):
                rows = updates_by_threads(trainer, rounds)
            found[f"beside {count} busy processes"] = {"load": os.getloadavg()[0], **rows}
    return found


def updates_by_threads(trainer: Trainer, rounds: int) -> dict[str, dict[str, Any]]:
    """Returns wall-clock and CPU seconds of the median update, in turn; threads and others' cores of every turn."""
    turns: dict[str, list[tuple[float, float, int, float | None]]] = defaultdict(list)
    for _ in range(rounds):
        for name, asked in {"chosen": None, "all cores": usable_cores(), "one": 1}.items():
            chosen = choose_threads(asked)
            torch.set_num_threads(chosen.count)
            start, used = time.perf_counter(), time.process_time()
            trainer.step()
            spent = time.perf_counter() - start, time.process_time() - used
            turns[name].append((*spent, chosen.count, chosen.busy))
    rows = {}
    for name, turn in turns.items():
        wall, cpu, counts, others = zip(*turn, strict=True)
        rows[name] = {
            "update_s": statistics.median(wall), "cpu_s": statistics.median(cpu), "seconds": wall, "threads": counts,
            "cores_of_others": others,
        }  # fmt: skip
    return rows


def busy_table(result: dict[str, Any]) -> Table:
    title = f"{result['processor']}, {result['cores']} cores, batch {result['batch']}, {result['mode']}"
    table = Table("", "threads", "threads used", "s per update", "CPU s", "cores that others used", title=title)
    for where, rows in result.items():
        if isinstance(rows, dict):
            for name in ("chosen", "all cores", "one"):
                row = rows[name]
                used = ", ".join(map(str, sorted(set(row["threads"]))))
                others = [busy for busy in row["cores_of_others"] if busy is not None]
                shown = f"{min(others):.1f} to {max(others):.1f}" if others else "-"
                table.add_row(where, name, used, f"{row['update_s']:.2f}", f"{row['cpu_s']:.2f}", shown)
    return table


def speed_table(result: dict[str, Any]) -> Table:
    rows = result["rows"]
    base = rows["plain float32"]
    table = Table(
        "", "samples/s", "times", "fastest", "times", "CPU s", "times", *PARTS, "kept GB", "added GB",
        title=f"{result['device']}, batch {result['batch']}, load {result['load'][0]:.1f} to {result['load'][1]:.1f}",
    )  # fmt: skip
    for name, row in rows.items():
        shares = [f"{100 * row['share'][part]:.1f} %" for part in PARTS]
        figures = []
        for key in ("samples_per_s", "fastest_samples_per_s", "cpu_s"):
            times = base[key] / row[key] if key == "cpu_s" else row[key] / base[key]
            figures += [f"{row[key]:.2f}", f"{times:.2f}"]
        table.add_row(name, *figures, *shares, f"{row['state_gb']:.2f}", f"{row['added_gb']:.2f}")
    return table


def figures_table(result: dict[str, Any], title: str) -> Table:
    table = Table("", "", title=title, show_header=False)
    for key, value in result.items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batch 4, two rounds")
    parser.add_argument("--batch", type=positive_number, help="windows per update")
    parser.add_argument(
        "--rounds", type=positive_number, help="updates of each variant, or checkpoints, or epochs with --learning"
    )
    parser.add_argument("--compile", action="store_true", help="also ours with training.compile=true")
    parser.add_argument("--saving", action="store_true", help="measure checkpoints instead")
    parser.add_argument("--learning", action="store_true", help="compare what is learned instead")
    parser.add_argument(
        "--busy",
        type=whole_number,
        nargs="?",
        const=0,
        metavar="N",
        help="measure by threads, next to N busy processes",
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    console = Console(width=180)
    with tempfile.TemporaryDirectory() as name:
        if arguments.learning:
            epochs = arguments.rounds or (1 if arguments.quick else 2)
            mode = fast_mode(torch.device("cpu"))
            result = compare_learning(Path(name), epochs, mode, quick=arguments.quick)
            console.print(result.pop("table"))
        elif arguments.busy is not None:
            result = measure_busy(arguments, Path(name))
            console.print(busy_table(result))
        elif arguments.saving:
            result = measure_saving(arguments, Path(name))
            console.print(figures_table(result, "one checkpoint during training"))
        else:
            result = compare_speed(arguments, Path(name))
            console.print(speed_table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
