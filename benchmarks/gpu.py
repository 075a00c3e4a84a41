"""Every figure that needs a GPU, in one call of at most eight minutes.

    python benchmarks/gpu.py --json OUT           # on a machine with torch and this project's other dependencies
    python benchmarks/gpu.py --device cpu --dry-run --json OUT       # the same parts, too small to be meaningful

    training   samples per second and memory at batch 128: float32 and bf16, batches gathered on the device
               (training.cache=device) and on the host, with and without training.compile
    serving    p50, p95 and p99 of a request: plain path, fast path with and without CUDA graphs, bfloat16, and one
               that continues the chunk under execution
    learning   whether bf16 learns what float32 learns: the demo's task, two seeds each

Parts are measured in this order, each variant by itself; one that fails is reported with its error, and one for which
no time is left is named in "left_out". The document is written after every variant, so a call that is cut off keeps
what it had. Nothing is downloaded. Exit status: 0 all measured, 1 something failed or was left out, 2 there is no GPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from dataset import write_dataset  # type: ignore[import-not-found]
from demo_learning import MODES, demonstrations, train  # type: ignore[import-not-found]
from latency import Candidate, measure, percentiles, serving  # type: ignore[import-not-found]
from train_step import Ours, PeakMemory, device_name, finish, settings  # type: ignore[import-not-found]

from diffusion_policy.errors import WorkspaceError
from diffusion_policy.serve.settings import EngineSettings
from diffusion_policy.serve.transport.host import computing_thread
from diffusion_policy.storage import write_json

SMALL = ("policy.n_layer=1", "policy.n_emb=32", "++policy.encoder_width=16")
TRAINING = {
    "float32, cache=device": ("training.precision=float32",),
    "bf16, cache=device": ("training.precision=auto",),
    "bf16, cache=memory": ("training.precision=auto", "training.cache=memory"),
    "bf16, cache=device, compiled": ("training.precision=auto", "training.compile=true"),
}
SERVING: dict[str, dict[str, Any]] = {
    "plain": {"fast": False},
    "float32": {},
    "float32, no CUDA graphs": {"cuda_graphs": False},
    "float32, continuing": {},
    "bfloat16": {"precision": "bfloat16"},
    "float32, compiled": {"compile": True},
}
SEEDS = (0, 1)
# Most seconds that a variant may need on a GPU, including compilation; it is left out if less time is left.
LONGEST_S = {"training": 60.0, "serving": 60.0, "learning": 50.0}


class Call:
    """The measurements of this call, and the time that is left.

    Args:
        arguments: arguments of the command line.
        folder: folder for data and runs.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.device, self.folder, self.dry = torch.device(arguments.device), folder, bool(arguments.dry_run)
        self._until, self._out = time.monotonic() + 60 * arguments.minutes, arguments.json
        self.found: dict[str, Any] = {
            "device": device_name(self.device), "torch": torch.__version__, "cuda": torch.version.cuda,
            "cores": os.cpu_count(), "dry_run": self.dry, "left_out": [],
        }  # fmt: skip

    def run(self, part: str, variant: str, work: Callable[[], dict[str, Any]]) -> None:
        """Measures one variant, and writes all results so far."""
        rows = self.found.setdefault(part, {})
        if self._until - time.monotonic() < LONGEST_S[part] and not self.dry:
            self.found["left_out"].append(f"{part}: {variant}")
            return
        begun = time.monotonic()
        try:
            rows[variant] = work()
        except (WorkspaceError, RuntimeError, OSError) as error:
            rows[variant] = {"error": f"{type(error).__name__}: {error}"[:500]}
        rows[variant]["took_s"] = round(time.monotonic() - begun, 1)
        if self._out:
            write_json(self._out, self.found)


def training_rate(call: Call, dataset: Path, batch: int, rounds: int, words: Sequence[str]) -> dict[str, Any]:
    """Returns samples per second of the median update, and memory."""
    small = SMALL if call.dry else ()
    with ExitStack() as stack:
        cfg = settings(dataset, batch, str(call.device), *words, *small)
        trainer = Ours(cfg, call.folder / f"run_{time.monotonic_ns()}", stack)
        for _ in range(3):  # compilation, autotuning, optimizer state
            trainer.step()
        finish(call.device)
        seconds = []
        with PeakMemory(call.device) as memory:
            for _ in range(rounds):
                start = time.perf_counter()
                trainer.step()
                finish(call.device)
                seconds.append(time.perf_counter() - start)
        return {
            "batch": batch, "samples_per_s": batch / statistics.median(seconds),
            "fastest_samples_per_s": batch / min(seconds), "added_gb": memory.added / 1e9,
        }  # fmt: skip


