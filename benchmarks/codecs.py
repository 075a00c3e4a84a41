"""The cost of each way to pack frames: size on disk, time to write, time to read a random frame.

    python benchmarks/codecs.py [--quick] [--recordings DIR] [--frames N] [--json OUT]

Frames are 320x180, from recordings (real ones, if available) or drawn. Format 3 is measured with one file per frame and
with shards. Times are for one process that writes and reads like the converter and a dataset: medians, in milliseconds
per frame and, in parentheses, relative to `none` in format 2.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zarr
from numpy.typing import NDArray
from recordings import scene  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table

from diffusion_policy.command_line import positive_number
from diffusion_policy.convert.decoding import psnr, read_frame
from diffusion_policy.dataset.frame_files import FrameFiles
from diffusion_policy.dataset.image_codecs import LEVELS, image_codec
from diffusion_policy.dataset.replay_buffer import create_array, image_layout
from diffusion_policy.serve.engine import processor_name
from diffusion_policy.trajectory import find_trajectories, open_trajectory

WIDTH, HEIGHT = 320, 180
VARIANTS = [(name, zarr_format, None) for name in LEVELS for zarr_format in (2, 3)] + [
    ("blosc", 3, 256),
    ("jpeg", 3, 256),
]


def frames_of(recordings: Path | None, n_frames: int) -> NDArray[np.uint8]:
    if recordings is None:
        drawn = [cv2.resize(scene(10 * i, 0), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for i in range(n_frames)]
        return np.stack(drawn)[..., ::-1].copy()
    trajectories = [open_trajectory(path) for path in find_trajectories(recordings)]
    files = [t.frame_path(step) for t in trajectories for step in range(t.n_steps)]
    return np.stack([read_frame(file, WIDTH, HEIGHT)[0] for file in files[:n_frames]])


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))


def measure(path: Path, frames: NDArray[np.uint8], name: str, zarr_format: int, shard: int | None) -> dict[str, Any]:
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    array = create_array(group, "image", image_layout(WIDTH, HEIGHT, image_codec(name), shard), len(frames))
    files = FrameFiles(array)
    block = shard or 16
    starts = iter(range(0, len(frames), block))

    def write() -> None:
        start = next(starts)
        files.write(start, frames[start : start + block])

    written = milliseconds(write, -(-len(frames) // block)) / min(block, len(frames))
    order = iter(np.random.default_rng(0).integers(0, len(frames), 100).tolist())

    def read() -> None:
        row = next(order)
        files.read(row, row + 1)

    read_ms = milliseconds(read, 100)
    on_disk = [file for file in path.rglob("*") if file.is_file()]
    agreement = min(psnr(files.read(i, i + 1)[0], frames[i]) for i in range(0, len(frames), 10))
    return {
        "codec": name,
        "zarr_format": zarr_format,
        "shard": shard,
        "kb_a_frame": sum(file.stat().st_size for file in on_disk) / len(frames) / 1e3,
        "files": len(on_disk),
        "write_ms": written,
        "random_read_ms": read_ms,
        "lowest_psnr_db": None if image_codec(name).lossless else agreement,
    }


def report(found: Sequence[dict[str, Any]], frames: NDArray[np.uint8]) -> float:
    """Prints the table; returns the peak memory in MB."""
    console = Console()
    plain = next(row for row in found if row["codec"] == "none" and row["zarr_format"] == 2)
    table = Table("codec", "zarr format", "kB per frame", "files", "write ms", "random read ms", "lowest PSNR dB")
    for row in found:
        where = f"{row['zarr_format']}, shards of {row['shard']}" if row["shard"] else str(row["zarr_format"])
        measured = [
            f"{row[key]:.{digits}f} ({row[key] / plain[key]:.2f})"
            for key, digits in (("kb_a_frame", 1), ("write_ms", 2), ("random_read_ms", 2))
        ]
        quality = "exact" if row["lowest_psnr_db"] is None else f"{row['lowest_psnr_db']:.1f}"
        table.add_row(row["codec"], where, measured[0], str(row["files"]), *measured[1:], quality)
    console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    console.print(
        f"{len(frames)} frames {WIDTH}x{HEIGHT}; {frames[0].nbytes / 1e3:.1f} kB of pixels each; at most {peak:.0f} MB"
    )
    return peak


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 frames")
    parser.add_argument("--recordings", type=Path, help="folder of episodes to take frames from")
    parser.add_argument("--frames", type=positive_number, default=512)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args(argv)
    frames = frames_of(arguments.recordings, 64 if arguments.quick else arguments.frames)
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(Path(folder) / str(i), frames, *variant) for i, variant in enumerate(VARIANTS)]
    peak = report(found, frames)
    if arguments.json:
        numbers = {"rows": found, "frames": len(frames), "peak_memory_mb": peak, "cpu": processor_name()}
        arguments.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
