"""The cost of integrity checks: when a checkpoint is opened, when training starts, and in full.

    python benchmarks/integrity.py [--quick] [--json OUT] [--repeats 7] [--frames 20000] [FILE]

A checkpoint of the released size (323 MB, made here, or FILE) is opened with and without comparing each record
to its CRC-32. A dataset of 20,000 frames of 320x180 (3.46 GB of pixels, made here; its files are hard
links to those of 256 different frames) is opened with and without the check of all of its files, stored as one file per
frame and in shards of 256; then every frame and number is compared with its hash, once. The variants take turns, with a
warm page cache. Next to wall-clock seconds, the tables give processor seconds, which other programs affect less.
--quick uses small layers (the ResNet stays) and 600 frames.

Goals on two cores: at most 0.3 s more for the checkpoint, and 2 s more for the dataset.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from adapt import released_config, write_released_checkpoint  # type: ignore[import-not-found]
from dataset import EPISODE, write_dataset  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table

from diffusion_policy.checkpoint import load_policy
from diffusion_policy.command_line import positive_number
from diffusion_policy.dataset.content_hash import (
    ARRAY_HASHES,
    CONTENT_HASH,
    EPISODE_HASH,
    EPISODES,
    array_sha256,
    content_sha256,
    episode_sha256,
    frame_digest,
)
from diffusion_policy.dataset.replay_buffer import ReplayBuffer
from diffusion_policy.dataset.verification import verify_content
from diffusion_policy.storage import link
from diffusion_policy.tensor_file.torch_zip import read_torch_zip

CHECKPOINT_GOAL_S, DATASET_GOAL_S = 0.3, 2.0
SHARD, DISTINCT = 256, 256
Ways = Mapping[str, Callable[[], Any]]
Taken = dict[str, dict[str, float]]


def seconds(task: Callable[[], Any]) -> tuple[float, float]:
    """Returns wall-clock and processor seconds."""
    started, busy = time.perf_counter(), time.process_time()
    task()
    return time.perf_counter() - started, time.process_time() - busy


def measure(ways: Ways, repeats: int) -> Taken:
    """Returns median and least wall-clock and processor seconds of each; they take turns, which evens out load."""
    for way in ways.values():
        way()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            taken[name].append(seconds(way))
    return {name: summary(each) for name, each in taken.items()}


def summary(taken: Sequence[tuple[float, float]]) -> dict[str, float]:
    passed, busy = zip(*taken, strict=True)
    return {"median_s": statistics.median(passed), "least_s": min(passed), "processor_s": statistics.median(busy)}


def cost(ways: Taken, without: str, checked: str) -> dict[str, float]:
    return {key: ways[checked][key] - ways[without][key] for key in ways[checked]}


def of_checkpoint(path: Path, repeats: int) -> dict[str, Any]:
    ways = measure(
        {
            "checkpoint, headers only": lambda: read_torch_zip(path, check=False),
            "checkpoint, every record checked": lambda: read_torch_zip(path),
            "checkpoint, checked, and the policy built": lambda: load_policy(path),
        },
        repeats,
    )
    more = cost(ways, "checkpoint, headers only", "checkpoint, every record checked")
    return {"file_mb": path.stat().st_size / 1e6, "ways": ways, "check": more, "goal_s": CHECKPOINT_GOAL_S}


def grow(path: Path, n_frames: int) -> None:
    """Extends a dataset of `DISTINCT` frames at once: by hard links to its files, and by repeating its numbers."""
    buffer = ReplayBuffer.open(path, mode="r+")
    for key in buffer.keys:
        rows = None if key in buffer.cameras else np.resize(buffer.read(key), (n_frames, *buffer[key].shape[1:]))
        buffer[key].resize((n_frames, *buffer[key].shape[1:]))
        if rows is not None:
            buffer[key][:] = rows
    images = buffer["image"]
    per_file = (images.shards or images.chunks)[0]
    names = [
        path / "data/image" / images.metadata.encode_chunk_key((i, 0, 0, 0)) for i in range(-(-n_frames // per_file))
    ]
    distinct = DISTINCT // per_file
    for index, name in enumerate(names[distinct:], start=distinct):
        link(names[index % distinct], name)
    buffer.set_episode_ends(np.append(np.arange(EPISODE, n_frames - 40, EPISODE), n_frames))


def record_hashes(path: Path) -> None:
    """Gives a dataset the hashes that a conversion would have recorded."""
    buffer = ReplayBuffer.open(path, mode="r+")
    numbers = {key: buffer.read(key) for key in buffer.keys if key not in buffer.cameras}
    digests = [frame_digest(frame) for frame in np.asarray(buffer["image"][:DISTINCT])]
    described: list[dict[str, Any]] = []
    first = 0
    for end in buffer.episode_ends.tolist():
        rows = {key: values[first:end] for key, values in numbers.items()}
        frames = {"image": [digests[row % DISTINCT] for row in range(first, end)]}
        hashes = {EPISODE_HASH: episode_sha256(rows, frames), ARRAY_HASHES: array_sha256(rows, frames)}
        described.append({"name": f"episode_{len(described):04d}", "steps": [0, end - first], **hashes})
        first = end
    whole = content_sha256([entry[EPISODE_HASH] for entry in described])
    buffer.root.attrs.update({EPISODES: described, CONTENT_HASH: whole})


def of_dataset(path: Path, name: str, repeats: int) -> dict[str, Any]:
    without, checked, full = (f"{name}, {way}" for way in ("opened", "every file looked at", "every frame compared"))
    ways = measure(
        {without: lambda: ReplayBuffer.open(path, check_files=False), checked: lambda: ReplayBuffer.open(path)}, repeats
    )
    ways[full] = summary([seconds(lambda: compare(path))])
    files = sum(entry.is_file() for entry in (path / "data").rglob("*"))
    return {"files": files, "ways": ways, "check": cost(ways, without, checked), "goal_s": DATASET_GOAL_S}


def compare(path: Path) -> None:
    found = verify_content(ReplayBuffer.open(path))
    if not found.is_complete:
        raise SystemExit(f"{path}: {found.faults[:1]}")


def show(console: Console, part: Mapping[str, Any]) -> None:
    table = Table("way", "median s", "least s", "processor's s")
    for name, numbers in {**part["ways"], f"cost of the check (goal {part['goal_s']})": part["check"]}.items():
        table.add_row(name, *(f"{numbers[key]:.3f}" for key in ("median_s", "least_s", "processor_s")))
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="an existing checkpoint")
    parser.add_argument("--quick", action="store_true", help="small layers, 600 frames")
    parser.add_argument("--repeats", type=positive_number, default=7)
    parser.add_argument("--frames", type=positive_number, default=20_000, help="frames in the dataset")
    parser.add_argument("--json", metavar="OUT", help="also write the numbers as JSON")
    arguments = parser.parse_args(argv)
    n_frames = 600 if arguments.quick else arguments.frames
    results: dict[str, Any] = {"frames": n_frames, "repeats": arguments.repeats, "load_average": os.getloadavg()[0]}
    console = Console()
    for name, shard in (("one frame a file", None), (f"shards of {SHARD}", SHARD)):
        with tempfile.TemporaryDirectory() as folder:
            dataset = Path(folder) / "set.zarr"
            write_dataset(dataset, DISTINCT, shard)
            grow(dataset, n_frames)
            record_hashes(dataset)
            results[name] = of_dataset(dataset, name, arguments.repeats)
        show(console, results[name])
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.file or Path(folder) / "released.ckpt"
        if arguments.file is None:
            write_released_checkpoint(path, released_config(*((2, 64) if arguments.quick else (8, 256))))
        results["checkpoint"] = of_checkpoint(path, arguments.repeats)
    show(console, results["checkpoint"])
    results["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n", encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