def request_times(call: Call, options: dict[str, Any], requests: int, *, continuing: bool) -> dict[str, Any]:
    """Returns percentiles by stage for requests with two new frames, and with one that is cached."""
    worker = computing_thread()
    steps = 2 if call.dry else 10
    settings_ = EngineSettings(steps=steps, **options)
    log = call.folder / f"log_{time.monotonic_ns()}"
    with serving("gpu", settings_, log, str(call.device), worker, small=call.dry) as candidate:
        assert isinstance(candidate, Candidate)
        candidate.continuing = continuing
        measure([candidate], requests)
        graphs = candidate.client.metadata["cuda_graphs"]
        return {"steps": steps, "cuda_graphs": graphs} | {
            name: percentiles(candidate, name) for name in candidate.stages
        }


def learned(call: Call, dataset: Path, mode: str, seed: int) -> dict[str, Any]:
    """Returns the validation of a run on the demo's task."""
    epochs = 1 if call.dry else 12
    return dict(train(dataset, call.folder, mode, seed, epochs, call.dry, str(call.device), SMALL if call.dry else ()))


def parts(call: Call) -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """Yields everything to be measured, in order."""
    batch, rounds, requests = (2, 2, 1) if call.dry else (128, 30, 60)
    dataset = call.folder / "bench.zarr"
    write_dataset(dataset, 300 if call.dry else 2048)
    for name, words in TRAINING.items():
        if not call.dry or "compiled" not in name:
            yield "training", name, partial(training_rate, call, dataset, batch, rounds, words)
    for name, options in SERVING.items():
        if not call.dry or name in ("float32", "float32, continuing"):
            continuing = name.endswith("continuing")
            yield "serving", name, partial(request_times, call, options, requests, continuing=continuing)
    recorded = demonstrations(call.folder, quick=call.dry)
    for seed in SEEDS[: 1 if call.dry else None]:
        for mode in MODES[: 1 if call.dry else None]:
            yield "learning", f"{mode}, seed {seed}", partial(learned, call, recorded, mode, seed)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="minutes for the whole call (default 8)")
    parser.add_argument(
        "--dry-run", "--quick", action="store_true", help="run every part; the figures are not meaningful"
    )
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args(argv)
    if torch.device(arguments.device).type == "cuda" and not torch.cuda.is_available():
        if not arguments.dry_run:
            said = "torch.cuda.is_available() is false: no GPU is available; --dry-run tries all parts on the CPU"
            parser.exit(2, said + "\n")
        arguments.device = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        call = Call(arguments, Path(folder))
        for part, variant, work in parts(call):
            call.run(part, variant, work)
    show_found(call.found)
    failed = [row for rows in call.found.values() if isinstance(rows, dict) for row in rows.values() if "error" in row]
    return 1 if failed or call.found["left_out"] else 0


def show_found(found: dict[str, Any]) -> None:
    """Prints what was measured, one line per variant."""
    from diffusion_policy.terminal import show

    lines = [f"{found['device']}, torch {found['torch']}"]
    for part in ("training", "serving", "learning"):
        for variant, row in found.get(part, {}).items():
            if "error" in row:
                shown = row["error"]
            elif part == "training":
                shown = f"{row['samples_per_s']:.0f} samples/s at batch {row['batch']}, {row['added_gb']:.2f} GB"
            elif part == "serving":
                shown = " / ".join(f"{ms:.1f}" for ms in row["new frames"]["total"]) + " ms (p50 / p95 / p99)"
            else:
                shown = f"val_loss {row['val_loss']:.4f}, position {row['val_position_error_mm']:.1f} mm"
            lines.append(f"{part}: {variant}: {shown}")
    show([*lines, *(f"no time was left for {name}" for name in found["left_out"])])


if __name__ == "__main__":
    sys.exit(main())
