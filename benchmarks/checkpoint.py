"""How much longer a checkpoint takes to open because its bytes are compared with their checksums.

    python benchmarks/checkpoint.py [--quick] [--json OUT] [--repeats 7] [FILE]

A checkpoint of the released size (323 MB, made here, or FILE) is opened without and with the comparison of each record
with its CRC-32, in turn, from a warm page cache. --quick uses small layers (the ResNet stays).

Goal on two cores: at most 0.3 s more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adapt import released_config, write_released_checkpoint  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table

from diffusion_policy.checkpoint import load_policy
from diffusion_policy.tensor_file.torch_zip import read_torch_zip

GOAL_SECONDS = 0.3


def seconds(task: Callable[[], Any]) -> float:
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def measure(path: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Median and least seconds of each way to open a file; the ways take turns, so that a busy moment hits all."""
    ways: dict[str, Callable[[], Any]] = {
        "open, headers only": lambda: read_torch_zip(path, check=False),
        "open, every record checked": lambda: read_torch_zip(path),
        "open and build the policy": lambda: load_policy(path),
    }
    for way in ways.values():
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            taken[name].append(seconds(way))
    return {name: {"median_s": statistics.median(each), "least_s": min(each)} for name, each in taken.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a checkpoint at hand")
    parser.add_argument("--quick", action="store_true", help="small layers")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", metavar="OUT", help="also write the numbers as JSON")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.file or Path(folder) / "released.ckpt"
        if arguments.file is None:
            write_released_checkpoint(path, released_config(*((2, 64) if arguments.quick else (8, 256))))
        ways, megabytes = measure(path, arguments.repeats), path.stat().st_size / 1e6
    headers, checked = (ways[name] for name in ("open, headers only", "open, every record checked"))
    cost = {key: checked[key] - headers[key] for key in headers}
    table = Table("way", "median s", "least s", title=f"{megabytes:.0f} MB file, {arguments.repeats} times")
    for name, numbers in {**ways, f"cost of the check (goal {GOAL_SECONDS})": cost}.items():
        table.add_row(name, f"{numbers['median_s']:.3f}", f"{numbers['least_s']:.3f}")
    Console().print(table)
    if arguments.json:
        results = {"file_mb": megabytes, "ways": ways, "check": cost, "goal_s": GOAL_SECONDS}
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n", encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
