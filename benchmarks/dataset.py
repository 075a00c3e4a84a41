"""How fast training samples are read, compared with the reference's access pattern.

    python benchmarks/dataset.py [--quick] [--steps N] [--batches N] [--json OUT]

All ways read the same dataset (320x180, one frame per chunk, Blosc) in one call, in this process without workers:
windows of 16 steps with 2 observed, in random order, in batches of 64; rates are those of the median batch. The
reference's pattern is a Python loop over samples, each a slice of the zarr array copied into a window-sized array,
converted to float32 and divided by 255. Memory is resident memory without mapped files, after each run; the mapped
cache is in the system's page cache instead.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from recordings import scene  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table

from diffusion_policy.command_line import positive_number
from diffusion_policy.dataset.cogact_image_dataset import CogActImageDataset
from diffusion_policy.dataset.replay_buffer import ArrayLayout, ReplayBuffer, image_layout, low_dim_layout
from diffusion_policy.spec import GRIPPER, POSE, POSE_GRIPPER

WIDTH, HEIGHT, HORIZON, OBSERVED, BATCH, EPISODE = 320, 180, 16, 2, 64, 115
SHAPE_META: dict[str, dict[str, Any]] = {
    "obs": {
        "image": {"shape": [3, HEIGHT, WIDTH], "type": "rgb"},
        "robot_eef_pose": {"shape": [7]},
        "robot_gripper_state": {"shape": [1]},
    },
    "action": {"shape": [8]},
}


def write_dataset(path: Path, n_steps: int, shard: int | None = None) -> None:
    """Writes a dataset with one frame per file in format 2, or in shards of `shard` frames in format 3."""
    layout = {
        "image": image_layout(WIDTH, HEIGHT, shard=shard),
        "robot_eef_pose": low_dim_layout(POSE),
        "robot_gripper_state": low_dim_layout((GRIPPER,)),
        "action": low_dim_layout(POSE_GRIPPER),
        "timestamp": ArrayLayout((), np.float64),
    }
    buffer = ReplayBuffer.create(path, layout, zarr_format=2 if shard is None else 3, n_steps=n_steps)
    frames = np.stack([cv2.resize(scene(10 * i, 0), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for i in range(32)])
    for start in range(0, n_steps, shard or 32):
        rows = np.resize(np.roll(frames, start, axis=2), (shard or 32, HEIGHT, WIDTH, 3))
        buffer["image"][start : start + len(rows)] = rows[: n_steps - start]
    rng, gripper = np.random.default_rng(0), (np.arange(n_steps, dtype=np.float32) // 20 % 2)[:, None]
    for key in ("robot_eef_pose", "action"):
        pose = rng.random((n_steps, len(POSE)), dtype=np.float32)
        pose[:, 3:] /= np.linalg.norm(pose[:, 3:], axis=1, keepdims=True)
        buffer[key][:] = np.hstack([pose, gripper])[:, : buffer[key].shape[1]]
    buffer["robot_gripper_state"][:] = gripper
    buffer["timestamp"][:] = np.arange(n_steps) / 10
    buffer.set_episode_ends(np.append(np.arange(EPISODE, n_steps - 40, EPISODE), n_steps))


def reference_batches(path: Path, dataset: CogActImageDataset) -> Iterator[dict[str, Any]]:
    """Yields batches made sample by sample: slice, pad to the window, convert to float32, divide; then stack."""
    data = {key: ReplayBuffer.open(path)[key] for key in (*SHAPE_META["obs"], "action")}
    held = {key: np.asarray(array[:]) for key, array in data.items() if key != "image"}

    def sample(index: int) -> dict[str, torch.Tensor]:
        steps = dataset.windows.steps(index)
        window = np.full((HORIZON, HEIGHT, WIDTH, 3), 0, dtype=np.uint8)
        first, last = int(steps[0]), int(steps[OBSERVED - 1])
        read = np.asarray(data["image"][first : last + 1])
        window[:OBSERVED] = read[steps[:OBSERVED] - first]
        made = {"image": np.moveaxis(window[:OBSERVED], -1, 1).astype(np.float32) / 255.0}
        made |= {key: values[steps][: HORIZON if key == "action" else OBSERVED] for key, values in held.items()}
        return {key: torch.from_numpy(value) for key, value in made.items()}

    for batch in random_batches(len(dataset)):
        yield torch.utils.data.default_collate([sample(index) for index in batch])


def random_batches(n_windows: int) -> Iterator[list[int]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(n_windows, generator=generator).tolist()
        yield from (order[start : start + BATCH] for start in range(0, n_windows - BATCH + 1, BATCH))


def samples_per_second(batches: Iterator[Any], n_batches: int) -> float:
    next(batches)
    seconds = []
    for _ in range(n_batches):
        start = time.perf_counter()
        next(batches)
        seconds.append(time.perf_counter() - start)
    return BATCH / float(np.median(seconds))


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


def own_batches(dataset: CogActImageDataset) -> Iterator[Any]:
    return (dataset.get_batch(batch) for batch in random_batches(len(dataset)))


def loaded(dataset: CogActImageDataset) -> Iterator[Any]:
    """Yields what another training script's DataLoader gets: single samples, collated."""
    order = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**6)
    return iter(torch.utils.data.DataLoader(dataset, batch_size=BATCH, sampler=order))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="600 steps, 5 batches")
    parser.add_argument(
        "--steps", type=positive_number, default=4000, help="steps in the dataset; 20000 are 3.4 GB of pixels"
    )
    parser.add_argument("--batches", type=positive_number, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    n_steps, n_batches = (600, 5) if arguments.quick else (arguments.steps, arguments.batches)
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.zarr"
        write_dataset(path, n_steps)

        def make(cache: str) -> CogActImageDataset:
            dataset = CogActImageDataset(SHAPE_META, path, HORIZON, 1, 7, OBSERVED, cache=cache)
            os.sync()  # otherwise the writing of a cache file would be timed as well
            return dataset

        runs: dict[str, Callable[[], Iterator[Any]]] = {
            "the reference's pattern": lambda: reference_batches(path, make("none")),
            "cache: none": lambda: own_batches(make("none")),
            "cache: mmap": lambda: own_batches(make("mmap")),
            "cache: mmap, DataLoader": lambda: loaded(make("mmap")),
            "cache: memory": lambda: own_batches(make("memory")),
        }
        if torch.cuda.is_available():
            runs["cache: device"] = lambda: own_batches(make("device"))
        rows: dict[str, dict[str, float]] = {}
        for name, run in runs.items():
            batches = run()
            rate = samples_per_second(batches, n_batches)
            rows[name] = {"samples_per_s": rate, "resident_mb": resident_mb()}
            del batches
    base = rows["the reference's pattern"]["samples_per_s"]
    table = Table("", "samples/s", "times", "resident MB")
    for name, row in rows.items():
        rate = row["samples_per_s"]
        table.add_row(name, f"{rate:.0f}", f"{rate / base:.1f}", f"{row['resident_mb']:.0f}")
    console = Console()
    console.print(table)
    console.print(f"{n_steps} steps, {n_steps * WIDTH * HEIGHT * 3 / 1e9:.2f} GB of pixels; batches of {BATCH}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "steps": n_steps}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
