"""What each way to pack frames costs: size on disk, time to write, time to read one frame at random.

    python benchmarks/codecs.py [--quick] [--recordings DIR] [--frames N]

Frames are 320x180, from recordings (real ones, if there are some) or drawn. Format 3 comes with one file a frame and
with shards. Times are of one process through zarr, as a dataset reads: medians, in milliseconds a frame.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import zarr
from numpy.typing import NDArray
from recordings import scene  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table

from diffusion_policy.convert.decoding import psnr, read_frame
from diffusion_policy.dataset.image_codecs import LEVELS, image_codec
from diffusion_policy.dataset.replay_buffer import create_array, image_layout
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


def measure(path: Path, frames: NDArray[np.uint8], name: str, zarr_format: int, shard: int | None) -> list[str]:
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    array = create_array(group, "image", image_layout(WIDTH, HEIGHT, image_codec(name), shard), len(frames))
    block = shard or 16
    starts = iter(range(0, len(frames), block))

    def write() -> None:
        start = next(starts)
        array[start : start + block] = frames[start : start + block]

    written = milliseconds(write, -(-len(frames) // block)) / min(block, len(frames))
    order = iter(np.random.default_rng(0).integers(0, len(frames), 100).tolist())
    read = milliseconds(lambda: array[next(order)], 100)
    files = [file for file in path.rglob("*") if file.is_file()]
    agreement = min(psnr(np.asarray(array[i]), frames[i]) for i in range(0, len(frames), 10))
    size = sum(file.stat().st_size for file in files) / len(frames) / 1e3
    quality = "exact" if image_codec(name).lossless else f"{agreement:.1f}"
    where = f"{zarr_format}, shards of {shard}" if shard else str(zarr_format)
    return [name, where, f"{size:.1f}", str(len(files)), f"{written:.2f}", f"{read:.2f}", quality]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 frames")
    parser.add_argument("--recordings", type=Path, help="folder of episodes to take frames from")
    parser.add_argument("--frames", type=int, default=512)
    arguments = parser.parse_args(argv)
    frames = frames_of(arguments.recordings, 64 if arguments.quick else arguments.frames)
    table = Table("codec", "zarr format", "kB a frame", "files", "write ms", "random read ms", "lowest PSNR dB")
    with tempfile.TemporaryDirectory() as folder:
        for i, variant in enumerate(VARIANTS):
            table.add_row(*measure(Path(folder) / str(i), frames, *variant))
    console = Console()
    console.print(table)
    console.print(f"{len(frames)} frames {WIDTH}x{HEIGHT}; {frames[0].nbytes / 1e3:.1f} kB of pixels each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
